"""Import a library without a part of it that is not needed: that saves each supervisor memory and time at its start."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType


class _LeftOut(ModuleType):
    """Stands in for a module while others import names from it, which all are None."""

    def __getattr__(self, name: str) -> None:
        return None


@contextlib.contextmanager
def left_out(module: str) -> Iterator[None]:
    """Leave out *module* of the library that is imported in the block; it can still be imported afterwards."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = _LeftOut(module)
    try:
        yield
    finally:
        del sys.modules[module]
