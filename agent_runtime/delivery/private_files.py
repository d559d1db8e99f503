"""
Files for one child that no other user may read, and directories that become a child's; they go when the child is gone.

As root this supervisor writes where a child of another user could plant links. So all is done by descriptor: a
directory is opened without following a link, a file below it is made anew, written, and given away last. What holds
such files stays ours, so that nothing can be planted there at all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from agent_runtime.delivery.credentials_file import owner_of
from agent_runtime.errors import SpawnFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

Owner = tuple[int, int] | None
"""User and group; None: ourselves."""

IN_MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it, for us alone
NAME = "agent-runtime-{mark}"
_PASSABLE = 0o711


def write_new(directory: Path, name: str, content: bytes, owner: Owner) -> Path:
    """
    Write a file that must not be there yet, and give it away.

    Raises:
        OSError: The directory is none, or a link; the name is taken; the operating system refuses.
    """
    with _opened(directory) as place:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=place)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if owner is not None:
                os.fchown(descriptor, *owner)
    return directory / name


def make_directory(directory: Path, name: str, owner: Owner) -> Path:
    """
    Make a directory that must not be there yet, and give it away.

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
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(directory, flags, dir_fd=below)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class PrivateFiles:
    """
    Keep a child's files in a directory that only we can write to; another user's child may pass through it.

    That is below *run_dir*; and where that disk is full or read-only, in memory or in the directory for temporary
    files: a full disk must not keep an execution from running. Wherever it is, the next start finds what a killed
    supervisor left, by :func:`remove_leftovers`.

    Args:
        mark: Unique among all attempts; tells the data directory.
        user: Whom the files are for; None: ourselves.
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
            SpawnFailed: There is no place for it.
        """
        reason = ""
        for directory in self._candidates():
            try:
                return write_new(directory, name, content, self._owner)
            except OSError as error:
                reason = error.strerror or type(error).__name__
                log.warning("cannot write the child's files in %s: %s", directory.parent, reason)
        raise SpawnFailed(f"cannot write the child's files: {reason}")

    def remove(self) -> None:
        """Take everything away."""
        for directory in self._directories:
            shutil.rmtree(directory, ignore_errors=True)

    def _candidates(self) -> Iterator[Path]:
        """List the directories to try, ours first, made when they are tried."""
        yield from self._directories[-1:]
        for place in self._places:
            if place in self._directories:
                continue
            try:
                place.mkdir(mode=0o700)  # never one that somebody else made before
                if self._owner is not None:
                    place.chmod(_PASSABLE)
            except OSError as error:
                log.debug("cannot make %s: %s", place, error.strerror)
                continue
            self._directories.append(place)
            yield place


def fallbacks() -> tuple[Path, ...]:
    """List where private files are written when the data directory's disk takes none."""
    return (IN_MEMORY, Path(tempfile.gettempdir()))


def remove_leftovers(tag: str) -> None:
    """Take away what supervisors of the data directory with this *tag* have left in memory or among temporary files."""
    for place in fallbacks():
        with contextlib.suppress(OSError):
            for entry in os.scandir(place):
                is_ours = entry.name.startswith(NAME.format(mark=f"{tag}.")) and not entry.is_symlink()
                if is_ours and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    shutil.rmtree(entry.path, ignore_errors=True)
