"""Properties of positions: from any ``Last-Event-ID`` on nothing is lost, nothing comes twice, and a gap is told."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from agent_runtime.api.streams import Batches, follow, follow_log, position_of
from agent_runtime.errors import InvalidRequest
from agent_runtime.model.records import ExecutionRecord
from agent_runtime.model.state import Phase
from agent_runtime.notifier import Notifier
from agent_runtime.store.transcripts import TranscriptStore
from agent_runtime.supervisor.answers import View
from agent_runtime.telemetry.events import EventLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


async def _collected(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in stream])


def read_to_the_end(stream: AsyncIterator[bytes]) -> list[dict[str, str]]:
    """Return the events of a stream, as the standard says: each ends with an empty line, and comments are none."""
    blocks = asyncio.run(_collected(stream)).decode().removesuffix("\n\n").split("\n\n")
    events = [dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":")) for block in blocks]
    return [event for event in events if event]


def accounted_for(events: list[dict[str, str]], *others: str) -> list[int]:
    """Return every number that comes or is told as missing, in this order; *others* are events without one."""
    numbers: list[int] = []
    for event in events:
        if event["event"] == "gap":
            gap = json.loads(event["data"])
            assert gap["first"] <= gap["last"]
            numbers += range(gap["first"], gap["last"] + 1)
        elif event["event"] not in others:
            numbers.append(int(event["id"]))
    return numbers


LINES = st.lists(st.sampled_from([b"{}", b'{"a":"\\r"}', b"{\r}", None, b'"' + b"x" * 200 + b'"']), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES, st.integers(1, 60), st.integers(0, 1300))
@example([b"{}", None, b"{}"], 200, 512)
@example([None, b"{}", None], 1, 0)
def test_from_any_position_each_line_comes_once_or_is_told_as_missing(
    tmp_path: Path, lines: list[bytes | None], times: int, position: int
) -> None:
    lines *= times
    store = TranscriptStore(tmp_path / f"{secrets.token_hex(8)}")
    writer = store.writer("x")
    for line in lines:
        writer.append(line + b"\n" if line is not None else b"", [len(line) + 1 if line is not None else 0])
    writer.close()
    record = ExecutionRecord(execution_id="x", created_at=1.0, state=Phase.FINISHED)

    async def events() -> AsyncIterator[bytes]:
        async for piece in follow(View(record, store.reader("x"), Notifier()), position, Batches()):
            yield piece

    told = read_to_the_end(events())

    came = {int(event["id"]): event["data"].encode() for event in told if event["event"] == "message"}
    assert came == {
        number: line.replace(b"\r", b"")
        for number, line in enumerate(lines, 1)
        if line is not None and number > position
    }
    ends = (len(lines), position) if position > len(lines) else (position, len(lines))
    assert accounted_for(told, "state", "end") == list(range(ends[0] + 1, ends[1] + 1))
    assert [event["event"] for event in told if event["event"] in ("state", "end")] == ["state", "end"]


@example(5, 3, 2)
@given(st.integers(0, 30), st.integers(1, 12), st.integers(-40, 40))
@example(5, 3, 1)
@example(0, 3, -1)
def test_of_the_event_log_each_event_comes_once_or_is_told_as_missing(count: int, held: int, offset: int) -> None:
    log = EventLog(size=held)
    begins = log.last_id
    for number in range(count):
        log.publish("execution.started", number=number)
    log.close()
    position = begins + offset

    told = read_to_the_end(follow_log(log, position))

    came = [int(event["id"]) for event in told if event["event"] == "execution.started"]
    kept = range(max(begins, log.last_id - held) + 1, log.last_id + 1)
    if position > log.last_id:  # of another log: nothing of this one is known to the reader
        assert came == list(kept)
        assert [event["event"] for event in told].count("gap") == 1
    else:
        assert came == [number for number in kept if number > position]
        assert accounted_for(told, "end") == list(range(position + 1, log.last_id + 1))
    assert told[-1]["event"] == "end"


@given(
    st.one_of(st.text(max_size=24), st.integers().map(str), st.floats().map(str), st.text("0123456789", max_size=24))
)
@example("٣")
@example("1" * 19)
@example(" ")
def test_any_last_event_id_is_a_position_or_refused(text: str) -> None:
    scope = {"type": "http", "headers": [], "query_string": urlencode({"last_event_id": text}).encode()}
    try:
        position = position_of(Request(scope))
    except InvalidRequest:
        assert not re.fullmatch("[0-9]{1,18}", text)
        assert text
        return
    assert not text or re.fullmatch("[0-9]{1,18}", text)
    assert position == int(text or "0")
    assert 0 <= position < 10**18
