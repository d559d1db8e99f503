"""
The commands.

They may import ``client``, ``doctor``, ``demo`` and ``serve``, each where its command is run.
"""
