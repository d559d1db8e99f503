"""
Logs: one event a line, on stderr, as text for people or as JSON for collectors; nothing secret in either.

Both forms have the same fields: time, level, logger, message, and those of :data:`FIELDS` that are set. Fields that
many lines share are set once by :func:`log_fields`, for all lines that follow in the same task or thread.

Nothing that logs ever waits for the reader of stderr: see :class:`LogQueue`.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from logging.handlers import QueueHandler, QueueListener
from typing import Any

import msgspec

from agent_runtime.model.records import rfc3339
from agent_runtime.telemetry.redaction import Redactor

FIELDS = ("execution_id", "trace_id", "generation", "method", "path", "status", "seconds")
"""Fields of a line beside its message: bound by :func:`log_fields`, or given at the call by ``extra``, which wins."""

STDERR = 2

LINES_LIMIT = 10_000
FLUSH_SECONDS = 0.5
"""How long :meth:`LogQueue.flush` waits for the reader of stderr; the end of the process calls it twice."""

_log_fields: ContextVar[dict[str, str | int]] = ContextVar("log_fields", default={})  # noqa: B039 - never changed


@contextmanager
def log_fields(**fields: str | int | None) -> Iterator[None]:
    """Add *fields* to all lines that the block, or a task started in it, logs; a field of None is left out."""
    token = _log_fields.set(_log_fields.get() | {name: value for name, value in fields.items() if value is not None})
    try:
        yield
    finally:
        _log_fields.reset(token)


class BoundFields(logging.Filter):
    """Add the fields of :func:`log_fields` to each record, in the thread that logs it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields to *record*; return True."""
        for name, value in _log_fields.get().items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


_EXCEPTIONS = logging.Formatter()


def _event(record: logging.LogRecord) -> dict[str, Any]:
    """Return a record's fields, in order."""
    try:
        message = record.getMessage()
    except (TypeError, ValueError, KeyError):
        # logging would print the arguments to stderr, as they are.
        message = f"{record.msg} (its arguments do not fit)"
    if record.exc_info:
        message += f"\n{_EXCEPTIONS.formatException(record.exc_info)}"
    event = {
        "time": rfc3339(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": _encodable(message),
    }
    found = {name: getattr(record, name, None) for name in FIELDS}
    return event | {name: value for name, value in found.items() if value is not None}


class TextFormatter(logging.Formatter):
    """``TIME LEVEL logger: message execution_id=…`` on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Put one event on one line."""
        event = _event(record)
        time, level, logger, message = (event.pop(name) for name in ("time", "level", "logger", "message"))
        extra = "".join(f" {name}={value}" for name, value in event.items())
        return _on_one_line(f"{time} {level.upper():<7} {logger}: {message}{extra}")


class JsonFormatter(logging.Formatter):
    """The same fields as one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Put one event on one line."""
        return msgspec.json.encode(_event(record)).decode()


def _encodable(text: str) -> str:
    """Replace surrogates, which stand for undecodable bytes of a file's name, by escapes."""
    return text.encode(errors="backslashreplace").decode()


"\x00".encode("unicode_escape")  # Loads the codec, which cannot be done later if no file can be opened.


def _on_one_line(text: str) -> str:
    """Replace characters that would begin a new line or control a terminal by escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _own_record(level: int, name: str, message: str) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, message, None, None)


class LogQueue(QueueHandler):
    """
    Hand redacted lines to a thread that writes them to *descriptor*, without :data:`sys.stderr`'s buffers and locks.

    A full pipe that is not read blocks a thread that writes to it, and any thread may log: the event loop, an attempt
    that has to end its child, the thread that holds the secret file's lock. Here only the writing thread is blocked.
    Lines beyond *limit* are lost, and their number is logged as soon as there is room again.
    """

    def __init__(self, descriptor: int, redactor: Redactor, limit: int = LINES_LIMIT) -> None:
        self._lines: queue.Queue[bytes] = queue.Queue(limit)
        super().__init__(self._lines)
        self._redactor = redactor
        self._writer = _Writer(self._lines, descriptor)
        self._full = 0
        self._unreported = 0
        self._writer.start()

    @property
    def lost(self) -> int:
        """How many lines were lost, for want of room or because they could not be written."""
        return self._full + self._writer.failed

    def prepare(self, record: logging.LogRecord) -> bytes:
        """Return the line of a record, redacted as a whole: its message, exception and fields."""
        return self._redactor.redact(self.format(record).encode(errors="backslashreplace")) + b"\n"

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's
        """Log that there is no line of a record: logging would print its arguments to stderr, as they are."""
        error = type(sys.exception()).__name__
        self.enqueue(self.prepare(_own_record(logging.ERROR, record.name, f"a line cannot be written: {error}")))

    def enqueue(self, line: bytes) -> None:  # type: ignore[override]  # prepare() has made a record a line
        """Queue a line, or drop it where the queue is full."""
        try:
            if self._unreported:
                text = f"{self._unreported} lines lost: the reader of the log was too slow"
                self._lines.put_nowait(self.prepare(_own_record(logging.WARNING, __name__, text)))
                self._unreported = 0
            self._lines.put_nowait(line)
        except queue.Full:
            self._full += 1
            self._unreported += 1

    def flush(self) -> None:
        """Wait until all lines are written, for :data:`FLUSH_SECONDS` at most; logging calls this at exit, too."""
        done = self._lines.all_tasks_done
        with done:
            done.wait_for(lambda: not self._lines.unfinished_tasks, FLUSH_SECONDS)


class _Writer(QueueListener):
    """Write formatted lines directly: a logging handler has a lock, and the exit of the process would wait for it."""

    def __init__(self, lines: queue.Queue[bytes], descriptor: int) -> None:
        super().__init__(lines)
        self._descriptor = descriptor
        self.failed = 0

    def handle(self, line: bytes) -> None:  # type: ignore[override]  # as above
        """Write one line, however long that takes."""
        left = memoryview(line)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # another process that shares the pipe made it non-blocking
                select.select([], [self._descriptor], [])
            except OSError:
                self.failed += 1
                return


def configure(log_format: str, log_level: str, redactor: Redactor) -> LogQueue:
    """Send all logs of this process to stderr, through *redactor*, without ever waiting for its reader."""
    handler = LogQueue(STDERR, redactor)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(BoundFields())
    logging.basicConfig(handlers=[handler], level=log_level.upper(), force=True)
    for chatty in ("httpx", "httpcore", "uvicorn", "asyncio", "watchfiles"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, getattr(logging, log_level.upper())))
    return handler
