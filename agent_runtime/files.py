"""
Read and write small files as a whole, safely whatever else has their names; list what is mounted.

A supervisor that runs as root writes into directories where a child of another user could plant links. Therefore the
directory is opened first, the file is created in it under a new name, and its owner is changed last, by descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import msgspec

Owner: TypeAlias = tuple[int, int] | None
"""Ids of a file's user and group; None: those of this process."""

MODE = 0o600
UNFINISHED = ".new"
"""Suffix of a file's name until it is complete; if the process is killed, it stays until :func:`remove_unfinished`."""

_ESCAPES = ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\"))


def read_file(path: Path, *, limit_bytes: int | None = None, follow: bool = True) -> bytes:
    """
    Return the content of a file.

    Args:
        limit_bytes: A longer file is an error; None: any length is read.
        follow: Follow a symbolic link; else it is an error, ``ELOOP``.

    Raises:
        OSError: The file is missing or cannot be read. ``EINVAL``: it is no regular file, and reading a FIFO would wait
            for ever. ``EFBIG``: it is too long.
    """
    # O_NONBLOCK: opening a FIFO would wait for its writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    with os.fdopen(descriptor, "rb") as file:  # for a directory fdopen() raises, and closes it
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        content = file.read(-1 if limit_bytes is None else limit_bytes + 1)
    if limit_bytes is not None and len(content) > limit_bytes:
        raise OSError(errno.EFBIG, "it is too long", str(path))
    return content


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
    Write a file that must not exist yet, readable only for its owner.

    Args:
        place: Descriptor of the directory.
        owner: The owner of the file once it is complete.
        durable: Wait for the disk, so that the file survives a crash of the machine, not only of the process.
        finish: Called with the file's descriptor when it is complete, to set its times and permissions.

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
    Write a file as :func:`create_file` does, whole or not at all; a file, FIFO, socket or link of its name is replaced.

    Args:
        is_new: Replace nothing. This needs hard links, which some file systems that a host shares with containers do
            not have: there an existing file is replaced.

    Raises:
        FileExistsError: *is_new* was asked for, and the name exists.
        OSError: The operating system refuses, or a directory has the name.
    """
    unfinished = f".{secrets.token_hex(8)}{UNFINISHED}"
    place = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # also if it may not be listed
    try:
        create_file(place, unfinished, content, owner=owner, durable=durable, finish=finish)
        if is_new and _link(unfinished, path.name, place):
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


def remove_unfinished(directory: Path, *, older_than_seconds: float = 0.0) -> None:
    """Remove files that killed processes left unfinished in *directory*, as far as possible; never raises."""
    with contextlib.suppress(OSError):
        for path in directory.glob(f".{'[0-9a-f]' * 16}{UNFINISHED}"):
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime >= older_than_seconds:
                    path.unlink()


class Mount(msgspec.Struct, frozen=True):
    """
    One mounted file system.

    Attributes:
        root: The directory of the file system that is mounted, for a cgroup as our cgroup namespace shows it.
        point: Where it is mounted.
        kind: The type of the file system.
        options: Of the mount and of the file system, such as ``ro``.
    """

    root: str
    point: str
    kind: str
    options: frozenset[str]


def read_mounts(text: str) -> list[Mount]:
    """
    Parse *text*, a ``mountinfo``; a later mount of the same mount point lies on top of the earlier one.

    Source: https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html
    """
    found = []
    for line in text.split("\n"):
        mounted, _, file_system = line.partition(" - ")
        fields, (kind, *more) = mounted.split(" "), file_system.split(" ")
        if kind and len(fields) >= 6:
            options = frozenset(f"{fields[5]},{more[-1] if more else ''}".split(","))
            found.append(Mount(_unescaped(fields[3]), _unescaped(fields[4]), kind, options))
    return found


@functools.lru_cache(maxsize=1)  # for the secret file it is asked twice a second, with the same text
def mount_of(path: str, text: str) -> Mount | None:
    """
    Return the mount that *path* is in; None: *text*, a ``mountinfo``, has none.

    Args:
        path: Absolute, without symbolic links.
    """
    over = [mount for mount in read_mounts(text) if f"{path}/".startswith(f"{mount.point.rstrip('/')}/")]
    return max(reversed(over), key=lambda mount: len(mount.point), default=None)


def _sync(place: int) -> None:
    """Wait until a directory is on disk, if it may be listed and its file system supports that."""
    with contextlib.suppress(OSError):
        opened = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _link(name: str, other: str, place: int) -> bool:
    """Give a file a second name; return False if the file system has no hard links."""
    try:
        os.link(name, other, src_dir_fd=place, dst_dir_fd=place)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _unescaped(field: str) -> str:
    for escape, character in _ESCAPES:
        field = field.replace(escape, character)
    return field
