"""
Early notice of changes in the secret file's directory.

A notice is only a hint: the caller re-reads after every return, event or not, so a lost event costs at most one tick.
Events do get lost: there are none where a directory was mounted over, or is written behind an overlay or by another
machine. watchfiles misses all events after a directory was replaced, and drops some when the kernel's queue overflows.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from watchfiles._rust_notify import RustNotify  # documented for direct use: watchfiles.helpmanual.io/api/rust_backend

TICK_SECONDS = 0.5
"""Longest time between two readings; two of them still take less than the promised 1.1 s."""

_STEP_MS = 22
_GROUPED_MS = 100
"""
How often watchfiles checks for events, and how long it groups them in a directory that changes all the time.

It reports an event with the second check, so a change is known after 44 ms at the latest. The checks are half of what
an idle supervisor costs.
"""

logger = logging.getLogger(__name__)


class DirectoryWatch:
    """
    Wait for events in a directory that may not exist yet, and may be replaced.

    For one thread; only :meth:`stop` may be called from others. The creator closes it.

    A caller that finds a change without an event calls :meth:`renew`: the directory may have been replaced. Its inode
    number would not show that (on ext4 the new directory usually gets the same). An open descriptor of the directory
    would, but with one, even an ``O_PATH`` one, ``umount`` fails as busy (measured on Linux 6.18).
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stop = threading.Event()
        self._notify: RustNotify | None = None
        self._warned = False

    @property
    def stopped(self) -> bool:
        """Whether all waiting has ended."""
        return self._stop.is_set()

    def stop(self) -> None:
        """End the present wait and all later ones at once."""
        self._stop.set()

    def wait(self, timeout_seconds: float = TICK_SECONDS) -> bool:
        """Wait for an event, the timeout or a stop; return whether there was an event."""
        try:
            if self._notify is None:
                self._notify = watch_of(self._directory)
                if self._warned:
                    logger.info("%s is watched again", self._directory)
                self._warned = False
                return True  # Changes before the watch began cause no event: the caller must read once more.
            found = self._notify.watch(_GROUPED_MS, _STEP_MS, max(1, round(timeout_seconds * 1000)), self._stop)
            return not isinstance(found, str)
        except FileNotFoundError:
            pass
        except (OSError, RuntimeError) as problem:
            self.renew()
            if not self._warned:
                text = "cannot watch %s, it is re-read every %s s instead: %s"
                logger.warning(text, self._directory, TICK_SECONDS, problem)
            self._warned = True
        self._stop.wait(timeout_seconds)
        return False

    def renew(self) -> None:
        """End the present watch; the next :meth:`wait` begins a new one."""
        if self._notify is not None:
            self._notify.close()
        self._notify = None

    close = renew


def watch_of(directory: Path) -> RustNotify:
    """
    Begin to watch a directory, without its subdirectories.

    Raises:
        OSError: The directory is missing or may not be read, or the kernel has no watch left.
        RuntimeError: Any other failure of watchfiles.
    """
    return RustNotify([str(directory)], False, False, 0, False, False)
