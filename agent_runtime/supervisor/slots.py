"""Slots and their queue: which executions run now, and which is next."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec


class Ticket(msgspec.Struct, eq=False):
    """
    A place in the queue, and later a slot.

    Attributes:
        may_start: Returns whether a slot can be used now; until then later tickets pass this one.
        can_run: Returns whether there is a token to run with now; needed only for a slot that another ticket yields.
        is_ahead: The execution has run before, so it goes before all new ones, and takes no queue place.
        granted: Done when the slot is granted.
        number: Number of the slot, from 1; 0 before it is granted.
        yields: When the ticket leaves, its slot goes to the first ticket that can run.
    """

    may_start: Callable[[], bool] = lambda: True
    can_run: Callable[[], bool] = lambda: True
    is_ahead: bool = False
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
    _waiting: list[Ticket] = []
    _taken: set[Ticket] = set()

    def __repr__(self) -> str:
        ahead = len(self._waiting) - self.queue_length
        return f"<Slots {self.busy}/{self.total} queue={self.queue_length}/{self.queue_limit} ahead={ahead}>"

    @property
    def busy(self) -> int:
        """How many slots are taken."""
        return len(self._taken)

    @property
    def queue_length(self) -> int:
        """How many new executions wait for a slot."""
        return sum(not ticket.is_ahead for ticket in self._waiting)

    def is_full(self, *, must_wait: bool = False) -> bool:
        """
        Whether there is neither a slot nor a queue place for one more new execution.

        Args:
            must_wait: The new execution could not use a slot now, because another one uses its session.
        """
        startable = Counter(ticket.is_ahead for ticket in self._waiting if ticket.may_start())
        free = max(0, self.total - self.busy - startable[True])
        if startable[False] < free and not must_wait:
            return False
        return self.queue_length - min(startable[False], free) >= self.queue_limit

    @property
    def shortage(self) -> int:
        """How many more slots the tickets that could run now need than are free or yielded; may be negative."""
        could_run = sum(ticket.can_run() for ticket in self._startable())
        return could_run - max(0, self.total - self.busy) - sum(ticket.yields for ticket in self._taken)

    def enqueue(self, ticket: Ticket) -> Ticket:
        """Queue for a slot; return the ticket."""
        self._waiting.append(ticket)
        self._waiting.sort(key=lambda one: not one.is_ahead)
        self.grant()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give back a slot, or the place in the queue; idempotent."""
        self._taken.discard(ticket)
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        if ticket.yields and (runnable := next((one for one in self._startable() if one.can_run()), None)):
            self._give(runnable)
        self.grant()

    def grant(self) -> None:
        """Grant the free slots; also to be called when new executions may begin again."""
        while self.busy < self.total and (ticket := next(self._startable(), None)):
            self._give(ticket)

    def _give(self, ticket: Ticket) -> None:
        self._waiting.remove(ticket)
        ticket.number = min(set(range(1, self.total + 1)) - {taken.number for taken in self._taken})
        self._taken.add(ticket)
        ticket.granted.set_result(None)

    def _startable(self) -> Iterator[Ticket]:
        """Yield the waiting tickets that could use a slot now, the first one first."""
        new_must_wait = self.new_must_wait()
        return (one for one in self._waiting if (one.is_ahead or not new_must_wait) and one.may_start())
