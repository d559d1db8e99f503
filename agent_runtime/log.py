"""
Logs: one event a line, on stderr, as text for people or as JSON for collectors; nothing secret in either.

Both forms have the same fields: time, level, logger, message, and those of :data:`FIELDS` that there are. What a line
is about need not be said at every call: :func:`about` binds it for all that follows, in tasks and in threads.

Nobody who logs ever waits for whoever reads stderr: see :class:`agent_runtime.log_outlet.Outlet`.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import msgspec

from agent_runtime.log_outlet import Outlet
from agent_runtime.model import rfc3339
from agent_runtime.redaction import RedactingFilter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_runtime.redaction import Redactor

FIELDS = ("execution_id", "trace_id", "generation", "method", "path", "status", "seconds")
"""What a line may carry beside its message: bound by :func:`about`, or given at the call by ``extra``, which wins."""

STDERR = 2

_about: ContextVar[dict[str, str | int]] = ContextVar("about", default={})  # noqa: B039 - never changed, only replaced


@contextmanager
def about(**fields: str | int | None) -> Iterator[None]:
    """Let all lines carry *fields* that are logged from here, or by what is started from here; None is left out."""
    token = _about.set(_about.get() | {name: value for name, value in fields.items() if value is not None})
    try:
        yield
    finally:
        _about.reset(token)


class BoundFields(logging.Filter):
    """Write on each record what it is about, in the thread that logs it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Complete *record*; it is always let through."""
        for name, value in _about.get().items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


def _event(record: logging.LogRecord) -> dict[str, Any]:
    """Tell a record's fields, in order."""
    event = {
        "time": rfc3339(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": _encodable(f"{record.getMessage()}\n{record.exc_text}" if record.exc_text else record.getMessage()),
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
    """Show the half characters that a file's name may hold as escapes."""
    return text.encode(errors="backslashreplace").decode()


def _on_one_line(text: str) -> str:
    """Show what would begin a new line, or steer a terminal, as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def configure(log_format: str, log_level: str, redactor: Redactor) -> Outlet:
    """Send all logs of this process to stderr, through *redactor*, without ever waiting for its reader."""
    handler = Outlet(STDERR)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(BoundFields())
    handler.addFilter(RedactingFilter(redactor))
    logging.basicConfig(handlers=[handler], level=log_level.upper(), force=True)
    for chatty in ("httpx", "httpcore", "uvicorn", "asyncio"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, getattr(logging, log_level.upper())))
    return handler
