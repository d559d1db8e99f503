"""How an attempt is ended: by SIGINT, then by SIGKILL; a process that cannot be killed is abandoned."""

from __future__ import annotations

import math
import threading
from enum import Enum

from agent_runtime.model.state import StopReason
from agent_runtime.process.pipes import Wake

GIVE_UP_SECONDS = 5.0
"""How long after SIGKILL the child is waited for."""


class StopPhase(Enum):
    """How far the end of an attempt has come."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    KILLED = "killed"
    ABANDONED = "abandoned"


class StopSequence:
    """
    A state machine: running, interrupted, killed, abandoned.

    :meth:`request` may be called from any thread, the rest only by the attempt's own. The attempt does what each phase
    calls for; nothing here signals a process. Times are monotonic seconds that the caller passes in.

    Attributes:
        wake: Wakes the attempt's poll loop at each request; it is for the attempt to close.
        reason: The first reason that was given for the end.
    """

    def __init__(self, grace_seconds: float) -> None:
        self.wake = Wake()
        self.phase = StopPhase.RUNNING
        self.reason: StopReason | None = None
        self._grace_seconds = grace_seconds
        self._due_at = math.inf
        self._at_once = False
        self._lock = threading.Lock()

    @property
    def due_at(self) -> float:
        """When :meth:`advance` enters the next phase by time alone; infinite where no phase follows by time."""
        return -math.inf if self._at_once and self.phase is StopPhase.INTERRUPTED else self._due_at

    def request(self, reason: StopReason, *, at_once: bool = False) -> None:
        """Ask for the end, any number of times; the first reason wins. *at_once*: without the grace."""
        with self._lock:
            self.reason = self.reason or reason
            self._at_once |= at_once
        self.wake.set()

    def advance(self, now: float) -> StopPhase | None:
        """Enter the next phase if it is due; return the phase that was entered."""
        if self.phase is StopPhase.RUNNING:
            if self.reason is None:
                return None
            self.phase, self._due_at = StopPhase.INTERRUPTED, now + self._grace_seconds
        elif now < self.due_at:
            return None
        elif self.phase is StopPhase.INTERRUPTED:
            self.phase, self._due_at = StopPhase.KILLED, now + GIVE_UP_SECONDS
        else:
            self.phase, self._due_at = StopPhase.ABANDONED, math.inf
        return self.phase
