"""Read an answer of the API, and find where its body ends; the bytes themselves are not changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import h11
import msgspec

from agent_runtime.relay.connection import BadMessage, Connection, PeerClosed

_MOST_LINE_BYTES = 8 * 1024
_SHORT_LINE_BYTES = len("\r\nfff\r\n")
_EXTENSION = rb"[ \t]*(?:;[^\r\n]*)?"
_SIZE = re.compile(rb"\r\n([0-9a-fA-F]{1,12})" + _EXTENSION + rb"\r\n").match
_LAST = re.compile(rb"\r\n0{1,12}" + _EXTENSION + rb"\r\n(?:[^\r\n]+\r\n)*\r\n").match
_UNFINISHED = re.compile(
    rb"\r(?:\n(?:[0-9a-fA-F]{1,12}" + _EXTENSION + rb"\r?)?)?"
    rb"|\r\n0{1,12}" + _EXTENSION + rb"\r\n(?:[^\r\n]+\r\n)*(?:[^\r\n]*\r?)"
).fullmatch
"""The beginning of what ``_SIZE`` or ``_LAST`` match."""

_EMPTY_STATUSES = frozenset({204, 304})


class Sized:
    """A body whose length is known in advance."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.is_complete = length == 0

    def feed(self, data: bytes) -> int:
        """Read the next bytes of the connection; return how many of them belong to the body."""
        used = min(self._left, len(data))
        self._left -= used
        self.is_complete = self._left == 0
        return used


class Chunked:
    """A chunked body (RFC 9112, 7.1): sizes and trailers are read to find the end, and passed on unchanged."""

    def __init__(self) -> None:
        self.is_complete = False
        self._left = 0
        self._line = b"\r\n"  # each size stands between two ends of lines: that of the chunk before it, and its own

    def feed(self, data: bytes) -> int:
        """
        Read the next bytes of the connection; return how many of them belong to the body.

        Raises:
            BadMessage: The bytes are no chunked body.
        """
        known = len(self._line)
        if known:
            data = self._line + data
        at = self._left
        while length := _known_chunk_length(data[at : at + _SHORT_LINE_BYTES]) or _chunk_length(data, at):
            at += length
        self._left, self._line = max(0, at - len(data)), data[at:]
        if (last := _LAST(data, at)) is not None:
            self.is_complete = True
            return last.end() - known
        if self._line and (len(self._line) > _MOST_LINE_BYTES or _UNFINISHED(self._line) is None):
            raise BadMessage("a chunk has no size, or is longer than its size")
        return len(data) - known


def _chunk_length(data: bytes, at: int = 0) -> int:
    """Return the length of the chunk at *at*, with its line and the end of line before; 0: none, or the last one."""
    line = _SIZE(data, at)
    size = 0 if line is None else int(line[1], 16)
    return 0 if line is None or not size else line.end() - at + size


_known_chunk_length = lru_cache(maxsize=4096)(_chunk_length)
"""The same for the short beginning of a chunk: sizes of events recur, and are looked up in half the time."""


def without_chunks(body: bytes) -> bytes:
    """Return the content of the chunks of a body whose framing was checked before, as far as they are there."""
    body, content, at = b"\r\n" + body, b"", 0
    while length := _chunk_length(body, at):
        line_end = body.index(b"\r\n", at + 2) + 2
        content += body[line_end : at + length]
        at += length
    return content


class UntilClosed:
    """A body that ends with the connection (HTTP/1.0); the child gets it in chunks, so that it notices a broken one."""

    def __init__(self) -> None:
        self.is_complete = False

    def feed(self, data: bytes) -> int:
        """Return how many bytes of *data* belong to the body: all of them; without any, the body has ended."""
        self.is_complete = not data
        return len(data)


Framing = Sized | Chunked | UntilClosed


class ApiAnswer(msgspec.Struct):
    """
    The head of an answer of the API, and the connection that its body comes on.

    Attributes:
        headers: Pairs of name and value, in the order and spelling of the API.
        values: The values of the headers by lower-case name.
        is_last: Whether the connection cannot be used after this answer.
        body: The bytes of the body that were read so far to be judged, with the framing of chunks.
    """

    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]
    values: Mapping[bytes, list[bytes]]
    framing: Framing
    connection: Connection
    is_last: bool
    body: bytes = b""

    async def read(self) -> bytes:
        """
        Return the next bytes of the body, with the framing of chunks; none at its end.

        Raises:
            OSError, PeerClosed: The connection broke in the middle of the body.
            BadMessage: The bytes are no chunked body.
        """
        if self.framing.is_complete:
            return b""
        data = await self.connection.read()
        if not data and not isinstance(self.framing, UntilClosed):
            raise PeerClosed
        used = self.framing.feed(data)
        self.connection.buffer = data[used:]
        return data[:used]


async def read_answer(connection: Connection, parser: h11.Connection, *, is_head: bool) -> ApiAnswer:
    """
    Read the head of the final answer to a request that *parser* has sent; interim ones are dropped.

    Args:
        is_head: The request's method was HEAD.

    Raises:
        OSError, PeerClosed: The API closed the connection without an answer.
        BadMessage: The answer is no HTTP/1.1 message that can be passed on.
    """
    event: object = None
    while not isinstance(event, h11.Response):
        if (head := await connection.read_head()) is None:
            raise PeerClosed
        try:
            parser.receive_data(head)
            event = parser.next_event()
        except h11.RemoteProtocolError:
            raise BadMessage("its head cannot be read") from None
        if not isinstance(event, h11.Response | h11.InformationalResponse) or event.status_code == 101:
            raise BadMessage("its head is none of an answer")
    headers = [(bytes(name), bytes(value)) for name, value in event.headers.raw_items()]
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(value)
    framing = _framing_of(event.status_code, values, is_head=is_head)
    is_last = b"close" in b",".join(values.get(b"connection", [])).lower() or event.http_version != b"1.1"
    return ApiAnswer(event.status_code, bytes(event.reason), headers, values, framing, connection, is_last)


def _framing_of(status: int, headers: Mapping[bytes, list[bytes]], *, is_head: bool) -> Framing:
    # h11 has refused unknown codings, and lengths that are no number or differ.
    is_chunked, lengths = b"transfer-encoding" in headers, headers.get(b"content-length")
    if is_chunked and lengths:
        raise BadMessage("the body has two lengths")
    if is_head or status in _EMPTY_STATUSES:
        return Sized(0)
    if is_chunked:
        return Chunked()
    return Sized(int(lengths[0])) if lengths else UntilClosed()
