"""Put lines together from chunks that may be cut anywhere."""

from __future__ import annotations

from typing import NamedTuple


class Line(NamedTuple):
    """
    One line, without its newline.

    Attributes:
        data: The line's bytes, or its head if it was longer than the framer's limit.
        dropped_bytes: How much of the line's end was not kept.
    """

    data: bytes
    dropped_bytes: int = 0

    @property
    def truncated(self) -> bool:
        """Whether only the head of the line is here."""
        return self.dropped_bytes > 0


class LineFramer:
    """
    Put lines together from chunks that may be cut anywhere, even inside a UTF-8 character.

    Memory is bounded: of a line longer than *limit_bytes* only the head is kept, the rest is dropped up to its newline,
    and the line says so.

    Lines are framed here because :meth:`asyncio.StreamReader.readline` raises on lines over its limit.

    Source: https://docs.python.org/3/library/asyncio-stream.html#asyncio.StreamReader.readline
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._head = bytearray()
        self._dropped = 0

    @property
    def pending_bytes(self) -> int:
        """How much of an unfinished line is kept."""
        return len(self._head)

    def feed(self, chunk: bytes) -> list[Line]:
        """Return every line that *chunk* finishes."""
        if b"\n" not in chunk:
            self._keep(chunk)
            return []
        *pieces, rest = chunk.split(b"\n")
        lines: list[Line] = []
        if self._head or self._dropped:
            self._keep(pieces.pop(0))
            lines.append(self._take())
        if len(chunk) <= self._limit:
            lines += map(Line, pieces)
        else:
            for piece in pieces:
                self._keep(piece)
                lines.append(self._take())
        self._keep(rest)
        return lines

    def peek(self) -> bytes:
        """Return the unfinished line as far as it is known; it stays unfinished."""
        return bytes(self._head)

    def close(self) -> Line | None:
        """Return the unfinished line at the end of the stream, if there is one."""
        return self._take() if self._head or self._dropped else None

    def _keep(self, piece: bytes) -> None:
        room = self._limit - len(self._head)
        if len(piece) > room:
            self._dropped += len(piece) - room
            piece = piece[:room]
        self._head += piece

    def _take(self) -> Line:
        line = Line(bytes(self._head), self._dropped)
        self._head, self._dropped = bytearray(), 0
        return line
