"""
How a token reaches a child: by its environment, by a file or through the relay; what the installed CLI can take.

It may import ``process``, ``evidence``, ``claude``, ``secret`` and ``model``; its check of the CLI
may use the stand-in API.
"""
