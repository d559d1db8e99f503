"""
The fork server, and the per-process shim that reaps what a child leaves.

It may import ``process.linux``.
"""
