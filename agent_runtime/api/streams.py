"""
Server-sent events, from any position on: of one execution, before, during and after its run, and of the event log.

A slow reader delays nobody: it takes lines and events when it is ready, and a ``gap`` names those it missed.
"""

from __future__ import annotations

import asyncio
import functools
from asyncio import FIRST_COMPLETED
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from agent_runtime.api.schema.bodies import EventsEnd, StreamEnd, StreamGap, StreamState
from agent_runtime.errors import Busy, InvalidRequest
from agent_runtime.model.records import to_json
from agent_runtime.model.state import Phase
from agent_runtime.store.transcripts import LongLine, TranscriptReader
from agent_runtime.supervisor.answers import View
from agent_runtime.telemetry.events import EventLog
from agent_runtime.telemetry.live_text import LiveReader, LiveTexts
from agent_runtime.web.access import AccessKey
from agent_runtime.web.response_buffer import ResponseBuffer

KEEP_ALIVE_SECONDS = 15.0
BATCH_LINES = 512
BATCH_BYTES = 128 * 1024
SLICE_BYTES = 2 * BATCH_BYTES
"""A batch with the heads of its events is shorter, so it is sent at once: 50 readers get it in 3/4 of the time."""

MEDIA_TYPE = "text/event-stream"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""``x-accel-buffering`` keeps nginx from buffering. Source: https://nginx.org/en/docs/http/ngx_http_proxy_module.html"""


STREAM_LIMIT = 256
STREAMS_PER_CALLER = 128
"""The limit for one client address, so that one caller leaves room for others."""

KEY_CHECK_SECONDS = 1.0
"""How soon a stream ends after its access key became invalid."""


class Batches:
    """
    Cache the latest batches of events, so that many readers of one execution cost one reading of its transcript.

    A transcript only grows, so readers at the same position get the same bytes; lines that were added meanwhile come in
    the next batch. All batches end at fixed line numbers, so that readers at different positions soon share batches.
    """

    BYTES_HELD = 4 << 20

    def __init__(self) -> None:
        self._batches: OrderedDict[tuple[TranscriptReader, int], tuple[int, bytes]] = OrderedDict()
        self._size = 0

    def after(self, transcript: TranscriptReader, position: int) -> tuple[int, bytes | LongLine] | None:
        """
        Return the events of the lines after *position*, and the number of the last one; None: there are none yet.

        A line longer than a batch is returned alone and unread: each reader reads it in parts.
        """
        key = (transcript, position)
        if (found := self._batches.get(key)) is not None:
            return found
        if (line := transcript.long_line(position, BATCH_BYTES)) is not None:
            return line.number, line
        limit_lines = BATCH_LINES - position % BATCH_LINES
        lines = transcript.read(position, limit_lines=limit_lines, limit_bytes=BATCH_BYTES)
        if not lines:
            return None
        batch = self._batches[key] = (lines[-1][0], _messages(position, lines))
        self._size += len(batch[1])
        while self._size > self.BYTES_HELD and len(self._batches) > 1:
            _, (_, oldest) = self._batches.popitem(last=False)
            self._size -= len(oldest)
        return batch

    def clear(self) -> None:
        """Drop all batches."""
        self._batches.clear()
        self._size = 0


