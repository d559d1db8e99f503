"""
Files that only one child's user may read, and directories that are given to a child's user.

A supervisor that runs as root writes into places where a child of another user could plant links. Therefore everything
is done by descriptor: a directory is opened without following a link, and a new file gets its new owner last. The
directory of such files stays the supervisor's, so that nothing can be planted in it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agent_runtime.errors import CannotStart, SpawnFailed
from agent_runtime.files import Owner, create_file
from agent_runtime.process.users import UnknownUser, other_user

log = logging.getLogger(__name__)

IN_MEMORY = Path("/dev/shm")  # noqa: S108 - only a private directory is made in it
NAME = "agent-runtime-{mark}"
_PASSABLE = 0o711
_MOST_SOCKET_DIRECTORY_BYTES = 90
"""The path of a Unix socket has at most 107 bytes (unix(7))."""


def owner_of(user: str | None) -> Owner:
    """Return the owner of files for *user* (name or number); None: ours, or *user* is unknown, so the spawn fails."""
    try:
        found = other_user(user)
    except UnknownUser:
        return None
    return None if found is None else (found.uid, found.gid)


def write_new(directory: Path, name: str, content: bytes, owner: Owner) -> Path:
    """
    Write a file that must not exist yet, and give it to *owner*.

    Raises:
        OSError: The directory is missing or a link; the name is taken; the operating system refuses.
    """
    with _opened(directory) as place:
        create_file(place, name, content, owner=owner)
    return directory / name


def make_directory(directory: Path, name: str, owner: Owner) -> Path:
    """
    Make a directory that must not exist yet, and give it to *owner*.

    Raises:
        OSError: As :func:`write_new`.
    """
    with _opened(directory) as place:
        os.mkdir(name, 0o700, dir_fd=place)
        if owner is not None:
            with _opened(name, place) as made:
                os.fchown(made, *owner)
    return directory / name


@contextlib.contextmanager
def _opened(directory: Path | str, below: int | None = None) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=below)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


_WITHOUT_SOCKET = """#!/bin/sh
unset ANTHROPIC_BASE_URL ANTHROPIC_UNIX_SOCKET CLAUDE_CODE_SHELL_PREFIX
exec /bin/sh -c "$1"
"""


def write_shell_prefix(directory: Path) -> Path:
    """
    Write the program that runs a command of the CLI's tools without the variables that lead to the relay's socket.

    A program of the agent that found the plain-HTTP base URL would send its own API key unencrypted.

    Raises:
        OSError: As :func:`write_new`.
    """
    path = write_new(directory, "shell", _WITHOUT_SOCKET.encode(), None)
    path.chmod(0o755)
    return path


class PrivateFiles:
    """
    A child's files, in a directory that only the supervisor can write to; a child of another user may pass through it.

    The directory is below *run_dir*. If that disk is full or read-only, it is in memory or in the directory for
    temporary files, so that a full disk does not stop an execution. There :func:`remove_leftovers` finds it after a
    crash.

    Args:
        mark: Unique among all attempts; begins with the tag of the data directory.
        user: The user that the files are for; None: the supervisor's own.
    """

    def __init__(self, run_dir: Path, mark: str, user: str | None) -> None:
        name = NAME.format(mark=f"{mark}.{secrets.token_hex(8)}")
        self._places = (run_dir / name, *(place / name for place in fallbacks()))
        self._owner = owner_of(user)
        self._directories: list[Path] = []

    def write(self, name: str, content: bytes) -> Path:
        """
        Write one file.

        Raises:
            SpawnFailed: No directory accepts the file.
        """
        reason = ""
        for directory in self._candidates():
            try:
                return write_new(directory, name, content, self._owner)
            except OSError as error:
                reason = error.strerror or type(error).__name__
                log.warning("cannot write the child's files in %s: %s", directory.parent, reason)
        raise SpawnFailed(f"cannot write the child's files: {reason}")

    @property
    def directories(self) -> tuple[Path, ...]:
        """The directories of the child's files; several if a disk became full in between."""
        return tuple(self._directories)

    def remove(self) -> None:
        """Remove all files and directories."""
        for directory in self._directories:
            remove_tree(directory)

    def _candidates(self) -> Iterator[Path]:
        """Yield the directory in use, then further ones, each made just before it is yielded."""
        yield from self._directories[-1:]
        for place in self._places:
            if place not in self._directories and _try_make(place, is_passable=self._owner is not None):
                self._directories.append(place)
                yield place


def _try_make(path: Path, *, is_passable: bool) -> bool:
    """Make a directory that only the supervisor can write to; return whether it was possible."""
    try:
        path.mkdir(mode=0o700)  # fails if anybody else has made it
        if is_passable:
            path.chmod(_PASSABLE)
    except OSError as error:
        log.debug("cannot make %s: %s", path, error.strerror)
        return False
    return True


@contextlib.contextmanager
def short_directory(run_dir: Path, mark: str, user: str | None) -> Iterator[Path]:
    """
    Make a directory for Unix sockets, whose paths must be short, and remove it when the block ends.

    The directory is below *run_dir* if that path is short enough.

    Raises:
        CannotStart: The directory can be made nowhere.
    """
    name = NAME.format(mark=mark)
    for place in (run_dir, *reversed(fallbacks())):
        path = place / name
        if len(os.fsencode(path)) <= _MOST_SOCKET_DIRECTORY_BYTES and _try_make(path, is_passable=user is not None):
            try:
                yield path
            finally:
                remove_tree(path)
            return
    raise CannotStart("no directory for the relay's socket can be made in the data directory or the system's for files")


def remove_tree(path: Path) -> None:
    """Remove a directory, or what an agent has put in its place: at a FIFO rmtree alone would wait for ever."""
    with contextlib.suppress(OSError):
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def fallbacks() -> tuple[Path, ...]:
    """Return the directories in which private files are written if the data directory's disk accepts none."""
    return (IN_MEMORY, Path(tempfile.gettempdir()))


def remove_leftovers(tag: str) -> None:
    """Remove the files that supervisors of one data directory, named by its *tag*, left outside its run directory."""
    beginning = NAME.format(mark=f"{tag}.")
    for place in fallbacks():
        with contextlib.suppress(OSError):
            for entry in os.scandir(place):
                is_ours = entry.name.startswith(beginning) and not entry.is_symlink()
                if is_ours and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    remove_tree(Path(entry))
