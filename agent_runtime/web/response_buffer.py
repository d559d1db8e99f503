"""
One limit on the memory for all data that is being sent to readers: answers longer than a slice, and parts of streams.

An answer that does not fit waits. A quarter of the limit is reserved for small answers, so that they never wait for
large ones. While an answer waits, the connections of readers that are too slow are closed. uvicorn alone copies a whole
answer into its connection's buffer at once, however slowly it is read (uvicorn 0.54, ``h11_impl.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from asyncio import Transport
from collections.abc import AsyncIterator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agent_runtime.errors import Busy
from agent_runtime.process.linux.syscalls import give_back_free_heap

log = logging.getLogger(__name__)

TRANSPORT = "agent_runtime.transport"
"""The key of the ASGI scope under which the transport of the request's connection is."""

BUILT_AT_ONCE = 2
"""How many answers are built in threads at once: more would only compete with the event loop for the interpreter."""

SLICE_BYTES = 64 * 1024
GRACE_SECONDS = 10.0
LEAST_BYTES_PER_SECOND = 64 * 1024
"""A reader is too slow if it takes nothing for the grace time, or after that time less than this on average."""

WAIT_SECONDS = 30.0
CHECK_SECONDS = 1.0

_LARGE_BYTES = 4 << 20
"""After so many bytes were held at once, the heap is returned to the kernel when the last reader is gone."""


class Charge:
    """
    Bytes that are held for one reader.

    Attributes:
        sent_bytes: How many bytes the reader's connection has taken.
        begun_at: When sending began, monotonic seconds; None: not yet.
    """

    def __init__(self, size_bytes: int, scope: Scope) -> None:
        self.size_bytes = size_bytes
        self.sent_bytes = 0
        self.begun_at: float | None = None
        self._moved_at = 0.0
        self._transport: Transport | None = scope.get(TRANSPORT)

    @property
    def is_closing(self) -> bool:
        """Whether the connection is closed or being closed."""
        return self._transport is not None and self._transport.is_closing()

    def seconds_behind(self, now: float) -> float:
        """Return for how long the reader has been too slow; 0 or less: it is not."""
        if self.begun_at is None or self._transport is None:
            return 0.0
        since = min(self._moved_at, self.begun_at + self.sent_bytes / LEAST_BYTES_PER_SECOND)
        return now - since - GRACE_SECONDS

    def disconnect(self) -> None:
        """Close the connection at once, without the data that it has not sent yet."""
        if self._transport is not None:
            self._transport.abort()

    def begin(self) -> None:
        """Start to measure the reader's speed."""
        self.begun_at = self._moved_at = time.monotonic()

    async def send(self, body: bytes, send: Send, *, more_body: bool = False, slice_bytes: int = 0) -> None:
        """Send *body* in slices (0: of :data:`SLICE_BYTES`), and let other tasks run after each."""
        slice_bytes = slice_bytes or SLICE_BYTES
        if self.begun_at is None:
            self.begin()
        view = memoryview(body)
        for at in range(0, max(1, len(body)), slice_bytes):
            is_last = at + slice_bytes >= len(body)
            await send(
                {
                    "type": "http.response.body",
                    "body": view[at : at + slice_bytes],
                    "more_body": more_body or not is_last,
                }
            )
            if self.is_closing:
                return
            self.sent_bytes += slice_bytes
            self._moved_at = time.monotonic()
            if not is_last:
                await asyncio.sleep(0)  # send() does not wait while the connection takes all


