"""Stand-ins for what costs an account or cannot be made to fail: the Messages API and a scripted CLI."""
