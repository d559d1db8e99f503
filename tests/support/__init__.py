"""What the tests share: programs they start, and helpers."""
