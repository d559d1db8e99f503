"""Record which generations a running child has, and since when, so that a refusal is charged to the right one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from agent_runtime.delivery.reload_check import ReloadBehaviour

if TYPE_CHECKING:
    from agent_runtime.delivery.delivery import Delivered
    from agent_runtime.secret.generations import Generation

SETTLED_SECONDS = 1.0
"""For this long after a newer generation reached a child, a refusal may be that of a request with the older one."""


class HeldGenerations:
    """
    The generations of one child, beginning with the one it was spawned with.

    Times are monotonic seconds from the caller. Every method may be called from any thread.
    """

    def __init__(self, delivered: Delivered, now: float) -> None:
        self._delivered = delivered
        self._lock = threading.Lock()
        self._held: list[tuple[Generation, float]] = [(delivered.generation, now)]
        self._waiting: Generation | None = None
        self._can_receive: Generation | None = None
        self._repeats = False

    @property
    def newest(self) -> Generation:
        """The newest generation the child has."""
        return self._held[-1][0]

    @property
    def in_use(self) -> Generation:
        """The generation in the request that the model begins to answer now; without a relay the newest."""
        relayed = self._delivered.relayed
        return self.newest if relayed is None else relayed.served

    @property
    def can_be_reached(self) -> bool:
        """Whether a newer generation can reach this child at all."""
        return self._delivered.reload_behaviour() is not ReloadBehaviour.NEVER

    @property
    def rereads(self) -> bool:
        """Whether this child is known to read its token again while it runs."""
        return self._delivered.reload_behaviour() in {ReloadBehaviour.ON_REFUSAL, ReloadBehaviour.ON_REQUEST}

    @property
    def is_suspect(self) -> bool:
        """Whether the child may have a newer generation than :attr:`newest`, because its behaviour is not known yet."""
        return self._delivered.reload_behaviour() is None and self._can_receive is not None

    def record_loaded(self, generation: Generation, now: float) -> Generation | None:
        """Record that the supervisor loaded *generation*; return it if the child has it from now on, else None."""
        with self._lock:
            if generation.number > self._held[-1][0].number and self._delivered.can_receive(generation):
                self._can_receive = generation
            if not self._delivered.is_reached_by(generation):
                return None
            if self._waiting is None or generation.number > self._waiting.number:
                self._waiting = generation
        # A CLI that reads again only after a refusal does not have it yet, unless it repeats a refused request.
        is_later = self._delivered.reload_behaviour() is ReloadBehaviour.ON_REFUSAL and not self._repeats
        return None if is_later else self.record_reread(now)

    def record_refusal(self, now: float) -> Generation | None:
        """Record that the child repeats a refused request from now on; return as :meth:`record_reread`."""
        self._repeats = True
        return self.record_reread(now)

    def record_answer(self) -> None:
        """Record that the model has answered, so no refused request is repeated."""
        self._repeats = False

    def record_reread(self, now: float) -> Generation | None:
        """Record that the child reads its file again now; return the newer generation that it finds, or None."""
        with self._lock:
            found, self._waiting = self._waiting, None
            if found is None or found.number <= self._held[-1][0].number:
                return None
            self._held.append((found, now))
            return found

    def carried_at(self, now: float) -> tuple[Generation, float]:
        """
        Return the generation that a request answered at *now* has carried, and since when the child has had it.

        The generation of the spawn counts from the first request on, a newer one only after :data:`SETTLED_SECONDS`.
        """
        if self._delivered.relayed is not None:
            return self._delivered.relayed.carried()
        for generation, since in reversed(self._held[1:]):
            if since <= now - SETTLED_SECONDS:
                return generation, since
        return self._held[0]
