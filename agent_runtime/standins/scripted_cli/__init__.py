"""A stand-in for Claude Code; the script of the API that it asks decides what a run does."""
