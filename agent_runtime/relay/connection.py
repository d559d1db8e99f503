"""A connection to a child or to the API, with a buffer for bytes that were read and not used yet."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import struct
from collections.abc import Callable
from typing import cast

MOST_HEAD_BYTES = 64 * 1024
"""The longest head of a message; if nobody waits for bytes, a connection is read no further than this, either."""

RECEIVE_BYTES = 256 * 1024

_END = b"\r\n\r\n"
_AMBIGUOUS_LINES = re.compile(rb"(?<!\r)\n|\r(?!\n)|\r\n[ \t]|\0")
"""Bare CR or LF, folded lines, NUL: servers read them differently, so one request could be two (RFC 9112, 2.2, 5.2)."""


class BadMessage(Exception):
    """The bytes are no HTTP/1.1 message that can be passed on; the text is our own and quotes none of them."""


class PeerClosed(Exception):
    """The other side closed the connection in the middle of a message."""


class Connection(asyncio.BufferedProtocol):
    """
    A connection with back-pressure both ways; for asyncio's ``create_server`` and ``create_connection``.

    Args:
        received: Where bytes are received before they are appended to the buffer; all connections of an event loop can
            share it. Without it asyncio allocates 256 KiB for each read, however short.
        on_open: Called with a connection when it is open.

    Attributes:
        buffer: The bytes that were read and not used yet.
        has_ended: Whether the other side has closed the connection, or its sending half.
        on_end: Called when it does.
        peer: Pid and user id of the process that connected to the Unix socket; None: it is a TCP connection.
        is_used: Whether a message was exchanged on the connection before: the other side may have closed it since.
        owner: The identity that the requests on the connection have shown; None: there was none yet.
        is_of_cli: Whether the CLI itself is at the other end, not one of its tools; None: not known.
    """

    def __init__(self, received: bytearray, on_open: Callable[[Connection], None] = lambda _connection: None) -> None:
        self.buffer = b""
        self.has_ended = False
        self.on_end: Callable[[], object] = lambda: None
        self.peer: tuple[int, int] | None = None
        self.is_used = False
        self.owner: object = None
        self.is_of_cli: bool | None = None
        self._received = memoryview(received)
        self._on_open = on_open
        self._transport: asyncio.Transport
        self._error: Exception | None = None
        self._was_read = asyncio.Event()
        self._can_write = asyncio.Event()
        self._can_write.set()

    # -- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport, and tell that the connection is open."""
        self._transport = cast("asyncio.Transport", transport)
        connection = transport.get_extra_info("socket")
        if connection.family == socket.AF_UNIX:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            self.peer = struct.unpack("2i4x", credentials)
        self._on_open(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's
        """Return where bytes are to be received."""
        return self._received

    def buffer_updated(self, nbytes: int) -> None:
        """Append the received bytes to the buffer."""
        self.buffer += bytes(self._received[:nbytes])
        if self._was_read.is_set() and len(self.buffer) >= MOST_HEAD_BYTES:  # nobody waits for bytes
            self._transport.pause_reading()
        self._was_read.set()

    def eof_received(self) -> bool:
        """Record that nothing follows."""
        self._end()
        return self._transport.get_extra_info("sslcontext") is None  # True: what we send can still arrive

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake the coroutines that wait for bytes, or to write."""
        self._error = exc
        self._can_write.set()
        self._end()

    def pause_writing(self) -> None:
        """Make :meth:`send` wait."""
        self._can_write.clear()

    def resume_writing(self) -> None:
        """Wake :meth:`send`."""
        self._can_write.set()

    def _end(self) -> None:
        self._was_read.set()
        if not self.has_ended:
            self.has_ended = True
            self.on_end()

    # -- for the relay

    async def fill_buffer(self) -> bool:
        """
        Wait until bytes were appended to the buffer; False at the end of the stream.

        Raises:
            OSError: The connection broke.
        """
        length = len(self.buffer)
        while len(self.buffer) == length and not self.has_ended:
            self._was_read.clear()
            self._transport.resume_reading()
            await self._was_read.wait()
        if len(self.buffer) == length and self._error is not None:
            raise self._error
        return len(self.buffer) > length

    async def read(self) -> bytes:
        """Return the buffer and empty it; if it is empty, wait for bytes. Returns none at the end of the stream."""
        if not self.buffer:
            await self.fill_buffer()
        data, self.buffer = self.buffer, b""
        self._transport.resume_reading()
        return data

    async def pause_reading(self, seconds: float) -> None:
        """Read nothing for some time; what comes meanwhile stays with the kernel."""
        self._transport.pause_reading()
        await asyncio.sleep(seconds)

    async def read_head(self) -> bytes | None:
        """
        Read the head of a message, with the empty line that ends it; None if the stream ends before its first byte.

        Raises:
            BadMessage: The head is too long, or has lines that servers read in different ways.
            PeerClosed: The stream ends in the middle of the head.
        """
        self.buffer = self.buffer.lstrip(b"\r\n")
        while (end := self.buffer.find(_END)) < 0 and len(self.buffer) <= MOST_HEAD_BYTES:
            if not await self.fill_buffer():
                if self.buffer:
                    raise PeerClosed
                return None
            self.buffer = self.buffer.lstrip(b"\r\n")
        if not 0 <= end <= MOST_HEAD_BYTES:
            raise BadMessage("the head is too long")
        end += len(_END)
        head, self.buffer = self.buffer[:end], self.buffer[end:]
        if _AMBIGUOUS_LINES.search(head):
            raise BadMessage("the head has bare or folded lines")
        return head

    async def send(self, data: bytes) -> None:
        """
        Send *data*, and wait as long as the other side does not read fast enough.

        Raises:
            OSError: The connection is closed or broken.
        """
        self._transport.write(data)
        if not self._can_write.is_set():
            await self._can_write.wait()
        if self._transport.is_closing():
            raise ConnectionResetError("the other side has closed the connection")

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Continue with TLS; *host* is the name that the other side must prove."""
        loop = asyncio.get_running_loop()
        transport = await loop.start_tls(self._transport, self, context, server_hostname=host)
        self._transport = cast("asyncio.Transport", transport)

    @property
    def is_idle(self) -> bool:
        """Whether the connection is open, as far as is known, and no unread byte has come on it."""
        return not (self.buffer or self.has_ended or self._transport.is_closing())

    @property
    def peer_port(self) -> int:
        """The TCP port at the other end."""
        return int(self._transport.get_extra_info("peername")[1])

    async def close_after_peer(self) -> None:
        """Send an end of file; then read and drop what the other side sends until it closes the connection."""
        with contextlib.suppress(OSError):
            if self._transport.can_write_eof():
                self._transport.write_eof()
            while await self.read():
                pass

    def close(self) -> None:
        """Close the connection, once what was sent has gone."""
        self._transport.close()

    def reset(self) -> None:
        """Reset the connection (RST for TCP), so that the other side cannot take its end for the end of a message."""
        if self.peer is None and not self._transport.is_closing():
            with contextlib.suppress(OSError):
                connection = self._transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
