"""Find where the body of an answer ends; the bytes themselves are not changed here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agent_runtime.relay.connection import BadMessage

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_LINE_BYTES = 8 * 1024
_HEX = frozenset(b"0123456789abcdefABCDEF")
_MOST_DIGITS = 12
_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")
_EMPTY_STATUSES = frozenset({204, 304})


class Sized:
    """A body whose length is known in advance."""

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def is_complete(self) -> bool:
        """Whether the body has ended."""
        return self._left == 0

    def feed(self, data: bytes) -> int:
        """Read the next bytes of the connection; return how many of them belong to the body."""
        used = min(self._left, len(data))
        self._left -= used
        return used


class Chunked:
    """A chunked body (RFC 9112, 7.1): sizes and trailers are read to find the end, and passed on unchanged."""

    def __init__(self) -> None:
        self.is_complete = False
        self._left = 0
        self._line = b""
        self._expects_chunk_end = False
        self._in_trailer = False

    def feed(self, data: bytes) -> int:
        """
        Read the next bytes of the connection; return how many of them belong to the body.

        Raises:
            BadMessage: The bytes are no chunked body.
        """
        at, length = 0, len(data)
        while at < length and not self.is_complete:
            if not (self._left or self._line or self._expects_chunk_end or self._in_trailer):
                at = _skip_whole_chunks(data, at)
                if at == length:
                    break
            if self._left:
                used = min(self._left, length - at)
                self._left -= used
                at += used
                continue
            end = data.find(b"\n", at)
            stop = length if end < 0 else end + 1
            self._line += data[at:stop]
            at = stop
            if len(self._line) > _MOST_LINE_BYTES:
                raise BadMessage("a chunk has too long a line")
            if end >= 0:
                line, self._line = self._line, b""
                self._read_line(line)
        return at

    def _read_line(self, line: bytes) -> None:
        if not line.endswith(b"\r\n"):
            raise BadMessage("a chunk has a bare line")
        if self._expects_chunk_end:
            self._expects_chunk_end = False
            if line != b"\r\n":
                raise BadMessage("a chunk is longer than its size")
            return
        if self._in_trailer:
            self.is_complete = line == b"\r\n"
            return
        digits = line[:-2].partition(b";")[0].rstrip(b" \t")
        if not digits or len(digits) > _MOST_DIGITS or not _HEX.issuperset(digits):
            raise BadMessage("a chunk has no size")
        size = int(digits, 16)
        if size == 0:
            self._in_trailer = True
        else:
            self._left, self._expects_chunk_end = size, True


def _skip_whole_chunks(data: bytes, at: int) -> int:
    """Return the index behind the whole chunks that begin at *at*; ten times as fast as reading them line by line."""
    while (size := _SIZE_LINE.match(data, at)) is not None:
        end = size.end() + int(size[1], 16)
        if end == size.end() or data[end : end + 2] != b"\r\n":
            break
        at = end + 2
    return at


class UntilClosed:
    """A body that ends with the connection (HTTP/1.0); the child gets it in chunks, so that it notices a broken one."""

    def __init__(self) -> None:
        self.is_complete = False

    def feed(self, data: bytes) -> int:
        """Return how many bytes of *data* belong to the body: all of them; without any, the body has ended."""
        self.is_complete = not data
        return len(data)


Framing = Sized | Chunked | UntilClosed


def framing_of(status: int, headers: Mapping[bytes, list[bytes]], *, is_head: bool) -> Framing:
    """
    Decide how the body of an answer is framed.

    Args:
        headers: Values by lower-case name.
        is_head: The request's method was HEAD.

    Raises:
        BadMessage: The headers contradict each other, or the length or coding cannot be read.
    """
    codings, lengths = headers.get(b"transfer-encoding", []), headers.get(b"content-length", [])
    if codings and lengths:
        raise BadMessage("the body has two lengths")
    if is_head or status in _EMPTY_STATUSES:
        return Sized(0)
    if codings:
        if [coding.strip().lower() for coding in codings] != [b"chunked"]:
            raise BadMessage("the body has an unknown coding")
        return Chunked()
    if lengths:
        if len(set(lengths)) > 1 or not lengths[0].isdigit():
            raise BadMessage("the body has no readable length")
        return Sized(int(lengths[0]))
    return UntilClosed()
