"""Server-sent events of the event log, from any position that the log still holds to the end of the supervisor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from agent_runtime.api import streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

    from agent_runtime.telemetry.events import EventLog
    from agent_runtime.web.access import AccessKey


def event_stream(log: EventLog, request: Request, open_streams: streams.OpenStreams, access: AccessKey) -> Response:
    """
    Answer ``GET /api/events``: the events that the log holds after the reader's position, then new ones as they come.

    Raises:
        InvalidRequest: The position is not a number.
        Busy: Too many streams are open.
    """
    after = streams.position_of(request)
    return open_streams.response(request, lambda: follow(log, after), access)


async def follow(
    log: EventLog, after: int, *, keep_alive_seconds: float = streams.KEEP_ALIVE_SECONDS
) -> AsyncIterator[bytes]:
    """
    Yield the events after number *after*, and ``end`` when the log is closed.

    A slow reader delays nobody: it takes events from the log when it is ready, and a ``gap`` names those it missed.
    """
    position = after
    yield b": events\n\n"  # so that the headers leave at once, also where nothing has happened yet
    while True:
        closed = log.closed
        events, gap = log.after(position)
        if gap:
            known = events[0].id - 1 if events else log.last_id
            if position > log.last_id:
                missing = {"first": log.last_id + 1, "last": position, "reason": "not written yet"}
            else:
                missing = {"first": position + 1, "last": known, "reason": "not kept"}
            yield streams.event("gap", msgspec.json.encode(missing), known)
            position = known
        if events:
            yield b"".join(streams.event(event.type, event.json, event.id) for event in events)
            position = events[-1].id
        elif closed:
            break
        else:
            position = log.last_id  # 0 with no event after it: log.wait(0) would return at once
            try:
                await asyncio.wait_for(log.wait(position), keep_alive_seconds)
            except TimeoutError:
                yield b": keep-alive\n\n"
    yield streams.event("end", msgspec.json.encode({"type": "stream_end"}))
