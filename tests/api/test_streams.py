"""Many readers, slow readers, readers that leave; and what a full disk does to those who wait for an answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from starlette.requests import Request

from agent_runtime.api import streams
from agent_runtime.api.streams import BATCH_BYTES, BATCH_LINES, STREAMS_PER_CALLER, Batches, follow
from agent_runtime.errors import Busy
from agent_runtime.model.records import ExecutionRecord
from agent_runtime.model.state import Phase
from agent_runtime.notifier import Notifier
from agent_runtime.store.transcripts import TranscriptReader, TranscriptStore
from agent_runtime.supervisor.answers import View
from agent_runtime.telemetry.redaction import Redactor
from agent_runtime.web.access import AccessKey
from agent_runtime.web.response_buffer import ResponseBuffer
from tests.support.supervised import eventually, supervised
from tests.support.transcript_lines import append
from tests.system.test_executions import OK, events, holding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.responses import Response


@pytest.mark.slow
def test_fifty_streams_get_a_last_event_when_the_supervisor_is_told_to_end(tmp_path: Path) -> None:
    flags = ("--drain-timeout", "2", "--stop-grace", "0.3")
    with supervised(tmp_path, flags=flags) as running, contextlib.ExitStack() as open_streams:
        running.post(holding(tmp_path / "never"), execution_id="watched", async_result=True)
        eventually(lambda: running.record("watched")["state"] == "running")
        limits = httpx.Limits(max_connections=None)
        client = open_streams.enter_context(
            httpx.Client(base_url=running.url, timeout=60, trust_env=False, limits=limits)
        )
        readers = []
        for number in range(50):
            path = "/api/events" if number % 2 else "/api/executions/watched/stream"
            readers.append(events(open_streams.enter_context(client.stream("GET", path))))
        for reader in readers:
            next(reader)

        running.process.send_signal(signal.SIGTERM)
        eventually(lambda: running.client.get("/readyz").status_code == 503)

        assert {list(reader)[-1]["event"] for reader in readers} == {"end"}
        assert running.process.wait(30) == 0


def test_readers_that_take_nothing_cost_the_execution_nothing_and_the_supervisor_little(tmp_path: Path) -> None:
    script = {"script": [{"do": "init"}, {"do": "flood", "bytes": 20_000_000}, {"do": "result", "text": "Done."}]}
    flags = ("--token-delivery", "env", "--answer-log-limit", "65536")  # so that memory is the readers' alone
    with supervised(tmp_path, flags=flags) as running, contextlib.ExitStack() as held:
        running.post(script, execution_id="first")
        memory = psutil.Process(running.process.pid).memory_info
        before = memory().rss
        go = tmp_path / "go"
        running.post(
            {"script": [{"do": "wait_file", "path": str(go)}, *script["script"]]},
            execution_id="slow",
            async_result=True,
        )
        address = urlsplit(running.url)
        for _ in range(20):
            idle = held.enter_context(socket.create_connection((address.hostname, address.port)))
            idle.sendall(b"GET /api/executions/slow/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert idle.recv(12) == b"HTTP/1.1 200"
        go.touch()

        eventually(lambda: running.record("slow")["outcome"] == "success")

        assert running.get("/health")["streams"]["open"] == 20
        # Of each: a batch of lines, and what the connection has not taken of it; of all of it that would be 400 MB.
        assert memory().rss - before < 2 * (Batches.BYTES_HELD + 20 * 2 * BATCH_BYTES)


@pytest.mark.slow
def test_streams_are_bounded_and_places_are_given_back(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        limits = httpx.Limits(max_connections=None)
        with (
            httpx.Client(base_url=running.url, timeout=60, trust_env=False, limits=limits) as client,
            contextlib.ExitStack() as held,
        ):
            readers = []  # one that is let go of closes its connection
            for _ in range(STREAMS_PER_CALLER):
                readers.append(events(held.enter_context(client.stream("GET", "/api/events"))))
                next(readers[-1])
            turned_away = running.client.get("/api/events")
            assert (turned_away.status_code, turned_away.json()["error_class"]) == (409, "busy")
            assert running.post(OK).status_code == 200

        def is_open_again() -> bool:
            with running.client.stream("GET", "/api/events") as response:
                return response.status_code == 200

        eventually(is_open_again)


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="a full file system takes a mount of one's own"
)
def test_executions_answer_on_a_full_disk_and_say_what_is_not_kept(tmp_path: Path) -> None:
    """R3, in a mount namespace of its own, so that nobody else's disk is filled."""
    program = "tests.support.programs.answers_on_a_full_disk"
    (tmp_path / "data").mkdir()
    mount = 'mount -t tmpfs -o size=1m tmpfs "$1/data" && exec "$2" -W error -m "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, program],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.stdout.endswith("held\n"), done.stdout + done.stderr


