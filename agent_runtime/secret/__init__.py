"""
The secret file: read it, wait until it settles, watch it, write it, and number its contents as generations.

It may import ``model`` and the modules at the root.
"""