class OpenStreams:
    """
    Count the open streams, and refuse new ones beyond a limit.

    A stream holds a connection for as long as its reader likes, so without a limit readers could use up the descriptors
    that executions need.
    """

    def __init__(self, buffer: ResponseBuffer, limit: int = STREAM_LIMIT) -> None:
        self.buffer = buffer
        self.limit = limit
        self.count = 0
        self.by_caller: Counter[str] = Counter()
        self.batches = Batches()

    def response(self, request: Request, follow: Callable[[], AsyncIterator[bytes]], access: AccessKey) -> Response:
        """
        Answer with the events of *follow*; the stream counts as open until they end or the reader leaves.

        The stream also ends soon after the access key of *request* became invalid.

        Raises:
            Busy: Too many streams are open, in all or to this caller's address.
        """
        if request.method == "HEAD":
            return Response(headers=HEADERS, media_type=MEDIA_TYPE)
        caller = request.client.host if request.client else ""
        of_caller = self.by_caller[caller], STREAMS_PER_CALLER, " of this address"
        for count, limit, whose in ((self.count, self.limit, ""), of_caller):
            if count >= limit:
                raise Busy(f"{limit} streams{whose} are open already; close one, or come back later")
        return _Counted(self, caller, follow(), functools.partial(access.allows, request) if access.required else None)


class _Counted(StreamingResponse):
    """
    A response whose stream counts as open from its creation until it was sent.

    The generator of the events could not count: a reader may leave before the first event is asked for, and then no
    ``finally`` of the generator runs.
    """

    def __init__(
        self, streams: OpenStreams, caller: str, events: AsyncIterator[bytes], allowed: Callable[[], bool] | None
    ) -> None:
        super().__init__(headers=HEADERS, media_type=MEDIA_TYPE, content=events)
        self._streams = streams
        self._caller = caller
        self._events = events
        self._allowed = allowed
        streams.count += 1
        streams.by_caller[caller] += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        sending = asyncio.ensure_future(super().__call__(scope, receive, send))
        try:
            while not (await asyncio.wait({sending}, timeout=KEY_CHECK_SECONDS if self._allowed else None))[0]:
                if self._allowed is not None and not self._allowed():
                    sending.cancel()
            await sending
        except asyncio.CancelledError:
            if not sending.cancelled():
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            sending.cancel()
            self._streams.count -= 1
            self._streams.by_caller -= Counter((self._caller,))  # without callers that have none left
            if not self._streams.count:
                self._streams.batches.clear()

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for events in self._events:
            async with self._streams.buffer.charge(len(events), self._scope) as charge:
                await charge.send(events, send, more_body=True, slice_bytes=SLICE_BYTES)
            if charge.is_closing:
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(name: str, data: msgspec.Struct, number: int | None = None) -> bytes:
    """Return a server-sent event with a name, its data as one line of JSON, and an optional id."""
    head = b"event: " + name.encode() + b"\n"
    if number is not None:
        head += b"id: %d\n" % number
    return head + b"data: " + to_json(data) + b"\n\n"


def gap(first: int, last: int, reason: Literal["not kept", "not written yet"], number: int | None = None) -> bytes:
    """Return the event that names missing lines or events; *number* is its id."""
    return event("gap", StreamGap(first=first, last=last, reason=reason), number)


def position_of(request: Request) -> int:
    """
    Return the number of the last event that the reader has, 0 for none: ``Last-Event-ID``, else the query parameter.

    Raises:
        InvalidRequest: Header or parameter is not a line number; both are checked, although the header wins.
    """
    given = [request.headers.get("last-event-id"), request.query_params.get("last_event_id")]
    for value in filter(None, given):
        if not (value.isascii() and value.isdigit() and len(value) <= 18):
            raise InvalidRequest("Last-Event-ID: must be a line number, as in the id of an event")
    return int(given[0] or given[1] or 0)


def wants_partial(request: Request) -> bool:
    """
    Return whether the stream is to include the model's text while the model writes it.

    Raises:
        InvalidRequest: The parameter is neither ``true`` nor ``false``.
    """
    given = request.query_params.getlist("partial")
    if given in ([], ["false"], ["true"]):
        return given == ["true"]
    raise InvalidRequest("partial: must be true or false, once")


