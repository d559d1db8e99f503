"""Assemble lines from chunks that may be cut anywhere."""

from __future__ import annotations

from io import BytesIO
from typing import Self

MOST_BYTES = 256 * 1024
"""The largest chunk that a framer reads."""

HEAD_BYTES = 4096
"""How many bytes of a line that was too long are stored."""

_LEAST_BYTES = 16 * 1024
_MOST_REUSED_BYTES = 2 << 20


class CutLine(bytes):
    """
    The head of a line that was longer than the framer's limit, without a newline.

    Attributes:
        dropped_bytes: How long the rest of the line was, without its newline.
    """

    dropped_bytes: int

    def __new__(cls, head: bytes, line_bytes: int) -> Self:
        """Store the head and the length of the whole line, without its newline."""
        self = super().__new__(cls, head)
        self.dropped_bytes = line_bytes - len(head)
        return self


class Lines(list[bytes]):
    """
    Lines that arrived together, each with its newline, or cut.

    Attributes:
        joined: The bytes of all lines; None if one of them was cut, or may have been.
    """

    def __init__(self, whole: bytes, limit_bytes: int, cut: CutLine | None = None) -> None:
        # BytesIO takes a third of the time of bytes.split, which looks at one byte after another. It copies each line.
        super().__init__((whole,) if 0 <= whole.find(b"\n") == len(whole) - 1 else BytesIO(whole))
        if len(whole) > limit_bytes:
            self[:] = [
                _cut(line[:limit_bytes], len(line) - 1) if len(line) > limit_bytes + 1 else line for line in self
            ]
        if cut is not None:
            self.insert(0, cut)
        self.joined = whole if cut is None and len(whole) <= limit_bytes else None


def _cut(head: bytes | bytearray, line_bytes: int) -> CutLine:
    return CutLine(bytes(head[:HEAD_BYTES]), line_bytes)


class LineFramer:
    """
    Assembles lines from chunks that may be cut anywhere, even inside a UTF-8 character.

    Chunks are read directly into the buffer of the lines, which is reused: new memory for each chunk would cost more
    than the reading.

    Memory is bounded: of a line longer than *limit_bytes* the rest is dropped, and a :class:`CutLine` stands for it.

    :meth:`asyncio.StreamReader.readline` is no alternative, because it raises on lines over its limit.

    Source: https://docs.python.org/3/library/asyncio-stream.html#asyncio.StreamReader.readline
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._buffer = bytearray()
        self._room_bytes = _LEAST_BYTES
        self._pending = 0
        self._dropped = 0

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an unfinished line are buffered."""
        return self._pending

    def room(self) -> memoryview:
        """Return the memory that the next chunk is to be read into."""
        end = self._pending + self._room_bytes
        if end > len(self._buffer):
            # Grows by half: a line of many megabytes is copied twice on average, without doubling the memory.
            grown = bytearray(max(end, min(len(self._buffer) * 3 // 2, self._limit + MOST_BYTES)))
            memoryview(grown)[: self._pending] = memoryview(self._buffer)[: self._pending]
            self._buffer = grown
        return memoryview(self._buffer)[self._pending : end]

    def feed(self, count: int) -> Lines:
        """Return the lines that are finished by the *count* bytes in the memory of :meth:`room`."""
        if count == self._room_bytes:
            self._room_bytes = min(2 * count, MOST_BYTES)
        buffer, filled = self._buffer, self._pending + count
        end = buffer.rfind(b"\n", self._pending, filled) + 1
        if not end:
            self._set_pending(filled)
            return Lines(b"", self._limit)
        begin, cut = 0, None
        if self._dropped:
            begin = buffer.find(b"\n", self._pending, filled) + 1
            cut = _cut(buffer[: min(self._pending, HEAD_BYTES)], self._dropped + begin - 1)
            self._dropped = 0
        whole = bytes(memoryview(buffer)[begin:end])
        if len(buffer) > _MOST_REUSED_BYTES:
            self._buffer = buffer[end:filled]
        else:
            buffer[: filled - end] = buffer[end:filled]
        self._set_pending(filled - end)
        return Lines(whole, self._limit, cut)

    def peek(self) -> bytes:
        """Return the unfinished line so far; it stays unfinished."""
        return bytes(self._buffer[: self._pending])

    def close(self) -> Lines:
        """Return the unfinished line at the end of the stream, if any, with a newline."""
        pending, dropped = self._pending, self._dropped
        self._pending = self._dropped = 0
        if dropped:
            return Lines(b"", self._limit, _cut(self._buffer[: min(pending, HEAD_BYTES)], pending + dropped))
        return Lines(bytes(self._buffer[:pending]) + b"\n" if pending else b"", self._limit)

    def _set_pending(self, count: int) -> None:
        self._pending = min(count, self._limit)
        self._dropped += count - self._pending