def test_readers_at_the_same_place_share_one_reading_and_all_get_what_is_added(tmp_path: Path) -> None:
    store, batches = TranscriptStore(tmp_path), Batches()
    with contextlib.closing(store.writer("shared")) as writer:
        append(writer, b"one", b"two")
        reader = store.reader("shared")
        first, second = batches.after(reader, 0), batches.after(reader, 0)
        assert first is not None
        assert first is second
        assert first[0] == 2
        assert batches.after(reader, 2) is None
        append(writer, b"three")

    added = batches.after(reader, 2)
    assert added is not None
    assert isinstance(added[1], bytes)
    assert (added[0], added[1].count(b"three")) == (3, 1)
    other = batches.after(store.reader("other"), 0)
    assert other is None


def test_readers_at_different_places_come_to_the_same(tmp_path: Path) -> None:
    store, batches = TranscriptStore(tmp_path), Batches()
    with contextlib.closing(store.writer("long")) as writer:
        append(writer, *[b"line"] * (3 * BATCH_LINES))
    reader = store.reader("long")

    ends = set()
    for position in (0, 1, BATCH_LINES - 1):
        batch = batches.after(reader, position)
        assert batch is not None
        ends.add(batch[0])

    assert ends == {BATCH_LINES}


def test_readers_that_take_all_at_once_stay_together_and_share_every_reading(tmp_path: Path) -> None:
    positions: list[int] = []

    class Counted(TranscriptReader):
        def read(self, after: int, **limits: int) -> list[tuple[int, bytes]]:
            if lines := super().read(after, **limits):
                positions.append(after)
            return lines

    batches = Batches()
    batches.BYTES_HELD = 2 * BATCH_BYTES
    record = ExecutionRecord(execution_id="long", created_at=0.0, state=Phase.FINISHED)
    with contextlib.closing(TranscriptStore(tmp_path).writer("long")) as writer:
        append(writer, *[b"x" * 1000] * 4000)
    view = View(record, Counted(tmp_path / "long.jsonl", tmp_path / "long.idx"), Notifier())

    async def read() -> int:
        return sum([events.count(b"data: x") async for events in follow(view, 0, batches)])

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(read() for _ in range(5)))

    assert asyncio.run(all_of_them()) == [4000] * 5
    assert len(positions) > 10
    assert len(positions) == len(set(positions)), "read again for somebody"