def _messages(position: int, lines: list[tuple[int, bytes]]) -> bytes:
    """Return the lines after *position* as events, with a ``gap`` in place of lines that could not be stored."""
    events = []
    for number, data in lines:
        if number != position + 1:
            events.append(gap(position + 1, number - 1, "not kept", number - 1))
        # The same bytes as of event(), in a third of the time.
        events.append(b"event: message\nid: %d\ndata: %b\n\n" % (number, data))
        position = number
    # An event stream takes a carriage return for the end of a line; only lines of the transcript can hold one.
    return b"".join(events).replace(b"\r", b"")


async def follow(view: View, after: int, batches: Batches, *, partial: bool = False) -> AsyncIterator[bytes]:
    """
    Yield the lines after number *after*, state changes, and ``end``; with *partial* also text while it is written.

    Text that the reader does not take in time is dropped.
    """
    texts = view.live_texts if partial and view.live_texts is not None else LiveTexts()
    with texts.reader() as reader:
        async for events in _follow(view, after, batches, reader):
            yield events


async def _follow(view: View, after: int, batches: Batches, reader: LiveReader) -> AsyncIterator[bytes]:
    record, transcript = view.record, view.transcript
    position = after
    if position > transcript.last_line:
        last = transcript.last_line
        yield gap(last + 1, position, "not written yet")
        position = last
    sent: StreamState | None = None
    while True:
        # Taken before the state is read, so that a change during the reading is not missed.
        change, more_text = view.changed.next_change(), reader.changed.next_change()
        ended = record.state is Phase.FINISHED
        held = record.held or msgspec.UNSET
        state = StreamState(state=record.state, outcome=record.outcome, error_class=record.error_class, held=held)
        if state != sent:
            sent = state
            yield event("state", state)
        while batch := batches.after(transcript, position):
            before, (position, events) = position, batch
            for piece in reader.take(position - 1):
                yield event("partial", piece)
            if isinstance(events, bytes):
                yield events
                # Let every other reader get this batch first: a read that does not block would starve them.
                await asyncio.sleep(0)
                continue
            if position > before + 1:
                yield gap(before + 1, position - 1, "not kept", position - 1)
            yield b"event: message\nid: %d\ndata: " % position
            for at in range(events.start, events.end, BATCH_BYTES):
                size = min(BATCH_BYTES, events.end - at)
                if len(part := transcript.bytes_at(at, size)) < size:
                    return  # the transcript was deleted: the reader drops the incomplete event, and connects again
                yield part.replace(b"\r", b"")
                await asyncio.sleep(0)
            yield b"\n\n"
        for piece in reader.take(position):
            yield event("partial", piece)
        if ended:
            if position < (last := transcript.last_line):
                yield gap(position + 1, last, "not kept", last)
            break
        done, _ = await asyncio.wait({change, more_text}, timeout=KEEP_ALIVE_SECONDS, return_when=FIRST_COMPLETED)
        if not done:
            yield b": keep-alive\n\n"
    yield event("end", StreamEnd(outcome=record.outcome, error_class=record.error_class))


async def follow_log(
    log: EventLog, after: int, *, keep_alive_seconds: float = KEEP_ALIVE_SECONDS
) -> AsyncIterator[bytes]:
    """Yield the events after number *after* that the log holds, new ones as they come, and at its close ``end``."""
    position = after
    yield b": events\n\n"  # so that the headers leave at once, also where nothing has happened yet
    while True:
        closed = log.closed
        events, has_gap = log.after(position)
        if has_gap:
            known = events[0].id - 1 if events else log.last_id
            is_ahead = position > log.last_id
            first, last = (log.last_id + 1, position) if is_ahead else (position + 1, known)
            yield gap(first, last, "not written yet" if is_ahead else "not kept", known)
            position = known
        if events:
            yield b"".join(event(one.type, one, one.id) for one in events)
            position = events[-1].id
        elif closed:
            break
        else:
            position = log.last_id  # 0 with no event after it: log.wait(0) would return at once
            try:
                await asyncio.wait_for(log.wait(position), keep_alive_seconds)
            except TimeoutError:
                yield b": keep-alive\n\n"
    yield event("end", EventsEnd())
