"""
Being told soon that something happened in the secret file's directory.

Only a hint: the caller re-reads after every return, event or not, so a lost event costs at most one tick. Some are
lost: a directory that was mounted over, or is written behind an overlay or by another machine, says nothing; and
watchfiles goes deaf when a directory is replaced, and drops events where the kernel's queue overflows.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from watchfiles._rust_notify import RustNotify  # documented for direct use: watchfiles.helpmanual.io/api/rust_backend

if TYPE_CHECKING:
    from pathlib import Path

TICK_SECONDS = 0.5
"""Longest time between two readings; twice this still keeps the promise of 1.1 s."""

_STEP_MS = 20
_GROUPED_MS = 100
"""How often watchfiles looks for events, and how long it groups those of a directory that is never still."""

RETRY_SECONDS = 30.0
"""How long watching is not tried again after it failed, for want of an inotify instance as a rule."""

logger = logging.getLogger(__name__)


class DirectoryWatch:
    """
    Wait for something to happen in a directory that need not exist yet, nor stay the same.

    For one thread; :meth:`stop` may be called by any. Its maker closes it.

    A directory is told from its successor by device and inode number. Where the successor got the same number (usual
    on ext4), a caller that finds a change that was not announced calls :meth:`renew`. A descriptor held open would tell
    the two apart, but even an ``O_PATH`` one makes ``umount`` fail as busy, measured on 6.18.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stop = threading.Event()
        self._notify: RustNotify | None = None
        self._watched: tuple[int, int] | None = None
        self._not_before = 0.0
        self._warned = False

    @property
    def stopped(self) -> bool:
        """Whether all waiting has ended."""
        return self._stop.is_set()

    def stop(self) -> None:
        """End the present wait and all later ones."""
        self._stop.set()

    def wait(self, timeout_seconds: float = TICK_SECONDS) -> bool:
        """Return at an event, after the timeout, or at a stop; tell whether it was an event."""
        if self._identity() != self._watched:
            self.renew()
        if self._notify is None and self._begin():
            # What happened before the watch began had no event: the caller must look once more.
            return True
        if self._notify is None:
            self._stop.wait(timeout_seconds)
            return False
        try:
            found = self._notify.watch(_GROUPED_MS, _STEP_MS, max(1, round(timeout_seconds * 1000)), self._stop)
        except RuntimeError as problem:
            self.renew()
            self._failed(problem)
            return False
        return not isinstance(found, str)

    def renew(self) -> None:
        """Give up the current watch; the next wait begins another."""
        if self._notify is not None:
            self._notify.close()
        self._notify = None
        self._watched = None

    close = renew

    def _begin(self) -> bool:
        identity = self._identity()
        if identity is None or time.monotonic() < self._not_before:
            return False
        try:
            self._notify = watch_of(self._directory)
        except FileNotFoundError:
            return False
        except (OSError, RuntimeError) as problem:
            self._failed(problem)
            return False
        self._watched = identity
        if self._warned:
            logger.info("%s is watched again", self._directory)
        self._warned = False
        return True

    def _failed(self, problem: OSError | RuntimeError) -> None:
        self._not_before = time.monotonic() + RETRY_SECONDS
        if not self._warned:
            logger.warning(
                "cannot watch %s, it is re-read every %s s instead: %s",
                self._directory,
                TICK_SECONDS,
                problem,
            )
        self._warned = True

    def _identity(self) -> tuple[int, int] | None:
        try:
            info = self._directory.stat()
        except OSError:
            return None
        return info.st_dev, info.st_ino


def watch_of(directory: Path) -> RustNotify:
    """
    Begin to watch a directory, not what is below it.

    Raises:
        OSError: There is none, it may not be read, or the kernel has no watch left.
        RuntimeError: Anything else that watchfiles met.
    """
    return RustNotify([str(directory)], False, False, 0, False, False)
