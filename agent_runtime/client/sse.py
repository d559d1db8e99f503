"""
Read a stream of server-sent events over any number of connections; no I/O here.

Each line of an execution's transcript comes exactly once, in order: a line counts as received when its whole event has
arrived, and the next connection asks for the lines after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from agent_runtime.client.answers import Event, read
from agent_runtime.client.exchange import json_object

SILENCE_SECONDS = 45.0
"""After this time without data a connection counts as dead: a supervisor sends a comment at least every 15 s."""

MEDIA_TYPE = "text/event-stream"


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """
    One event of a stream.

    Attributes:
        name: ``message``, ``state``, ``gap``, ``end`` or ``partial``; others may come.
        id: The event's number; of a ``message`` the number of its line in the transcript, from 1.
        data: The event's JSON object; of a ``message`` the CLI's frame.
    """

    name: str
    data: dict[str, Any] = field(repr=False)
    id: int | None = None


class EventReader:
    """
    Read server-sent events from chunks that may be cut anywhere.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
    """

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._fields: dict[bytes, bytes] = {}
        self._after_return = False

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str | None, bytes]]:
        """Yield name, id and data of each event that *chunk* completes."""
        if self._after_return:  # a newline here belongs to the return that ended the chunk before
            chunk = chunk.removeprefix(b"\n")
        self._after_return = chunk.endswith(b"\r")
        for part in chunk.splitlines(keepends=True):
            self._line.append(part)
            if not part.endswith((b"\n", b"\r")):
                continue
            line = b"".join(self._line).rstrip(b"\r\n")
            self._line.clear()
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data" and name in self._fields:
                self._fields[name] += b"\n" + value
            elif line:
                self._fields[name] = value
            else:
                fields, self._fields = self._fields, {}
                if b"data" in fields:
                    number = fields[b"id"].decode(errors="replace") if b"id" in fields else None
                    yield fields.get(b"event", b"message").decode(errors="replace"), number, fields[b"data"]


class StreamPosition:
    """
    A reader's position in a stream, over all its connections, and the events after it.

    Args:
        after: Number of the last line that the reader has; 0: none.
    """

    def __init__(self, after: int) -> None:
        self.position = after
        self._reader = EventReader()
        self._state: dict[str, Any] | None = None

    def reconnect(self) -> dict[str, str]:
        """Drop an incomplete event, and return the headers of a new connection, which ask for the missing events."""
        self._reader = EventReader()
        headers = {"accept": MEDIA_TYPE, "cache-control": "no-store"}
        return headers | ({"last-event-id": str(self.position)} if self.position else {})

    def feed(self, chunk: bytes) -> Iterator[StreamEvent]:
        """Yield the events that *chunk* completes, each only once over all connections."""
        for name, number, data in self._reader.feed(chunk):
            content = json_object(data)
            if content is None:
                continue
            event = StreamEvent(name, content, _line_number(number))
            if self._is_new(event):
                yield event

    def _is_new(self, event: StreamEvent) -> bool:
        if event.name == "gap":
            # The position is now the end of the gap, or the line before it if those lines are not written yet.
            first = event.data.get("first")
            if event.id is not None:
                self.position = event.id
            elif isinstance(first, int) and first > 0:
                self.position = first - 1
        elif event.name == "state":
            is_new, self._state = event.data != self._state, event.data
            return is_new
        elif event.name != "end" and event.id is not None:
            if event.id <= self.position:
                return False
            self.position = event.id
        return True


def is_event_stream(response: httpx.Response) -> bool:
    """Whether a response is an event stream: 200 with its media type."""
    media_type: str = response.headers.get("content-type", "").partition(";")[0]
    return response.status_code == 200 and media_type.strip().lower() == MEDIA_TYPE


def event_of(event: StreamEvent) -> Event | None:
    """Return the :class:`Event` in an event of ``/api/events``; None: the end of the stream, or it cannot be read."""
    if event.name == "gap":
        return Event(id=event.id or 0, type="gap", data=event.data)
    return None if event.name == "end" else read(Event, event.data)


def _line_number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 18 else None