class ResponseBuffer:
    """
    Count the bytes that are held for readers, and make answers beyond a limit wait.

    Attributes:
        used_bytes: How many bytes are held now.
        disconnected: How many connections were closed because their reader was too slow.
        builders: Limits how many answers are built in threads at once.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._small_bytes = limit_bytes // 64
        self._large_limit_bytes = limit_bytes * 3 // 4
        self.used_bytes = 0
        self.disconnected = 0
        self._has_held_much = False
        self.builders = asyncio.Semaphore(BUILT_AT_ONCE)
        self._charges: dict[Charge, None] = {}
        self._waiting: dict[Charge, asyncio.Future[None]] = {}  # longest first

    @contextlib.asynccontextmanager
    async def charge(
        self, size_bytes: int, scope: Scope, *, wait_seconds: float | None = None
    ) -> AsyncIterator[Charge]:
        """
        Reserve *size_bytes* while the block runs. Sizes above three quarters of the limit are admitted one at a time.

        Args:
            scope: The ASGI scope of the request.
            wait_seconds: How long to wait for room; None: without limit; 0: reserve them even if there is no room.

        Raises:
            Busy: There was no room in time.
        """
        charge = Charge(min(size_bytes, self._large_limit_bytes), scope)
        self._waiting[charge] = turn = asyncio.get_running_loop().create_future()
        if wait_seconds == 0:
            self._add(charge)
        else:
            self._grant()
            if not turn.done():
                await self._turn_of(charge, turn, wait_seconds)
        try:
            yield charge
        finally:
            self._remove(charge)

    def resize(self, charge: Charge, size_bytes: int) -> None:
        """Change the size of a charge, without waiting for room."""
        size_bytes = min(size_bytes, self._large_limit_bytes)
        self.used_bytes += size_bytes - charge.size_bytes
        charge.size_bytes = size_bytes
        self._grant()

    def _is_small(self, charge: Charge) -> bool:
        return charge.size_bytes <= self._small_bytes

    def _fits(self, charge: Charge) -> bool:
        if self._is_small(charge):
            return self.used_bytes + charge.size_bytes <= self.limit_bytes
        return self.used_bytes + charge.size_bytes <= self._large_limit_bytes or all(map(self._is_small, self._charges))

    def _add(self, charge: Charge) -> None:
        self._waiting.pop(charge).set_result(None)
        self._charges[charge] = None
        self.used_bytes += charge.size_bytes

    def _remove(self, charge: Charge) -> None:
        if self._waiting.pop(charge, None) is None:
            del self._charges[charge]
            self._has_held_much |= self.used_bytes > _LARGE_BYTES
            self.used_bytes -= charge.size_bytes
        self._grant()
        if self._has_held_much and not self._charges:
            self._has_held_much = False
            # A moment later, when what the readers' tasks hold is freed, too.
            asyncio.get_running_loop().call_later(CHECK_SECONDS, give_back_free_heap)

    def _grant(self) -> None:
        """Admit waiting charges that fit, in the order of arrival; small ones may overtake large ones."""
        is_full = False
        for charge in list(self._waiting):
            if not (is_full and not self._is_small(charge)) and self._fits(charge):
                self._add(charge)
            else:
                is_full = True

    async def _turn_of(self, charge: Charge, turn: asyncio.Future[None], wait_seconds: float | None) -> None:
        deadline = None if wait_seconds is None else time.monotonic() + wait_seconds
        try:
            while not (await asyncio.wait({turn}, timeout=CHECK_SECONDS))[0]:
                if deadline is not None and time.monotonic() > deadline:
                    raise Busy("too much is being sent to slow readers; ask again later")
                self._disconnect_slow_readers()
        except BaseException:
            self._remove(charge)
            raise

    def _disconnect_slow_readers(self) -> None:
        """Close connections of readers that are too slow, slowest first, until the first waiting charge has room."""
        now = time.monotonic()
        lacking = self.used_bytes + next(iter(self._waiting)).size_bytes - self._large_limit_bytes
        lacking -= sum(charge.size_bytes for charge in self._charges if charge.is_closing)
        for charge in sorted(self._charges, key=lambda charge: charge.seconds_behind(now), reverse=True):
            if lacking <= 0 or charge.seconds_behind(now) <= 0:
                break
            if not charge.is_closing:
                log.warning("a connection was closed: its reader took %d bytes in too long a time", charge.sent_bytes)
                charge.disconnect()
                self.disconnected += 1
                lacking -= charge.size_bytes


class BufferedResponse(Response):
    """
    A response that is sent within the limit of a :class:`ResponseBuffer`.

    Args:
        size_bytes: The bytes to reserve; with *in_thread* those that building needs, then the answer's length counts.
        build: Builds the real response; may raise the errors that a handler may raise.
        in_thread: Call *build* in a thread.
        wait_seconds: As in :meth:`ResponseBuffer.charge`.
    """

    def __init__(
        self,
        buffer: ResponseBuffer,
        size_bytes: int,
        build: Callable[[], Response],
        *,
        in_thread: bool = True,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._buffer = buffer
        self._size_bytes = size_bytes
        self._build = build
        self._in_thread = in_thread
        self._wait_seconds = wait_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        """Wait for room, build, and send."""
        async with self._buffer.charge(self._size_bytes, scope, wait_seconds=self._wait_seconds) as charge:
            if self._in_thread:
                if charge.is_closing:
                    return
                async with self._buffer.builders:
                    response = await asyncio.to_thread(self._build)
                self._buffer.resize(charge, len(response.body))
            else:
                response = self._build()
            charge.begin()
            start = {"status": response.status_code, "headers": response.raw_headers}
            await send({"type": "http.response.start", **start})
            await charge.send(bytes(response.body), send)
