"""
Limits for the connections of callers: how many may be open, and how long a request may take to arrive.

Requests that are not HTTP get a problem document. uvicorn has no limit on how long a header or a body may take, nor on
a connection that never sends anything. It answers malformed requests in plain text, and too many connections with 503,
which tells a backend to switch the token (uvicorn 0.54, ``protocols/http/h11_impl.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from agent_runtime.errors import AgentRuntimeError, Busy, InvalidRequest, TooLarge
from agent_runtime.settings import PLACES_BEYOND
from agent_runtime.web.problems import problem_response
from agent_runtime.web.response_buffer import TRANSPORT
from agent_runtime.web.uvicorn_package import H11Protocol

ACCEPTED_AT_ONCE = 16
"""
How many connections are accepted in one turn of the event loop.

A header is read within four turns. In these at most :data:`PLACES_BEYOND` further connections come, so that each
connection gets an answer before it loses its place.
"""

HEADER_LIMIT_BYTES = 16 * 1024
BODY_BYTES_PER_SECOND = 16 * 1024
LINGER_SECONDS = 5.0
PATIENCE_SECONDS = 2.0
"""After this time a connection without a whole header loses its place, if another one needs it."""


class OpenConnections:
    """
    Count the connections, and decide which one is closed when all places are taken.

    A new connection gets the place of the connection that has been idle longest, or of one that has not sent a whole
    header for some seconds. If all connections are busy, it is accepted beyond the limit for one answer: that of a
    probe, or 409.

    Args:
        request_seconds: How long a header may take to arrive; a body may take as long and, the longer it is, the more.
        open_paths: Paths that need no access key, which are also answered beyond the limit.
        detail_is_object: As in :func:`~agent_runtime.web.problems.problem_response`.
    """

    def __init__(
        self, limit: int, *, request_seconds: float, open_paths: frozenset[str], detail_is_object: bool = False
    ) -> None:
        self.limit = limit
        self.detail_is_object = detail_is_object
        self.request_seconds = request_seconds
        self.open_paths = open_paths
        self._open: dict[Connection, None] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection, now: float) -> bool:
        """Count a new connection; return whether it has a place within the limit."""
        beyond = [one for one in self._open if not one.has_place]
        has_place = len(self._open) - len(beyond) < self.limit or self._make_room(now)
        if not has_place and len(beyond) >= PLACES_BEYOND:
            self._drop(beyond[0])
        self._open[connection] = None
        return has_place

    def remove(self, connection: Connection) -> None:
        """Release the place of a connection."""
        self._open.pop(connection, None)

    def _make_room(self, now: float) -> bool:
        idle = self._longest(Waiting.REQUEST)
        leaving = next((one for one in idle if one.transport.get_write_buffer_size() == 0), None)
        if leaving is None:
            leaving = next((one for one in self._longest(Waiting.HEADER) if now - one.since >= PATIENCE_SECONDS), None)
        if leaving is not None:
            self._drop(leaving)  # its buffer is empty: no part of an answer is lost
        return leaving is not None

    def _longest(self, waiting: Waiting) -> list[Connection]:
        """Return the connections within the limit that wait for this, those that have waited longest first."""
        found = [one for one in self._open if one.has_place and one.waiting is waiting]
        return sorted(found, key=lambda one: one.since)

    def _drop(self, connection: Connection) -> None:
        self.remove(connection)
        connection.transport.abort()


class Waiting(Enum):
    """The part of a request that a connection waits for."""

    REQUEST = auto()
    HEADER = auto()
    BODY = auto()
    REST = auto()
    """Data that the caller still sends after the answer: closing earlier could keep it from reading the answer."""


class Connection(H11Protocol):
    """
    A connection: uvicorn's, with a place among all connections, time limits, and refusals as problem documents.

    Attributes:
        has_place: Whether it is within the limit.
        waiting: The part of a request that it waits for; None: it is being answered, or is closed.
        since: The time of the event loop since when it waits for that.
    """

    def __init__(self, *args: Any, places: OpenConnections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places = places
        self._supervisor_app = self.app
        self.app = self._answer
        self.has_place = True
        self._refused = False
        self.waiting: Waiting | None = None
        self.since = 0.0
        self._body_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Count the new connection among the open ones."""
        super().connection_made(transport)
        self.has_place = self._places.add(self, self.loop.time())
        self._update()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the place."""
        self._places.remove(self)
        self._wait_for(None)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Parse the data that arrived; after a refusal drop it."""
        if self._refused:
            return
        self._body_bytes = len(data) + (self._body_bytes if self.waiting is Waiting.BODY else 0)
        super().data_received(data)
        self._update()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one."""
        super().on_response_complete()
        self._update()

    def shutdown(self) -> None:
        """Close the connection when the server ends, also while a refused caller still sends."""
        if self._refused:
            self.transport.abort()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - our text is another one
        """Refuse a request that h11 could not parse; uvicorn calls this while it handles h11's error."""
        if getattr(sys.exc_info()[1], "error_status_hint", 400) == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            self.refuse(TooLarge(f"the header is longer than {HEADER_LIMIT_BYTES} bytes"))
        else:
            self.refuse(InvalidRequest("this is no HTTP request that can be read"))

    def refuse(self, error: AgentRuntimeError) -> None:
        """Answer with *error* and close the connection; if an answer has begun already, only close it."""
        self._refused = True
        has_begun = False
        if self.cycle is not None and not self.cycle.response_complete:
            has_begun = self.cycle.response_started
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.flow.resume_writing()
        if has_begun or self.transport.is_closing():
            self.transport.abort()
            return
        closes = {"connection": "close"}
        response = problem_response(error, headers=closes, detail_is_object=self._places.detail_is_object)
        lines = [f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}".encode()]
        lines += [name + b": " + value for name, value in [*self.server_state.default_headers, *response.raw_headers]]
        body = b"" if self._asked_head() else bytes(response.body)
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        with contextlib.suppress(OSError):  # the caller is gone
            self.transport.write_eof()
        self.flow.resume_reading()
        self._wait_for(Waiting.REST)

    def _asked_head(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and self.scope["method"] == "HEAD"

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it because of its header or because all places are taken."""
        scope[TRANSPORT] = self.transport
        if (fault := _fault_of_header(scope)) is not None:
            self.refuse(fault)
        elif self.has_place:
            await self._supervisor_app(scope, receive, send)
        elif scope["path"] in self._places.open_paths:

            async def send_and_close(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
                await send(message)

            await self._supervisor_app(scope, receive, send_and_close)
        else:
            self.refuse(Busy("all connections are taken; come back later"))

    def _update(self) -> None:
        """Update the phase of the request and its time limit."""
        if not self._refused:
            self._wait_for(None if self.transport.is_closing() else self._awaited())

    def _awaited(self) -> Waiting | None:
        # h11's states are compared by name: h11 is no dependency of this package.
        theirs = self.conn.their_state.__name__
        if theirs == "SEND_BODY":
            return Waiting.REST if self.cycle.response_complete else Waiting.BODY
        if theirs == "IDLE":
            is_between = self.timeout_keep_alive_task is not None and not self.conn.trailing_data[0]
            return Waiting.REQUEST if is_between else Waiting.HEADER
        return None

    def _wait_for(self, waiting: Waiting | None) -> None:
        if waiting is self.waiting:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.waiting, self.since = waiting, self.loop.time()
        if waiting not in (None, Waiting.REQUEST):  # between requests uvicorn's own timer runs
            self._timer = self.loop.call_later(self._allowed_seconds(), self._time_passed)

    def _allowed_seconds(self) -> float:
        if self.waiting is Waiting.REST:
            return LINGER_SECONDS
        if not self.has_place:
            return PATIENCE_SECONDS
        earned = self._body_bytes / BODY_BYTES_PER_SECOND if self.waiting is Waiting.BODY else 0.0
        return self._places.request_seconds + earned

    def _time_passed(self) -> None:
        left = self.since + self._allowed_seconds() - self.loop.time()
        if left > 0:
            self._timer = self.loop.call_later(left, self._time_passed)
        elif self.waiting is Waiting.REST or not (self.waiting is Waiting.BODY or self.conn.trailing_data[0]):
            self.transport.abort()
        else:
            what = "body" if self.waiting is Waiting.BODY else "header"
            self.refuse(InvalidRequest(f"the {what} took too long to arrive"))


def _fault_of_header(scope: Scope) -> AgentRuntimeError | None:
    """Return the error of a header that h11 accepts but that must be refused; None: there is none."""
    head = sum(len(name) + len(value) + 4 for name, value in scope["headers"]) + len(scope["raw_path"])
    if head + len(scope["query_string"]) > HEADER_LIMIT_BYTES:  # h11 checks only headers that come in several pieces
        return TooLarge(f"the header is longer than {HEADER_LIMIT_BYTES} bytes")
    names = {name for name, _ in scope["headers"]}
    if b"transfer-encoding" in names and (b"content-length" in names or scope["http_version"] < "1.1"):
        # A proxy may see the end of the body elsewhere, and the rest as the next request. Source: RFC 9112, 6.1.
        return InvalidRequest("it is not certain where the body ends; send Content-Length, or chunks with HTTP/1.1")
    return None
