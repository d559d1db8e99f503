"""Where log lines leave this process, without anybody waiting for who reads them."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque

LIMIT_BYTES = 1024 * 1024
FLUSH_SECONDS = 0.5
"""How long the end of the process waits for a reader, once."""

BATCH_BYTES = 64 * 1024


class Outlet(logging.Handler):
    """
    Write lines to a descriptor from a thread of its own.

    A pipe that is full and that nobody reads blocks whoever writes to it: an attempt that has a child to end, the
    thread that holds the secret file's lock, the event loop. Here it blocks only the outlet's thread. What does not fit
    into :data:`LIMIT_BYTES` meanwhile is lost, and how much is said as soon as something can be said again.

    Args:
        descriptor: Written to directly, past the buffers of :data:`sys.stderr` and their locks.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._is_writing = False
        self._was_waited_for_in_vain = False
        self._unsaid = 0
        self.lost = 0
        """Lines that nobody will ever read."""
        self._thread = threading.Thread(target=self._write_all, name="log-outlet", daemon=True)
        self._thread.start()

    @property
    def is_behind(self) -> bool:
        """Whether there are lines that have not been written."""
        return bool(self._lines) or self._is_writing

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line, or lose it."""
        line = self._encoded(record)
        with self._changed:
            if self._waiting_bytes + len(line) > LIMIT_BYTES:
                self.lost += 1
                self._unsaid += 1
                return
            self._lines.append(line)
            self._waiting_bytes += len(line)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all lines are written, no longer than :data:`FLUSH_SECONDS`: also called at the end."""
        with self._changed:
            until = time.monotonic() + (0.0 if self._was_waited_for_in_vain else FLUSH_SECONDS)
            while self.is_behind:
                if (left := until - time.monotonic()) <= 0:
                    self._was_waited_for_in_vain = True
                    return
                self._changed.wait(left)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                while not self._lines:
                    self._changed.wait()
                batch = self._take_batch()
                self._is_writing = True
            lines_lost = 0 if self._write(b"".join(batch)) else len(batch)
            with self._changed:
                self.lost += lines_lost
                self._unsaid += lines_lost

    def _take_batch(self) -> list[bytes]:
        batch, size = [], 0
        while self._lines and size < BATCH_BYTES:
            line = self._lines.popleft()
            size += len(line)
            batch.append(line)
        self._waiting_bytes -= size
        if self._unsaid and not self._lines:
            # What was lost came after all that waited.
            batch.append(self._encoded(_record_of_loss(self._unsaid)))
            self._unsaid = 0
        return batch

    def _write(self, data: bytes) -> bool:
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                # Somebody who shares the pipe does not want to wait for it.
                select.select([], [self._descriptor], [])
            except OSError:
                return False
        return True

    def _encoded(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode(errors="backslashreplace")


def _record_of_loss(count: int) -> logging.LogRecord:
    return logging.LogRecord(
        __name__, logging.WARNING, __file__, 0, "%d lines lost: nobody read the log", (count,), None
    )
