"""
The transcript of each execution: its redacted frames, one per line, numbered from 1.

Each transcript has two files: ``ID.jsonl`` holds the lines, ``ID.idx`` holds eight bytes per line that say where it
ends. So a reader finds any line without reading the others, and no transcript is held in memory. A line that could not
be written ends where the previous one ends, so later lines keep their numbers.

The writer appends to the data file first and to the index second. A reader trusts only the index, so it never sees half
a line. After a crash between the two writes the next writer repairs the index.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import operator
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from agent_runtime.store.line_files import ENTRY_BYTES, LineReader, LineWriter, file_size

log = logging.getLogger(__name__)

_PLAIN_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")


class TranscriptStore:
    """The directory of all transcripts. It is created here if possible, else when the first transcript is written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # On a full or read-only disk executions continue without transcripts; their writers report it.
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def __repr__(self) -> str:
        return f"<TranscriptStore {self.directory}>"

    def writer(self, execution_id: str) -> TranscriptWriter:
        """Return a writer that continues the transcript of an execution; there must be only one writer at a time."""
        return TranscriptWriter(*self._paths(execution_id))

    def reader(self, execution_id: str) -> TranscriptReader:
        """Return a reader of an execution's transcript; it may be read while it is written, and may not exist yet."""
        return TranscriptReader(*self._paths(execution_id))

    def size_bytes(self, execution_id: str) -> int:
        """Return the total size of a transcript's two files."""
        return sum(map(file_size, self._paths(execution_id)))

    def total_bytes(self) -> int:
        """Return the total size of the files of all transcripts."""
        try:
            with os.scandir(self.directory) as entries:
                return sum(map(file_size, entries))
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def free_bytes(self) -> tuple[int, int] | None:
        """Return free and total bytes of the transcripts' volume; None if they cannot be read."""
        for directory in (self.directory, self.directory.parent):
            with contextlib.suppress(OSError):
                disk = os.statvfs(directory)
                return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        return None

    def oldest_first(self) -> dict[str, float]:
        """Return the names of transcripts with lines and the time of their last write (epoch seconds), oldest first."""
        found: dict[str, float] = {}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if (status := entry.stat(follow_symlinks=False)).st_size:
                        name = entry.name.rpartition(".")[0]
                        found[name] = max(status.st_mtime, found.get(name, 0.0))
        return dict(sorted(found.items(), key=operator.itemgetter(1)))

    def delete(self, execution_id: str) -> None:
        """Delete a transcript if there is one; the index first, so that no reader looks for deleted lines."""
        self.delete_named(name_of(execution_id))

    def delete_named(self, name: str) -> None:
        """Delete a transcript by its name from :meth:`oldest_first`."""
        for path in (self.directory / f"{name}.idx", self.directory / f"{name}.jsonl"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()

    def delete_lines(self, name: str) -> bool:
        """Delete a transcript's lines, so that readers see a gap in the numbers; return False if there were none."""
        try:
            (self.directory / f"{name}.jsonl").unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _paths(self, execution_id: str) -> tuple[Path, Path]:
        name = name_of(execution_id)
        return self.directory / f"{name}.jsonl", self.directory / f"{name}.idx"


def name_of(execution_id: str) -> str:
    """Return the file name of a transcript without its extension."""
    if 0 < len(execution_id) <= 128 and execution_id[0] != "." and _PLAIN_NAME.issuperset(execution_id):
        return execution_id
    return "~" + hashlib.sha256(execution_id.encode("utf-8", "surrogatepass")).hexdigest()


class LongLine(msgspec.Struct, frozen=True):
    """A line that is read in parts; *start* and *end* are its offsets in the file, without the newline."""

    number: int
    start: int
    end: int


class TranscriptReader:
    """
    Reads a transcript, also while another thread writes it.

    Every call opens and closes the files, so an idle reader holds no descriptor.
    """

    def __init__(self, data_path: Path, index_path: Path) -> None:
        self._data_path, self._index_path = data_path, index_path

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._data_path.name} last_line={self.last_line}>"

    @property
    def last_line(self) -> int:
        """Number of the last line, written or missing; 0 if there is none."""
        return file_size(self._index_path) // ENTRY_BYTES

    def read(self, after: int, *, limit_lines: int = 1000, limit_bytes: int = 1 << 20) -> list[tuple[int, bytes]]:
        """
        Return the lines after line *after* with their numbers; a skipped number is a line that could not be written.

        Args:
            after: 0 starts with the first line.
            limit_lines: Upper bound of the number of lines.
            limit_bytes: Upper bound of their total size; one line is always returned, however long.
        """
        found: list[tuple[int, bytes]] = []
        with self._open() as lines:
            position = max(after, 0)
            while lines and not found and position < lines.count:
                found, position = lines.batch(position, limit_lines, limit_bytes)
        return found

    def long_line(self, after: int, longer_than_bytes: int) -> LongLine | None:
        """Return the first written line after line *after* if it is longer than *longer_than_bytes*, else None."""
        with self._open() as lines:
            if lines and (number := lines.written_after(max(after, 0))) <= lines.count:
                line = LongLine(number, lines.end(number - 1), lines.end(number) - 1)
                is_long = line.end - line.start > longer_than_bytes and lines.bytes_at(line.end, 1) == b"\n"
                return line if is_long else None
        return None

    def bytes_at(self, start: int, size: int) -> bytes:
        """Return *size* bytes of a long line from offset *start* on; fewer if they have been deleted."""
        part = b""
        with self._open() as lines:
            if lines:
                part = lines.bytes_at(start, size)
        return part

    def answer_log(self, limit_bytes: int, must_include_line: int | None = None) -> tuple[list[bytes], bool]:
        """
        Return the lines of the transcript that an answer carries, and whether lines are missing.

        A transcript within the limit is returned whole. Of a longer one the start, the end and the line that must be
        included are returned; only that line may exceed the limit. A transcript that cannot be read gives no lines.
        """
        chosen: list[bytes] = []
        is_whole = self.last_line == 0
        with self._open() as lines:
            if lines:
                size_bytes = lines.end(lines.count)
                ranges = [(0, lines.count)]
                if size_bytes > limit_bytes:
                    ranges = _start_and_end(lines, limit_bytes, must_include_line)
                for position, stop in ranges:
                    if position < stop:
                        chosen += (line for _, line in lines.batch(position, stop - position, size_bytes)[0])
                is_whole = len(chosen) == lines.count
        return chosen, not is_whole

    @contextlib.contextmanager
    def _open(self) -> Iterator[LineReader | None]:
        """
        Open both files; yield None if there is nothing to read.

        A disk error inside the block ends the block without an exception: an answer must not fail because of its log.
        """
        with contextlib.ExitStack() as held:
            lines = None
            try:
                index = os.open(self._index_path, os.O_RDONLY | os.O_NONBLOCK)
                held.callback(os.close, index)
                data = os.open(self._data_path, os.O_RDONLY | os.O_NONBLOCK)
                held.callback(os.close, data)
                lines = LineReader(data, index)
            except FileNotFoundError:
                pass  # before the first line is written, or if no write ever succeeded
            except OSError as error:
                log.error("cannot read transcript %s: %s", self._data_path, error.strerror)
            try:
                yield lines
            except OSError as error:
                log.error("cannot read transcript %s: %s", self._data_path, error.strerror)


