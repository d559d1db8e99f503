"""Slots and their queue: which executions run now, and which is next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import msgspec


class Ticket(msgspec.Struct, eq=False):
    """
    A place in the queue, and later a slot.

    Attributes:
        may_start: Returns whether a slot can be used now; until then later tickets pass this one.
        can_run: Returns whether there is a token to run with now; needed only for a slot that another ticket yields.
        yields: When the ticket leaves, its slot goes to the first ticket that can run.
        granted: Done when the slot is granted.
        number: Number of the slot, from 1; 0 before it is granted.
    """

    may_start: Callable[[], bool] = lambda: True
    can_run: Callable[[], bool] = lambda: True
    granted: asyncio.Future[None] = msgspec.field(default_factory=lambda: asyncio.get_running_loop().create_future())
    number: int = 0
    yields: bool = False


class Slots(msgspec.Struct, eq=False):
    """
    Grant a fixed number of slots, first come first served; executions that have run before go ahead.

    All methods are synchronous and run on the event loop's thread, so that admission cannot be overtaken.

    Attributes:
        total: How many executions run at once.
        queue_limit: How many new executions may wait.
        new_must_wait: Returns whether new executions must stay in the queue for now.
    """

    total: int
    queue_limit: int
    new_must_wait: Callable[[], bool]
    _queue: deque[Ticket] = msgspec.field(default_factory=deque)
    _ahead: deque[Ticket] = msgspec.field(default_factory=deque)
    _taken: set[Ticket] = msgspec.field(default_factory=set)

    def __repr__(self) -> str:
        return f"<Slots {self.busy}/{self.total} queue={self.queue_length}/{self.queue_limit} ahead={len(self._ahead)}>"

    @property
    def busy(self) -> int:
        """How many slots are taken."""
        return len(self._taken)

    @property
    def queue_length(self) -> int:
        """How many new executions wait for a slot."""
        return len(self._queue)

    def is_full(self, *, must_wait: bool = False) -> bool:
        """
        Whether there is neither a slot nor a queue place for one more new execution.

        Args:
            must_wait: The new execution could not use a slot now, because another one uses its session.
        """
        free = max(0, self.total - self.busy - _ready(self._ahead))
        ready = _ready(self._queue)
        if ready < free and not must_wait:
            return False
        return len(self._queue) - min(ready, free) >= self.queue_limit

    @property
    def shortage(self) -> int:
        """How many more slots the tickets that could run now need than are free or yielded; may be negative."""
        could_run = sum(ticket.may_start() and ticket.can_run() for queue in self._open_queues for ticket in queue)
        return could_run - max(0, self.total - self.busy) - sum(ticket.yields for ticket in self._taken)

    def enqueue(
        self,
        *,
        ahead: bool = False,
        may_start: Callable[[], bool] = lambda: True,
        can_run: Callable[[], bool] = lambda: True,
    ) -> Ticket:
        """Queue for a slot; *ahead*: before all new executions."""
        ticket = Ticket(may_start, can_run)
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
        if ticket.yields and (runnable := self._next(can_run=True)):
            self._give(runnable)
        self.grant()

    def grant(self) -> None:
        """Grant the free slots; also to be called when new executions may begin again."""
        while self.busy < self.total and (ticket := self._next()):
            self._give(ticket)

    def _give(self, ticket: Ticket) -> None:
        ticket.number = min(set(range(1, self.total + 1)) - {taken.number for taken in self._taken})
        self._taken.add(ticket)
        ticket.granted.set_result(None)

    @property
    def _open_queues(self) -> tuple[deque[Ticket], ...]:
        return (self._ahead,) if self.new_must_wait() else (self._ahead, self._queue)

    def _next(self, *, can_run: bool = False) -> Ticket | None:
        for queue in self._open_queues:
            for ticket in queue:
                if ticket.may_start() and (ticket.can_run() or not can_run):
                    queue.remove(ticket)
                    return ticket
        return None


def _ready(queue: deque[Ticket]) -> int:
    return sum(ticket.may_start() for ticket in queue)
