"""A stand-in for Claude Code that follows a script."""