def test_batches_are_kept_within_a_bound_and_none_without_readers(tmp_path: Path) -> None:
    store, batches = TranscriptStore(tmp_path), Batches()
    with contextlib.closing(store.writer("long")) as writer:
        append(writer, *[b"x" * (BATCH_BYTES - 1)] * (Batches.BYTES_HELD // BATCH_BYTES + 10))
        reader = store.reader("long")
        before = [batches.after(reader, position) for position in range(writer.last_line)]
    kept = sum(len(events) for _, events in batches._batches.values())
    assert Batches.BYTES_HELD - 2 * BATCH_BYTES < kept <= Batches.BYTES_HELD
    assert batches.after(reader, writer.last_line - 1) is before[-1]
    batches.clear()
    assert batches.after(reader, writer.last_line - 1) is not before[-1]


@pytest.mark.parametrize("size", [BATCH_BYTES, BATCH_BYTES + 1, 3 * BATCH_BYTES, 1_000_000])
def test_a_long_line_comes_in_parts_with_its_number_and_between_the_others(tmp_path: Path, size: int) -> None:
    long = b'{"x": "' + b"0123456\r" * (size // 8) + b'"}'
    with contextlib.closing(TranscriptStore(tmp_path).writer("long")) as writer:
        append(writer, b"first", b"second", long, b"fourth", long)
    record = ExecutionRecord(execution_id="long", created_at=0.0, state=Phase.FINISHED)
    view = View(record, TranscriptStore(tmp_path).reader("long"), Notifier())

    async def read(after: int) -> list[bytes]:
        return [events async for events in follow(view, after, Batches())]

    for after in (0, 1, 2, 3, 4):
        parts = asyncio.run(read(after))
        found = {event.get("id"): event["data"] for event in events(httpx.Response(200, content=b"".join(parts)))}
        text = long.replace(b"\r", b"").decode()
        for number, data in {"1": "first", "2": "second", "3": text, "4": "fourth", "5": text}.items():
            assert (number in found) == (int(number) > after)
            assert found.get(number, data) == data
        assert max(map(len, parts)) <= BATCH_BYTES + 100


def test_a_long_line_that_is_deleted_while_it_is_read_ends_the_stream_without_its_event(tmp_path: Path) -> None:
    store = TranscriptStore(tmp_path)
    with contextlib.closing(store.writer("long")) as writer:
        append(writer, b"first", b"x" * 10 * BATCH_BYTES)
    record = ExecutionRecord(execution_id="long", created_at=0.0, state=Phase.FINISHED)
    view = View(record, store.reader("long"), Notifier())

    async def read() -> bytes:
        had = b""
        async for part in follow(view, 0, Batches()):
            had += part
            if len(had) > 3 * BATCH_BYTES:
                store.delete_named("long")
        return had

    had = asyncio.run(read())
    assert had.count(b"x") < 10 * BATCH_BYTES
    assert not had.endswith(b"\n\n")
    assert b"event: end" not in had


@pytest.mark.parametrize("lines", [[b"", b"x" * 300_000], [b"a" * 300_000, b"", b"", b"b" * 300_000]])
def test_a_long_line_behind_lines_that_were_not_kept_is_found(tmp_path: Path, lines: list[bytes]) -> None:
    """A line that could not be written ends where the one before it ends."""
    with contextlib.closing(TranscriptStore(tmp_path).writer("long")) as writer:
        writer.append(b"".join(line + b"\n" for line in lines if line), [len(line) + bool(line) for line in lines])
    reader, position, found = TranscriptStore(tmp_path).reader("long"), 0, []
    while (line := reader.long_line(position, BATCH_BYTES)) is not None:
        found.append((line.number, reader.bytes_at(line.start, line.end - line.start)))
        position = line.number
    assert found == [(number, line) for number, line in enumerate(lines, 1) if line]


def test_streams_are_bounded_for_one_caller_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STREAMS_PER_CALLER", 2)
    places = streams.OpenStreams(ResponseBuffer(1 << 20), limit=4)

    def ask(host: str) -> Response:
        request = Request({"type": "http", "method": "GET", "headers": [], "client": (host, 1), "query_string": b""})
        return places.response(request, follow_nothing, AccessKey(None, "x", Redactor()))

    async def follow_nothing() -> AsyncIterator[bytes]:
        yield b": nothing\n\n"

    async def main() -> None:
        held = [ask("10.0.0.1"), ask("10.0.0.1")]
        with pytest.raises(Busy):
            ask("10.0.0.1")
        held += [ask("10.0.0.2"), ask("::1")]
        with pytest.raises(Busy):
            ask("10.0.0.3")

        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(_message: Any) -> None:
            await asyncio.sleep(0)

        for response in held:
            await response({"type": "http"}, receive, send)
        assert (places.count, places.by_caller) == (0, {})
        ask("10.0.0.1")

    asyncio.run(main())


def test_a_change_during_a_reading_is_not_missed_and_a_reader_that_left_spoils_none() -> None:
    async def main() -> None:
        change = Notifier()
        taken = change.next_change()
        assert change.next_change() is taken, "one for all"
        assert not taken.done()
        change.notify()
        await asyncio.wait_for(taken, 10)

        change.next_change().cancel()
        change.notify()
        assert not change.next_change().done()

    asyncio.run(main())
