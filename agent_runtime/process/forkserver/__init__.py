"""
The fork server, and the shim of each child, which adopts and reaps the child's orphans.

It may import ``process.linux``.
"""
