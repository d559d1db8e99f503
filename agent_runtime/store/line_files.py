"""A file of lines and the index beside it: writing, reading and repairing them."""

from __future__ import annotations

import contextlib
import operator
import os
from array import array
from bisect import bisect_right
from itertools import accumulate, chain
from pathlib import Path

ENTRY_BYTES = 8
"""Size of an index entry: the offset at which a line with its newline ends, in the machine's byte order."""

_SCAN_BYTES = 1 << 20


def file_size(path: Path | os.DirEntry[str]) -> int:
    """Return the size of a file; 0 if it does not exist or cannot be reached."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


class LineWriter:
    """
    Append to a file of lines and to its index.

    Every write goes to a known offset, not to the end of the file, so it overwrites what a failed write left behind.

    Attributes:
        last_line: How many lines the index has.
    """

    def __init__(self, data_path: Path, index_path: Path) -> None:
        data_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            self._data = _open(data_path)
            held.callback(os.close, self._data)
            self._index = _open(index_path)
            held.callback(os.close, self._index)
            self.last_line, self._end = _repair(self._data, self._index)
            self._held = held.pop_all()

    def append(self, lines: bytes, lengths: array[int], *, first_number: int) -> None:
        """
        Write lines and their index entries, all or none.

        Args:
            lines: Joined lines, each with its newline.
            lengths: The length of each line with its newline.
            first_number: The number of the first of them; numbers between the last line and this are marked missing.

        Raises:
            OSError: The disk is full, read-only or broken; earlier lines are unchanged.
        """
        ends = array("Q", (self._end,)) * (first_number - 1 - self.last_line)
        known = len(ends)
        ends.extend(accumulate(lengths, initial=self._end))
        del ends[known]  # an entry is where a line ends, not where the first begins
        try:
            _write(self._data, lines, self._end)
            _write(self._index, ends.tobytes(), self.last_line * ENTRY_BYTES)
        except OSError:
            # The next attempt reopens the files and repairs what cannot be undone now.
            with contextlib.suppress(OSError):
                os.ftruncate(self._index, self.last_line * ENTRY_BYTES)
                os.ftruncate(self._data, self._end)
            raise
        self.last_line += len(ends)
        self._end = ends[-1]

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        self._held.close()


class LineReader:
    """
    Read a file of lines by its index.

    Attributes:
        count: How many lines the index had when this object was made.
    """

    def __init__(self, data: int, index: int) -> None:
        self._data = data
        self._index = index
        self.count = os.fstat(index).st_size // ENTRY_BYTES

    def end(self, number: int) -> int:
        """Return the offset where a line ends with its newline; 0 for line 0."""
        return next(iter(_entries(self._index, number - 1, number)), 0) if number else 0

    def written_after(self, position: int) -> int:
        """Return the number of the first written line after line *position*; above *count* if there is none."""
        return position + 1 + self.ending_by(self.end(position), position)

    def ending_by(self, offset: int, position: int = 0) -> int:
        """Return how many lines after line *position* end at or before *offset*."""
        return bisect_right(range(position + 1, self.count + 1), offset, key=self.end)

    def bytes_at(self, start: int, size: int) -> bytes:
        """Return *size* bytes of the lines from offset *start* on; fewer at the end of the file."""
        return _read(self._data, size, start)

    def batch(self, position: int, limit_lines: int, limit_bytes: int) -> tuple[list[tuple[int, bytes]], int]:
        """
        Return the written lines after line *position* with their numbers, and the number of the last line looked at.

        Args:
            limit_lines: Upper bound of the number of lines looked at.
            limit_bytes: Upper bound of their total length; one line is always read, however long.
        """
        start, ends = self.end(position), _entries(self._index, position, min(position + limit_lines, self.count))
        del ends[max(1, bisect_right(ends, start + limit_bytes)) :]
        # A damaged index that is not repaired yet may hold any number: never read beyond the file.
        stop = min(max(ends, default=0), os.fstat(self._data).st_size)
        data = _read(self._data, stop - start, start)
        found = []
        begin = start
        for number, end in enumerate(ends, position + 1):
            line = data[begin - start : end - start]
            if line.endswith(b"\n"):
                found.append((number, line[:-1]))
            begin = end
        return found, position + max(1, len(ends))  # no ends if a failed write was just cut off


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _repair(data: int, index: int) -> tuple[int, int]:
    """
    Make data and index agree; return the number of lines and the end of the last one.

    Lines that a killed writer had not indexed are indexed, half a line at the end is cut off, and entries whose data is
    gone are marked missing, so that line numbers never decrease.
    """
    size = os.fstat(data).st_size
    index_bytes = os.fstat(index).st_size
    known = index_bytes // ENTRY_BYTES
    last_end = _entries(index, known - 1, known)[0] if known else 0
    if last_end == size and not index_bytes % ENTRY_BYTES:
        return known, size

    ends = _entries(index, 0, known)
    rises = map(operator.le, chain((0,), ends), ends)
    good = next((i for i, (rising, end) in enumerate(zip(rises, ends, strict=True)) if not rising or end > size), known)
    # A write never ends with missing lines: if data follows such entries, a part of the index was lost.
    while good and ends[good - 1] < size and ends[good - 1] == (ends[good - 2] if good > 1 else 0):
        good -= 1
    del ends[good:]
    ends.extend(_line_ends(data, ends[-1] if good else 0))
    end = ends[-1] if ends else 0
    ends.extend(array("Q", (end,)) * (known - len(ends)))
    os.ftruncate(data, end)
    _write(index, ends[good:].tobytes(), good * ENTRY_BYTES)
    os.ftruncate(index, len(ends) * ENTRY_BYTES)
    return len(ends), end


def _line_ends(data: int, start: int) -> array[int]:
    """Return the ends of all lines from offset *start* on."""
    ends = array("Q")
    while chunk := os.pread(data, _SCAN_BYTES, start):
        at = chunk.find(b"\n")
        while at >= 0:
            ends.append(start + at + 1)
            at = chunk.find(b"\n", at + 1)
        start += len(chunk)
    return ends


def _entries(index: int, start: int, stop: int) -> array[int]:
    """Read index entries; fewer than asked for if a writer has just cut off a failed write."""
    data = _read(index, (stop - start) * ENTRY_BYTES, start * ENTRY_BYTES)
    entries = array("Q")
    entries.frombytes(data[: len(data) // ENTRY_BYTES * ENTRY_BYTES])
    return entries


def _read(file: int, count: int, offset: int) -> bytes:
    data = os.pread(file, count, offset) if count > 0 else b""
    while len(data) < count and (more := os.pread(file, count - len(data), offset + len(data))):
        data += more
    return data


def _write(file: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written
