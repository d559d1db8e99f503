"""
The names of uvicorn that a server needs, without uvicorn's command line.

Import uvicorn from here. ``uvicorn/__init__.py`` imports ``uvicorn.main`` for three names: that imports click and the
reloaders, which make each supervisor 2 MB larger and its start 16 ms longer (uvicorn 0.54).
"""

from __future__ import annotations

from agent_runtime.library_parts import left_out

with left_out("uvicorn.main"):
    import uvicorn
    from uvicorn.config import Config
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.server import Server

vars(uvicorn)["Server"] = Server  # None until now: the package takes it from the part that was left out

__all__ = ["Config", "H11Protocol", "Server"]
