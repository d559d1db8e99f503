"""
Small files of ours that are read and written as a whole, whatever stands in their place.

A supervisor that runs as root writes into places where a child of another user could plant links. Therefore a file is
written by descriptor: its directory is opened first, the file is made in it under a new name, and is given away last.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Owner: TypeAlias = tuple[int, int] | None
"""User and group; None: ourselves."""

MODE = 0o600
UNFINISHED = ".new"
"""Ends the name of a file until it is complete; one of a process that is killed stays behind."""


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


def create_file(
    place: int,
    name: str,
    content: bytes,
    *,
    owner: Owner = None,
    durable: bool = False,
    finish: Callable[[int], object] | None = None,
) -> None:
    """
    Write a file that must not exist yet, readable for its owner alone.

    Args:
        place: Descriptor of its directory.
        owner: Gets the file when it is complete.
        durable: Wait for the disk, so that it survives a crash of the machine, not only of the process.
        finish: Called with the file's descriptor when it is complete, for its times and who may read it.

    Raises:
        OSError: The name is taken, or the operating system refuses.
    """
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE, dir_fd=place)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        if finish is not None:
            finish(descriptor)
        if owner is not None:
            os.fchown(descriptor, *owner)
        if durable:
            os.fsync(descriptor)


def replace_file(
    path: Path,
    content: bytes,
    *,
    owner: Owner = None,
    durable: bool = False,
    is_new: bool = False,
    finish: Callable[[int], object] | None = None,
) -> None:
    """
    Write a file as :func:`create_file` does, whole or not at all; a FIFO, a socket or a link of its name is replaced.

    Args:
        is_new: Replace nothing, where the file system has hard links; some that a host shares with containers have
            none.

    Raises:
        FileExistsError: There is one by now, and *is_new*.
        OSError: The operating system refuses, or a directory has the name.
    """
    unfinished = f".{secrets.token_hex(8)}{UNFINISHED}"
    place = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # one may write where one may not list
    try:
        create_file(place, unfinished, content, owner=owner, durable=durable, finish=finish)
        if is_new and _linked(unfinished, path.name, place):
            os.unlink(unfinished, dir_fd=place)
        else:
            os.rename(unfinished, path.name, src_dir_fd=place, dst_dir_fd=place)
        if durable:
            _sync(place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished, dir_fd=place)
        raise
    finally:
        os.close(place)


def _sync(place: int) -> None:
    """Wait for the disk that holds a directory, where it may be listed and the file system can."""
    with contextlib.suppress(OSError):
        opened = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _linked(name: str, other: str, place: int) -> bool:
    """Give a file a second name; return False where the file system has no links."""
    try:
        os.link(name, other, src_dir_fd=place, dst_dir_fd=place)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True
