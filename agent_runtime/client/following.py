"""
An execution's stream of events, put together again from as many connections as it takes; no I/O here.

Each line of the transcript comes exactly once, in order: a line counts as had when all of its event has arrived, and
the next connection asks for what comes after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from agent_runtime.client.failures import Unreachable
from agent_runtime.client.talk import Ask, as_failure, json_object

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_runtime.client.talk import Patience, Reply

SILENCE_SECONDS = 45.0
"""Three of the comments that a supervisor sends at least every 15 s: then the connection is dead."""

MEDIA_TYPE = "text/event-stream"
_OK = 200


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """
    One event of a stream.

    Attributes:
        name: ``message``, ``state``, ``gap`` or ``end``; others may come.
        id: Of a message: the number of its line in the transcript, from 1.
        data: Of a message: the CLI's frame.
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
        self._part = bytearray()
        self._looked = 0
        self._name = ""
        self._id: str | None = None
        self._data: list[bytes] = []
        self._after_return = False

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str | None, bytes]]:
        """Yield name, id and data of each event that *chunk* completes."""
        if self._after_return:  # its newline, if there is one, was counted with the chunk before
            chunk = chunk.removeprefix(b"\n")
        self._after_return = chunk.endswith(b"\r")
        self._part += chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in chunk else chunk
        begin = 0
        while (end := self._part.find(b"\n", max(begin, self._looked))) >= 0:
            line = bytes(self._part[begin:end])
            begin = end + 1
            if line:
                self._take(line)
                continue
            if self._data:
                yield self._name or "message", self._id, b"\n".join(self._data)
            self._name, self._id, self._data = "", None, []
        del self._part[:begin]
        self._looked = len(self._part)

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value.decode(errors="replace")
        elif name == b"id":
            self._id = value.decode(errors="replace")


class Following:
    """
    The reader's place in a stream, over all its connections.

    Args:
        after: Number of the last line that is known already; 0: none.
    """

    def __init__(self, execution_id: str, after: int, patience: Patience) -> None:
        self.position = after
        self.ended = False
        self._path = f"/api/executions/{quote(execution_id, safe='')}/stream"
        self._execution_id = execution_id
        self._patience = patience
        self._reader = EventReader()
        self._state: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<Following after line {self.position}{' ended' if self.ended else ''}>"

    def connect(self) -> Ask:
        """Write the request for what is still missing; what came of a half event before is forgotten."""
        self._reader = EventReader()
        headers = {"accept": MEDIA_TYPE, "cache-control": "no-store"}
        if self.position:
            headers["last-event-id"] = str(self.position)
        return Ask("GET", self._path, None, headers, reply_seconds=SILENCE_SECONDS)

    def accepts(self, status_code: int, content_type: str) -> bool:
        """Whether an answer with this head is the stream; else :meth:`refused` is to be told of it."""
        return status_code == _OK and content_type.partition(";")[0].strip().lower() == MEDIA_TYPE

    def refused(self, reply: Reply) -> None:
        """
        Take an answer that is no stream.

        Raises:
            ClientError: It will not become one.
        """
        error = as_failure(reply, self._path)
        if reply.status_code != _OK and error is not None:
            raise error

    def received(self, chunk: bytes) -> Iterator[StreamEvent]:
        """Yield the events that *chunk* completes, each only once over all connections."""
        if chunk.startswith(b":"):  # a sign of life that comes only after a while
            self._patience.progressed()
        for name, number, data in self._reader.feed(chunk):
            if self.ended:
                return
            content = json_object(data)
            if content is None:
                continue
            event = StreamEvent(name, content, _line_number(number))
            if self._is_news(event):
                self._patience.progressed()
                yield event

    def _is_news(self, event: StreamEvent) -> bool:
        if event.name == "gap":
            # Told apart from silence; what follows is numbered from where the gap ends, or begins when it lies ahead.
            first = event.data.get("first")
            if event.id is not None:
                self.position = event.id
            elif isinstance(first, int) and first > 0:
                self.position = first - 1
            return True
        if event.name == "state":
            is_news, self._state = event.data != self._state, event.data
            return is_news
        if event.name == "end":
            self.ended = True
            return True
        if event.id is None:
            return True
        if event.id <= self.position:
            return False
        self.position = event.id
        return True

    def pause_seconds(self, reason: str) -> float:
        """
        Tell how long to pause before the next connection.

        Raises:
            Unreachable: It has taken too long already.
        """
        seconds = self._patience.pause_seconds()
        if seconds is None:
            raise Unreachable(reason, self._execution_id)
        return seconds


def _line_number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 18 else None
