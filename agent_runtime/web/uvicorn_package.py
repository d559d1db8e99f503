"""
The names of uvicorn that a server needs, without uvicorn's command line.

Import uvicorn from here. ``uvicorn/__init__.py`` imports ``uvicorn.main`` for three names: that imports click and the
reloaders, which make each supervisor 2 MB larger and its start 16 ms longer (uvicorn 0.54).
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

__all__ = ["Config", "H11Protocol", "Server"]


_COMMAND_LINE = "uvicorn.main"


def _import_without_command_line() -> None:
    """Import uvicorn with an empty module in place of its command line, which can still be imported afterwards."""
    if "uvicorn" in sys.modules:
        return
    empty = sys.modules[_COMMAND_LINE] = ModuleType(_COMMAND_LINE)
    vars(empty).update(dict.fromkeys(("Server", "main", "run")))
    try:
        package = importlib.import_module("uvicorn")
    finally:
        del sys.modules[_COMMAND_LINE]
    vars(package)["Server"] = importlib.import_module("uvicorn.server").Server


_import_without_command_line()

from uvicorn.config import Config  # noqa: E402 - after the call above
from uvicorn.protocols.http.h11_impl import H11Protocol  # noqa: E402 - as above
from uvicorn.server import Server  # noqa: E402 - as above
