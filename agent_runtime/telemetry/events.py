"""
Events of the token and of executions, for a backend to act on: a bounded log with any number of readers.

Ids rise, also over restarts: the first is the time of the start in milliseconds. So an id from before a restart is
lower than all ids in this log, and its reader is told that events in between are gone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Annotated, TypeAlias

import msgspec

from agent_runtime.model.records import Instant, instant, to_json
from agent_runtime.notifier import Notifier

EVENTS_HELD = 1000


class EventType(msgspec.Struct, frozen=True):
    """
    One kind of event.

    Attributes:
        is_posted: A backend has to act on the event, so the webhook posts it.
        counter: The counter of these events, by its name in :data:`~agent_runtime.telemetry.counters.COUNTERS`.
    """

    is_posted: bool = False
    counter: str | None = None


TYPES = {
    "token.loaded": EventType(is_posted=True, counter="token_loads"),
    "token.refused": EventType(is_posted=True, counter="token_refusals"),
    "token.blocked": EventType(is_posted=True, counter="token_blocks"),
    "token.billing": EventType(is_posted=True, counter="token_billings"),
    "token.limited": EventType(is_posted=True, counter="token_limits"),
    "token.invalid": EventType(),
    "token.expires_soon": EventType(),
    "execution.admitted": EventType(counter="executions_admitted"),
    "execution.started": EventType(),
    "execution.parked": EventType(is_posted=True, counter="executions_parked"),
    "execution.held": EventType(counter="executions_held"),
    "execution.released": EventType(),
    "execution.resumed": EventType(is_posted=True, counter="executions_resumed"),
    "execution.finished": EventType(is_posted=True),
    "storage.damaged": EventType(is_posted=True),
}
POSTED = frozenset(name for name, kind in TYPES.items() if kind.is_posted)

Value: TypeAlias = str | int | float | bool | dict[str, str] | None
"""The values that an event may hold (an object: labels): never a token, only its fingerprint."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """
    One thing that happened.

    Attributes:
        data: The facts, by name.
    """

    id: int
    type: Annotated[str, msgspec.Meta(extra_json_schema={"enum": sorted(TYPES)})]
    time: Instant
    data: dict[str, Value]

    @property
    def json(self) -> bytes:
        """The event as it is sent, the same wherever it goes; one line."""
        return to_json(self)


class EventLog:
    """
    Hold the latest events, and wake readers that wait for the next ones.

    Publishing never waits: a reader that falls behind further than the log reaches back gets a gap. All
    methods run on the event loop's thread.

    Args:
        size: How many events are held; the oldest go first.
        redact: Applied to every text before it is stored, as the last line of defence.
        on_event: Called with type and data of every event, to count it.
    """

    def __init__(
        self,
        *,
        size: int = EVENTS_HELD,
        redact: Callable[[str], str] = str,
        on_event: Callable[[str, dict[str, Value]], None] = lambda _type, _data: None,
    ) -> None:
        self._events: deque[Event] = deque(maxlen=size)
        self._redact = redact
        self._on_event = on_event
        self._changed = Notifier()
        self._last_id = time.time_ns() // 1_000_000
        self._closed = False

    @property
    def last_id(self) -> int:
        """The id of the latest event; before the first event, a position that all events will follow."""
        return self._last_id

    @property
    def closed(self) -> bool:
        """Whether the log is closed, so that its readers should end."""
        return self._closed

    def publish(self, type: str, **data: Value) -> None:  # noqa: A002 - the contract's word
        """
        Add an event to the log, and wake its readers.

        Raises:
            ValueError: There is no such type of event.
            TypeError: A value has a type that an event may not hold; a token must be given as its fingerprint.
        """
        if type not in TYPES:
            raise ValueError(f"no event has the type {type!r}")
        safe: dict[str, Value] = {name: self._safe(name, value) for name, value in data.items()}
        self._last_id += 1
        self._events.append(Event(id=self._last_id, type=type, time=instant(time.time()), data=safe))
        self._on_event(type, safe)
        self._changed.notify()

    def after(self, position: int) -> tuple[list[Event], bool]:
        """
        Return the events after *position*, and whether events are missing between *position* and the first of them.

        Args:
            position: The id of the last event that the reader knows; 0: it knows none, and no event counts as missing.
                An id higher than the latest is from before a restart at which the clock was set back: then all events
                are returned, and some count as missing.
        """
        if position > self._last_id:
            return list(self._events), True
        oldest = self._events[0].id if self._events else self._last_id + 1
        return [event for event in self._events if event.id > position], 0 < position < oldest - 1

    async def wait(self, position: int) -> None:
        """Wait until there is an event after *position* or the log is closed; return at once if that is so."""
        while self._last_id <= position and not self._closed:
            await self._changed.wait()

    def close(self) -> None:
        """Close the log, so that its readers come to an end; later events are dropped."""
        self._closed = True
        self._changed.notify()

    def _safe(self, name: str, value: Value) -> Value:
        if isinstance(value, str):
            return self._redact(str(value))  # an enum member becomes its value
        if isinstance(value, dict):
            return {key: str(self._safe(name, text)) for key, text in value.items()}
        if value is None or isinstance(value, bool | int | float):
            return value
        raise TypeError(f"{name}: an event cannot tell this kind of value")
