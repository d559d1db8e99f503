"""Find where the body of an answer ends; the bytes themselves are not changed here."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from agent_runtime.relay.connection import BadMessage

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        while step := _known_chunk_length(data[at : at + _SHORT_LINE_BYTES]) or _chunk_length(data, at):
            at += step
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
