"""
Being told soon that something happened in the secret file's directory.

Only a hint: whoever waits here re-reads after every return, event or not, so a lost event costs at most one tick. Some
are lost: a directory that was mounted over, or is written behind an overlay or by another machine, says nothing.

The kernel's watch is used as it is. A watch that looks again every few milliseconds, as watchfiles 1.3.0 does, woke
this process 100 times a second while nothing happened, and told of a change 11 to 20 ms late instead of at once.
"""

from __future__ import annotations

import logging
import os
import select
import time
from typing import TYPE_CHECKING

from agent_runtime.inotify import Inotify

if TYPE_CHECKING:
    from pathlib import Path

TICK_SECONDS = 0.5
"""Longest time between two readings; twice this still keeps the promise of 1.1 s."""

PAUSE_SECONDS = 0.01
"""A directory in which something happens all the time is looked at no more often than this."""

AT_ONCE = 8
"""How many events after a quiet time are told without that pause: one update is several events."""

RETRY_SECONDS = 30.0
"""How long watching is not tried again after it failed, for want of an inotify instance as a rule."""

logger = logging.getLogger(__name__)


class DirectoryWatch:
    """
    Wait for something to happen in a directory that need not exist yet, nor stay the same.

    For one thread; :meth:`stop` may be called by any. Who made it closes it.

    A directory is told from its successor by device and inode number. Where the successor got the same number (usual
    on ext4) the kernel still tells that the old one is gone, and the watch begins anew; where it does not tell,
    who finds a change that was not announced calls :meth:`renew`. A descriptor held open
    would tell the two apart, but even an ``O_PATH`` one makes ``umount`` fail as busy, measured on 6.18.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._notify: Inotify | None = None
        self._watched: tuple[int, int] | None = None
        self._due_at = 0.0
        self._not_before = 0.0
        self._warned = False
        self.stopped = False

    def stop(self) -> None:
        """End the present wait and all later ones."""
        self.stopped = True
        os.eventfd_write(self._stop_fd, 1)

    def wait(self, timeout_seconds: float = TICK_SECONDS) -> bool:
        """Return at an event, after the timeout, or at a stop; tell whether it was an event."""
        if self._identity() != self._watched:
            self.renew()
        if self._notify is None and self._begin():
            # What happened before the watch began had no event: the caller must look once more.
            return True
        if self._notify is None:
            self._sleep(timeout_seconds)
            return False
        if not self._notify.wait(self._stop_fd, timeout_seconds):
            return False
        # The first events of many are told at once, those after them together.
        now = time.monotonic()
        self._due_at = max(self._due_at, now - AT_ONCE * PAUSE_SECONDS) + PAUSE_SECONDS
        self._sleep(self._due_at - now)
        if self._notify.clear():
            self.renew()
        return True

    def renew(self) -> None:
        """Give up the current watch; the next wait begins another."""
        if self._notify is not None:
            self._notify.close()
        self._notify = None
        self._watched = None

    def close(self) -> None:
        """Give everything back."""
        self.renew()
        os.close(self._stop_fd)

    def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            select.select([self._stop_fd], [], [], seconds)

    def _begin(self) -> bool:
        identity = self._identity()
        if identity is None or time.monotonic() < self._not_before:
            return False
        try:
            self._notify = Inotify(self._directory)
        except FileNotFoundError:
            return False
        except OSError as problem:
            self._failed(problem)
            return False
        self._watched = identity
        if self._warned:
            logger.info("%s is watched again", self._directory)
        self._warned = False
        return True

    def _failed(self, problem: OSError) -> None:
        self._not_before = time.monotonic() + RETRY_SECONDS
        if not self._warned:
            logger.warning(
                "cannot watch %s, it is re-read every %s s instead: %s",
                self._directory,
                TICK_SECONDS,
                problem.strerror,
            )
        self._warned = True

    def _identity(self) -> tuple[int, int] | None:
        try:
            info = self._directory.stat()
        except OSError:
            return None
        return info.st_dev, info.st_ino
