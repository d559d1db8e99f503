"""
How a token reaches a child: by its environment or by a file, and whether the installed CLI reads that file again.

It may import ``process``, ``evidence``, ``claude``, ``secret`` and ``model``; its check of the CLI
may use the stand-in API.
"""
