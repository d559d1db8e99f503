"""Watch processes that could not be ended, such as one that waits in the kernel for a dead disk."""

from __future__ import annotations

import logging
import threading
import time

from agent_runtime.process.child import Child

log = logging.getLogger(__name__)


class Unkillable:
    """
    Children whose processes outlive SIGKILL; ending them is tried again now and then.

    Their slots are shown as ``unkillable`` and replaced, so that no other execution loses a place.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: dict[str, tuple[Child, int]] = {}

    def __repr__(self) -> str:
        return f"<Unkillable {self.slots} slots, {self.processes} processes>"

    @property
    def slots(self) -> int:
        """How many attempts have left processes that cannot be ended."""
        return len(self._children)

    @property
    def processes(self) -> int:
        """How many such processes there are, as far as they could be counted."""
        return sum(survivors for _, survivors in tuple(self._children.values()))

    def add(self, child: Child, survivors: int) -> None:
        """Add a child that its attempt has given up, and the number of its living processes; for any thread."""
        with self._lock:
            self._children[child.mark] = (child, survivors)

    def try_again(self) -> None:
        """Try once more to end the processes, and drop the children that have none left; reads ``/proc`` for each."""
        for child, before in tuple(self._children.values()):
            survivors = child.sweep(time.monotonic()).survivors
            if survivors:
                if survivors != before:
                    self.add(child, survivors)
                continue
            child.close()
            with self._lock:
                del self._children[child.mark]
            log.info("a process that could not be ended is gone: pid=%d", child.pid)
