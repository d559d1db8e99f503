"""
Being told soon that something happened in the secret file's directory.

Only a hint: whoever waits here re-reads after every return, event or not, so a lost event costs at most one tick.
watchfiles does lose some: a directory that is replaced or mounted over goes silent, an overflow of the queue is
swallowed, a timeout drops events not yet returned.

Source: watchfiles 1.3.0, measured on Linux 6.18.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from watchfiles._rust_notify import RustNotify

if TYPE_CHECKING:
    import threading
    from pathlib import Path

TICK_SECONDS = 0.5
"""Longest time between two readings; twice this still keeps the promise of 1.1 s."""

STEP_MILLISECONDS = 10
DEBOUNCE_MILLISECONDS = 50
"""A directory in which something happens all the time is still reported this often."""

RETRY_SECONDS = 30.0
"""How long watching is not tried again after it failed, for want of an inotify instance as a rule."""

logger = logging.getLogger(__name__)


class DirectoryWatch:
    """
    Wait for something to happen in a directory that need not exist yet, nor stay the same.

    For one thread, which also closes it; *stop* may be set by any.

    A directory is told from its successor by device and inode number. Where the successor got the same number (usual
    on ext4) no event comes any more, so who finds a change that was not announced calls :meth:`renew`. A descriptor
    held open would tell the two apart, but even an ``O_PATH`` one makes ``umount`` fail as busy, measured on 6.18.
    """

    def __init__(self, directory: Path, stop: threading.Event) -> None:
        self._directory = directory
        self._stop = stop
        self._notify: RustNotify | None = None
        self._watched: tuple[int, int] | None = None
        self._not_before = 0.0
        self._warned = False

    def wait(self, timeout_seconds: float = TICK_SECONDS) -> bool:
        """Return at an event, after the timeout, or soon after a stop; tell whether it was an event."""
        if self._identity() != self._watched:
            self.renew()
        if self._notify is None and self._begin():
            # What happened before the watch began had no event: the caller must look once more.
            return True
        if self._notify is None:
            self._stop.wait(timeout_seconds)
            return False
        try:
            timeout_milliseconds = max(1, round(timeout_seconds * 1000))
            seen = self._notify.watch(DEBOUNCE_MILLISECONDS, STEP_MILLISECONDS, timeout_milliseconds, self._stop)
        except BaseException as problem:  # noqa: BLE001 a panic of its Rust part is a BaseException; re-reading goes on
            self._failed(problem)
            return False
        return isinstance(seen, set)

    def renew(self) -> None:
        """Give up the current watch; the next wait begins another."""
        if self._notify is not None:
            self._notify.close()
        self._notify = None
        self._watched = None

    def close(self) -> None:
        """Give up the watch for good."""
        self.renew()

    def _begin(self) -> bool:
        identity = self._identity()
        if identity is None or time.monotonic() < self._not_before:
            return False
        try:
            # force_polling stays off, whatever the environment says: it compares modification times in whole seconds.
            self._notify = RustNotify(
                [str(self._directory)],
                debug=False,
                force_polling=False,
                poll_delay_ms=0,
                recursive=False,
                ignore_permission_denied=False,
            )
        except FileNotFoundError:
            return False
        except BaseException as problem:  # noqa: BLE001 as above
            self._failed(problem)
            return False
        self._watched = identity
        if self._warned:
            logger.info("%s is watched again", self._directory)
        self._warned = False
        return True

    def _failed(self, problem: BaseException) -> None:
        self.renew()
        self._not_before = time.monotonic() + RETRY_SECONDS
        if not self._warned:
            logger.warning(
                "cannot watch %s, it is re-read every %s s instead: %s", self._directory, TICK_SECONDS, problem
            )
        self._warned = True

    def _identity(self) -> tuple[int, int] | None:
        try:
            info = self._directory.stat()
        except OSError:
            return None
        return info.st_dev, info.st_ino
