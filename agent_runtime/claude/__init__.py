"""
What is known of the CLI: how to call it, and what it prints.

It may import ``model`` and the modules at the root; it starts nothing.
"""