def _start_and_end(lines: LineReader, limit_bytes: int, must_include_line: int | None) -> list[tuple[int, int]]:
    """Choose the lines that an answer carries: half of the limit for the start, the rest for the end."""
    room, must = limit_bytes, 0
    if must_include_line is not None and 1 <= must_include_line <= lines.count:
        must = must_include_line
        room = max(0, room - (lines.end(must) - lines.end(must - 1)))
    start_stop = lines.ending_by(room // 2)
    room -= lines.end(start_stop)
    end_start = max(start_stop, lines.ending_by(lines.end(lines.count) - room - 1) + 1)
    if start_stop < must <= end_start:
        return [(0, start_stop), (must - 1, must), (end_start, lines.count)]
    return [(0, start_stop), (end_start, lines.count)]


class TranscriptWriter(TranscriptReader):
    """
    Appends lines to a transcript; a disk error never raises.

    While the disk is full, read-only or broken, lines are counted but not written. Later lines keep the numbers they
    would have had, and readers see which numbers are missing.

    One thread writes at a time, any thread reads.

    Attributes:
        missing_lines: How many lines this writer could not write.
    """

    RETRY_SECONDS = 1.0
    """How long the writer waits after a failure before it tries again."""

    def __init__(self, data_path: Path, index_path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(data_path, index_path)
        self._clock = clock
        self._line_writer: LineWriter | None = None
        self._retry_at: float | None = None
        self.missing_lines = 0
        # The size is known even if the files cannot be opened; opening them may find more lines.
        self._last_line = file_size(index_path) // ENTRY_BYTES
        if self._last_line or file_size(data_path):
            # Repairs what a crash has left; a new transcript is opened with its first line.
            self._write(b"", array("Q"))

    @property
    def last_line(self) -> int:
        """Number of the last appended line, whether it could be written or not; 0 if there is none yet."""
        return self._last_line

    @property
    def incomplete(self) -> bool:
        """Whether a line appended here could not be written."""
        return self.missing_lines > 0

    def answer_log(self, limit_bytes: int, must_include_line: int | None = None) -> tuple[list[bytes], bool]:
        """Return what a reader returns; only the writer also knows of lines missing at the end."""
        lines, truncated = super().answer_log(limit_bytes, must_include_line)
        return lines, truncated or self.incomplete

    def append(self, lines: bytes, lengths: Iterable[int]) -> int:
        """
        Append lines, so that readers see them; return the number of the last one.

        Args:
            lines: Joined lines, each with its newline.
            lengths: The length of each line with its newline.
        """
        counted = array("Q", lengths)
        self._last_line += len(counted)
        if not self._write(lines, counted):
            self.missing_lines += len(counted)
        return self._last_line

    def close(self) -> None:
        """Close the files; a later append opens them again."""
        if self._line_writer is not None:
            line_writer, self._line_writer = self._line_writer, None
            try:
                line_writer.close()
            except OSError as error:  # a network file system reports a full disk only here
                log.error("cannot write transcript %s: %s", self._data_path, error.strerror)
                self.missing_lines += 1

    def _write(self, lines: bytes, lengths: array[int]) -> bool:
        if self._retry_at is not None and self._clock() < self._retry_at:
            return False
        try:
            if self._line_writer is None:
                self._line_writer = LineWriter(self._data_path, self._index_path)
                self._last_line = max(self._last_line, self._line_writer.last_line + len(lengths))
            if lengths:
                self._line_writer.append(lines, lengths, first_number=self._last_line - len(lengths) + 1)
        except OSError as error:
            self._failed(error)
            return False
        if self._retry_at is not None:
            log.warning("transcript %s can be written again: missing_lines=%d", self._data_path, self.missing_lines)
            self._retry_at = None
        return True

    def _failed(self, error: OSError) -> None:
        if self._retry_at is None:
            log.error("cannot write transcript %s: %s", self._data_path, error.strerror)
        self._retry_at = self._clock() + self.RETRY_SECONDS
        # The next try opens the files again and repairs them.
        self.close()
