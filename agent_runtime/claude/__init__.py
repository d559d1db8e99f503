"""
Knowledge about the CLI: how to call it, and how to read its output.

It may import ``model`` and the modules at the root; it starts nothing.
"""
