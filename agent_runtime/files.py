"""Small files of ours that are read and written as a whole, whatever stands in their place."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def read_file(path: Path) -> bytes:
    """
    Return the content of a file.

    Raises:
        OSError: It is missing, or cannot be read, or something else has its name. To open a FIFO would wait for ever.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:  # of a directory it raises, and closes it
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        return file.read()


def replace_file(path: Path, content: bytes, *, durable: bool = False) -> None:
    """
    Write a file, readable for its owner alone, whole or not at all; a FIFO, a socket or a link of its name is replaced.

    Args:
        durable: Wait for the disk, so that it survives a crash of the machine, not only of the process.

    Raises:
        OSError: The operating system refuses, or a directory has the name.
    """
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)  # what a killed process has left
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(descriptor)
    new.replace(path)
