"""Tests as root that are another user for a while, as far as files go."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534


@contextmanager
def another_user(*groups: int) -> Iterator[None]:
    """Be nobody, in these groups beside its own."""
    own = os.getgroups()
    os.setgroups(groups)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(own)


@contextmanager
def public_directory() -> Iterator[Path]:
    """Yield a directory that every user can reach, and nobody but its owner can write."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
