"""For tests as root: act on files as another user for a while."""

from __future__ import annotations

import encodings.idna  # noqa: F401 - a lookup of a host loads it, and the other user may not read Python's files
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
    """Access files as the user ``nobody`` while the block lasts, with *groups* beside its own group."""
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
    """Yield a directory that every user can reach, and only its owner can write to."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
