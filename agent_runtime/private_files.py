"""Files for one child that nobody else may read; they go when the child is gone."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from agent_runtime.errors import SpawnFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

IN_MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it, for us alone


class PrivateFiles:
    """
    Keep a child's files in a directory of its own.

    That is below *run_dir*, where the next start finds what a killed supervisor left; and where that disk is full or
    read-only, in memory or in the directory for temporary files: a full disk must not keep an execution from running.

    Args:
        name: Unique among all attempts.
        user: Whom the files are for; None: ourselves.
    """

    def __init__(self, run_dir: Path, name: str, user: str | None) -> None:
        self._places = (run_dir / name, IN_MEMORY / f"agent-runtime-{name}", Path(tempfile.gettempdir()) / name)
        self._user = user
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
                return self._write(directory / name, content)
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
            except OSError as error:
                log.debug("cannot make %s: %s", place, error.strerror)
                continue
            self._directories.append(place)
            yield place

    def _write(self, path: Path, content: bytes) -> Path:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        if self._user is not None:
            for created in (path.parent, path):
                os.chown(created, _uid_of(self._user), -1)
        return path


def _uid_of(user: str) -> int:
    try:
        return int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise SpawnFailed("the child user is unknown") from None
