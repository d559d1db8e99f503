"""A connection to a child or to the API, with a buffer for bytes that were read and not used yet."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

READ_BYTES = 64 * 1024
MOST_HEAD_BYTES = 64 * 1024
_END = b"\r\n\r\n"
_AMBIGUOUS_LINES = re.compile(rb"(?<!\r)\n|\r(?!\n)|\r\n[ \t]|\0")
"""Bare CR or LF, folded lines, NUL: servers read them differently, so one request could be two (RFC 9112, 2.2, 5.2)."""


class BadMessage(Exception):
    """The bytes are no HTTP/1.1 message that can be passed on; the text is our own and quotes none of them."""


class PeerClosed(Exception):
    """The other side closed the connection in the middle of a message."""


class Connection:
    """
    A reader with a buffer in front of it, and a writer.

    Attributes:
        buffer: The bytes that were read and not used yet.
        is_used: Whether a message was exchanged on the connection before: the other side may have closed it since.
        is_of_cli: Whether the CLI itself is at the other end, not one of its tools; None: not known.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.buffer = b""
        self.is_used = False
        self.is_of_cli: bool | None = None
        self._reader = reader
        self._writer = writer

    async def fill_buffer(self) -> bool:
        """Read once and append to the buffer; False at the end of the stream."""
        data = await self._reader.read(READ_BYTES)
        self.buffer += data
        return bool(data)

    async def read(self) -> bytes:
        """Return the buffer and empty it; if it is empty, read once. Returns no bytes at the end of the stream."""
        if not self.buffer:
            return await self._reader.read(READ_BYTES)
        data, self.buffer = self.buffer, b""
        return data

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

    async def wait_until_peer_closes(self) -> None:
        """Wait until the other side closes the connection; buffer what it sends meanwhile, up to a bound."""
        while len(self.buffer) < READ_BYTES:
            if not await self.fill_buffer():
                return
        await self.wait_closed()

    async def send(self, data: bytes) -> None:
        """
        Send *data*, and wait as long as the other side does not read fast enough.

        Raises:
            OSError: The connection is closed or broken.
        """
        self._writer.write(data)
        await self._writer.drain()

    @property
    def is_idle(self) -> bool:
        """Whether the connection is open, as far as is known, and no unread byte has come on it."""
        return not (self.buffer or self._reader.at_eof() or self._writer.is_closing())

    @property
    def is_unix(self) -> bool:
        """Whether the connection came by a Unix socket, not by TCP."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        return connection.family == socket.AF_UNIX

    @property
    def peer(self) -> tuple[int, int] | None:
        """Pid and user id of the process that connected to the Unix socket; None: it came by TCP."""
        if not self.is_unix:
            return None
        connection: socket.socket = self._writer.get_extra_info("socket")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        return pid, uid

    @property
    def peer_port(self) -> int:
        """The TCP port at the other end."""
        return int(self._writer.get_extra_info("peername")[1])

    async def close_after_peer(self) -> None:
        """Send an end of file; then read and drop what the other side sends until it closes the connection."""
        with contextlib.suppress(OSError):
            if self._writer.can_write_eof():
                self._writer.write_eof()
            while await self.read():
                pass

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()

    async def wait_closed(self) -> None:
        """Wait until the connection is closed; :meth:`close` or :meth:`reset` must come before."""
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def reset(self) -> None:
        """Reset the connection (RST for TCP), so that the other side cannot take its end for the end of a message."""
        connection = self._writer.get_extra_info("socket")
        if connection is not None and connection.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
