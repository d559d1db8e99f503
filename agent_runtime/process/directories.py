"""Open a directory below another one so that nobody can redirect the way by renaming directories meanwhile."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from agent_runtime.process.users import User

_MOST_OPEN = 150
"""How deep a directory may be: each part takes a descriptor while it is opened."""

_MOST_DETOURS = 150
"""How many links are followed and directories made."""

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_below(
    top: Path,
    path: str,
    *,
    follow: bool = True,
    make: bool = False,
    owner: User | None = None,
    made: list[int] | None = None,
) -> int:
    """
    Open *path* below *top*, part by part; return a descriptor, for the caller to close.

    A symbolic link is followed if its target is relative and stays below *top*. No name is looked up twice, so a name
    that changes meanwhile leads to an error or to another directory below *top*, and never out.

    Args:
        follow: Follow symbolic links; else a link is an error, ``ENOTDIR``.
        make: Make missing directories.
        owner: The user that owns directories which are made; None: our own.
        made: Gets the inode number of each directory that is made.

    Raises:
        OSError: ``ENOENT``: missing; ``ENOTDIR``: a part is no directory; ``EXDEV``: a link leads out; ``EACCES``: not
            allowed; ``ELOOP``: too many links; ``ENAMETOOLONG``: too deep; or another error of the operating system.
    """
    opened = [os.open(top, _DIRECTORY)]
    ahead, detours = path.split("/")[::-1], 0
    try:
        while ahead:
            name, place = ahead.pop(), opened[-1]
            if name in {"", "."}:  # in the target of a link
                continue
            if name == "..":
                if len(opened) == 1:
                    raise OSError(errno.EXDEV, "a link leads out")
                os.close(opened.pop())
                continue
            try:
                opened.append(os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=place))
            except NotADirectoryError:
                if not follow:
                    raise
                ahead += _target(name, place).split("/")[::-1]
                detours += 1
            except FileNotFoundError:
                if not make:
                    raise
                if _make(name, place, owner) and made is not None:
                    made.append(os.stat(name, dir_fd=place, follow_symlinks=False).st_ino)
                ahead.append(name)
                detours += 1
            if detours > _MOST_DETOURS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if len(opened) > _MOST_OPEN:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return opened.pop()
    finally:
        for descriptor in opened:
            os.close(descriptor)


def path_of(descriptor: int) -> str:
    """Return the present path of an open directory."""
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - a Path is not wanted


def _target(name: str, place: int) -> str:
    try:
        target = os.readlink(name, dir_fd=place)
    except OSError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
    if target.startswith("/"):
        raise OSError(errno.EXDEV, "a link leads out")
    return target


def _make(name: str, place: int, owner: User | None) -> bool:
    """Make a directory, and give it to *owner* if it is empty and ours; return False if the name exists already."""
    try:
        os.mkdir(name, dir_fd=place)
    except FileExistsError:
        return False
    if owner is None:
        return True
    made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
    try:
        # An agent may have put another directory in its place, which it must not be given.
        if os.fstat(made).st_uid == os.geteuid() and not os.listdir(made):  # noqa: PTH208 - pathlib takes no descriptor
            os.fchown(made, owner.uid, owner.gid)
    finally:
        os.close(made)
    return True
