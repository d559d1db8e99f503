"""Slots and their queue: which executions run now, and which is next."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable


class Ticket(msgspec.Struct, eq=False):
    """
    A place in the queue, and later a slot.

    Attributes:
        may_start: Whether a slot can be used now; until then later tickets pass this one.
        granted: Done when the slot is granted.
        number: Of the slot, from 1; 0 before it is granted.
    """

    may_start: Callable[[], bool] = lambda: True
    granted: asyncio.Future[None] = msgspec.field(default_factory=lambda: asyncio.get_running_loop().create_future())
    number: int = 0


class Slots:
    """
    Grant a fixed number of slots, first come first served; executions that have run before go ahead.

    All methods are synchronous and run on the event loop's thread, so that admission cannot be overtaken.

    Args:
        total: How many executions run at once.
        queue_limit: How many new executions may wait.
        is_held: Whether new executions must stay in the queue for now.
    """

    def __init__(self, total: int, queue_limit: int, is_held: Callable[[], bool]) -> None:
        self.total = total
        self.queue_limit = queue_limit
        self._is_held = is_held
        self._queue: deque[Ticket] = deque()
        self._ahead: deque[Ticket] = deque()
        self._taken: set[Ticket] = set()

    def __repr__(self) -> str:
        return f"<Slots {self.busy}/{self.total} queue={self.queue_length}/{self.queue_limit} ahead={len(self._ahead)}>"

    @property
    def busy(self) -> int:
        """Slots that are held."""
        return len(self._taken)

    @property
    def queue_length(self) -> int:
        """New executions that wait for a slot."""
        return len(self._queue)

    def is_full(self, *, must_wait: bool = False) -> bool:
        """
        Whether there is neither a slot nor a queue place for one more new execution.

        Args:
            must_wait: It could not use a slot now, because another execution uses its session.
        """
        free = max(0, self.total - self.busy - _ready(self._ahead))
        ready = _ready(self._queue)
        if ready < free and not must_wait:
            return False
        return len(self._queue) - min(ready, free) >= self.queue_limit

    def enqueue(self, *, ahead: bool = False, may_start: Callable[[], bool] = lambda: True) -> Ticket:
        """Queue for a slot; *ahead*: before all new executions."""
        ticket = Ticket(may_start)
        (self._ahead if ahead else self._queue).append(ticket)
        self.grant()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give back a slot, or the place in the queue; idempotent."""
        if ticket in self._taken:
            self._taken.remove(ticket)
        for queue in (self._queue, self._ahead):
            if ticket in queue:
                queue.remove(ticket)
        self.grant()

    def grant(self) -> None:
        """Grant the free slots; also to be called when new executions may begin again."""
        while self.busy < self.total and (ticket := self._next()):
            ticket.number = min(set(range(1, self.total + 1)) - {taken.number for taken in self._taken})
            self._taken.add(ticket)
            ticket.granted.set_result(None)

    def _next(self) -> Ticket | None:
        for queue in (self._ahead,) if self._is_held() else (self._ahead, self._queue):
            for ticket in queue:
                if ticket.may_start():
                    queue.remove(ticket)
                    return ticket
        return None


def _ready(queue: deque[Ticket]) -> int:
    return sum(ticket.may_start() for ticket in queue)
