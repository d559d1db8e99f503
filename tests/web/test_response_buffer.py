"""What is held for readers is bounded: all else waits, and readers that are behind make room."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from starlette.responses import Response

from agent_runtime.errors import Busy, ErrorClass, StoreUnavailable
from agent_runtime.web import response_buffer
from agent_runtime.web.response_buffer import SLICE_BYTES, TRANSPORT, BufferedResponse, ResponseBuffer

if TYPE_CHECKING:
    from collections.abc import Callable


LIMIT = 13_334
"""Of which large ones may have 10,000, and those of up to 208 are small."""


class Reader:
    """A connection that takes nothing while *takes* is not set, and is closed when it is told to."""

    def __init__(self, *, takes: bool = True) -> None:
        self.takes = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self.scope = {TRANSPORT: self}
        self.is_closed = False
        if takes:
            self.takes.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    def is_closing(self) -> bool:
        return self.is_closed

    def abort(self) -> None:
        self.is_closed = True
        self.takes.set()

    async def send(self, message: Any) -> None:
        await self.takes.wait()
        if not self.is_closed:
            self.sent.append(message)


async def nothing() -> Any:
    raise AssertionError("nothing is received")


async def get(buffer: ResponseBuffer, reader: Reader, size: int, build: Callable[[], Response] | None = None) -> None:
    answer = build or (lambda: Response(b"x" * size))
    await BufferedResponse(buffer, size, answer)(reader.scope, nothing, reader.send)


async def until(condition: Callable[[], Any]) -> None:
    for _ in range(30_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_buffer, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(response_buffer, "GRACE_SECONDS", 0.05)


def test_an_answer_is_sent_whole_in_slices_with_its_head() -> None:
    async def main() -> None:
        for size in (0, 1, SLICE_BYTES, SLICE_BYTES + 1, 5 * SLICE_BYTES):
            buffer, reader = ResponseBuffer(1 << 20), Reader()
            await get(buffer, reader, 1000, lambda size=size: Response(b"y" * size, 201, {"x-more": "1"}))  # type: ignore[misc]

            start, *rest = reader.sent
            assert (start["status"], dict(start["headers"])[b"x-more"]) == (201, b"1")
            assert reader.body == b"y" * size
            assert [part["more_body"] for part in rest] == [True] * (len(rest) - 1) + [False]
            assert max(len(part["body"]) for part in rest) <= SLICE_BYTES
            assert (buffer.used_bytes, buffer.disconnected) == (0, 0)

    asyncio.run(main())


def test_what_does_not_fit_waits_for_its_turn_and_small_ones_never_wait_for_large_ones() -> None:
    async def main() -> None:
        buffer, held, done = ResponseBuffer(LIMIT), Reader(takes=False), []
        first = asyncio.create_task(get(buffer, held, 9_000))
        await until(lambda: buffer.used_bytes == 9_000)

        async def note(name: str, size: int) -> None:
            async with buffer.charge(size, {}):
                done.append(name)

        others = [
            asyncio.create_task(note(name, size)) for name, size in (("large", 5_000), ("less", 500), ("small", 200))
        ]
        await until(lambda: done)
        assert done == ["small"]
        held.takes.set()
        await asyncio.gather(first, *others)
        assert done == ["small", "large", "less"]
        assert buffer.used_bytes == 0

    asyncio.run(main())


def test_small_ones_are_bounded_too_and_what_cannot_wait_is_only_counted() -> None:
    async def main() -> None:
        buffer, idle = ResponseBuffer(LIMIT), [Reader(takes=False) for _ in range(100)]
        tasks = [asyncio.create_task(get(buffer, reader, 200)) for reader in idle]
        await until(lambda: buffer.used_bytes == LIMIT // 200 * 200)
        answer = BufferedResponse(buffer, 5_000, lambda: Response(b"x" * 5_000), in_thread=False, wait_seconds=0)
        reader = Reader()
        await answer(reader.scope, nothing, reader.send)
        assert len(reader.body) == 5_000
        for one in idle:
            one.takes.set()
        await asyncio.gather(*tasks)
        assert buffer.used_bytes == 0

    asyncio.run(main())


def test_more_than_all_there_is_goes_alone_and_is_no_deadlock() -> None:
    async def main() -> None:
        buffer, readers = ResponseBuffer(1_000), [Reader() for _ in range(5)]
        await asyncio.gather(*(get(buffer, reader, 300_000) for reader in readers))
        assert [len(reader.body) for reader in readers] == [300_000] * 5
        assert buffer.used_bytes == 0

    asyncio.run(main())


def test_readers_that_are_behind_are_disconnected_for_those_that_wait_and_no_more_than_it_takes() -> None:
    async def main() -> None:
        buffer, slow, quick = ResponseBuffer(LIMIT), [Reader(takes=False) for _ in range(5)], Reader()
        idle = [asyncio.create_task(get(buffer, reader, 2_000)) for reader in slow]
        await until(lambda: buffer.used_bytes == 10_000)

        await get(buffer, quick, 3_000)

        assert len(quick.body) == 3_000
        assert [reader.is_closed for reader in slow].count(True) == buffer.disconnected == 2
        for reader in slow:
            reader.takes.set()
        await asyncio.gather(*idle)
        assert buffer.used_bytes == 0

    asyncio.run(main())


def test_a_reader_that_takes_a_little_now_and_then_is_behind_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_buffer, "SLICE_BYTES", 10)

    async def main() -> None:
        buffer, slow, quick = ResponseBuffer(LIMIT), Reader(takes=False), Reader()
        idle = asyncio.create_task(get(buffer, slow, 9_000))
        await until(lambda: buffer.used_bytes == 9_000)
        waiting = asyncio.create_task(get(buffer, quick, 9_000))
        while not waiting.done():
            slow.takes.set()
            await asyncio.sleep(0)
            slow.takes.clear()
            await asyncio.sleep(0.005)
        assert slow.is_closed
        assert len(slow.body) > 0
        slow.takes.set()
        await idle

    asyncio.run(main())


def test_what_is_built_for_a_caller_that_has_gone_is_not_built() -> None:
    async def main() -> None:
        buffer, gone = ResponseBuffer(LIMIT), Reader()
        gone.abort()
        await get(buffer, gone, 5_000, lambda: pytest.fail("it is built"))
        assert buffer.used_bytes == 0

    asyncio.run(main())


def test_nobody_is_disconnected_while_nobody_waits_nor_in_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_buffer, "GRACE_SECONDS", 1000.0)

    async def main() -> None:
        buffer, slow, late = ResponseBuffer(LIMIT), Reader(takes=False), Reader()
        idle = asyncio.create_task(get(buffer, slow, 9_000))
        await until(lambda: buffer.used_bytes == 9_000)
        waiting = asyncio.create_task(get(buffer, late, 9_000))
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert (slow.is_closed, late.sent, buffer.disconnected) == (False, [], 0)
        slow.takes.set()
        await asyncio.gather(idle, waiting)

    asyncio.run(main())


def test_an_answer_that_waits_too_long_is_a_busy_and_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_buffer, "GRACE_SECONDS", 1000.0)
    monkeypatch.setattr(BufferedResponse.__init__, "__kwdefaults__", {"in_thread": True, "wait_seconds": 0.02})

    async def main() -> None:
        buffer, slow = ResponseBuffer(LIMIT), Reader(takes=False)
        idle = asyncio.create_task(get(buffer, slow, 9_000))
        await until(lambda: buffer.used_bytes == 9_000)
        with pytest.raises(Busy) as refused:
            await get(buffer, Reader(), 9_000)
        assert refused.value.retry_after_seconds == ErrorClass.BUSY.retry_seconds == 5
        slow.takes.set()
        await idle
        assert buffer.used_bytes == 0

    asyncio.run(main())


def test_a_caller_that_leaves_at_any_time_and_an_answer_that_cannot_be_built_leave_nothing_held() -> None:
    def fails() -> Response:
        raise StoreUnavailable("gone")

    async def main() -> None:
        buffer = ResponseBuffer(LIMIT)
        with pytest.raises(StoreUnavailable):
            await get(buffer, Reader(), 5_000, fails)
        assert buffer.used_bytes == 0
        tasks = [asyncio.create_task(get(buffer, Reader(takes=False), 6_000)) for _ in range(4)]
        await until(lambda: buffer.used_bytes == 6_000)
        for leaving in (tasks[2], tasks[0], tasks[3], tasks[1]):  # waiting, sending, waiting, and just let through
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leaving
        assert buffer.used_bytes == 0
        await get(buffer, Reader(), 10_000)

    asyncio.run(main())
