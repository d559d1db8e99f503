"""What could not be ended, such as a process that waits for a dead disk in the kernel: watched until it is gone."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_runtime.process.child import Child

log = logging.getLogger(__name__)


class Unkillable:
    """
    Keep attempts whose processes outlive SIGKILL, and try again now and then.

    Their slots are shown as ``unkillable`` and replaced: what waits in the kernel costs nobody else a place.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handle: dict[str, tuple[Child, int]] = {}

    def __repr__(self) -> str:
        return f"<Unkillable {self.slots} slots, {self.processes} processes>"

    @property
    def slots(self) -> int:
        """How many attempts have left something that cannot be ended."""
        return len(self._handle)

    @property
    def processes(self) -> int:
        """How many processes that are, as far as they could be counted."""
        return sum(survivors for _, survivors in tuple(self._handle.values()))

    def keep(self, child: Child, survivors: int) -> None:
        """Take over a child from its attempt, from any thread."""
        with self._lock:
            self._handle[child.mark] = (child, survivors)

    def look(self) -> None:
        """Try once more to end them, and let go of those that are gone; takes a look at ``/proc`` for each."""
        for child, before in tuple(self._handle.values()):
            survivors = child.sweep(time.monotonic()).survivors
            if survivors:
                if survivors != before:
                    self.keep(child, survivors)
                continue
            child.close()
            with self._lock:
                del self._handle[child.mark]
            log.info("what could not be ended is gone: pid=%d", child.pid)
