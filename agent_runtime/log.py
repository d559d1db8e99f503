"""Logs: one event a line, on stderr, as text for people or as JSON for collectors; nothing secret in either."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import msgspec

from agent_runtime.model import rfc3339
from agent_runtime.redaction import RedactingFilter

if TYPE_CHECKING:
    from agent_runtime.redaction import Redactor

FIELDS = ("execution_id",)
"""What a record may carry beside its message, by ``extra``."""


class TextFormatter(logging.Formatter):
    """``TIME LEVEL logger: message execution_id=…`` on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Put one event on one line."""
        text = f"{rfc3339(record.created)} {record.levelname:<7} {record.name}: {_message(record)}"
        extra = "".join(f" {name}={getattr(record, name)}" for name in FIELDS if hasattr(record, name))
        return text.replace("\r", "").replace("\n", " | ") + extra


class JsonFormatter(logging.Formatter):
    """The same fields as one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Put one event on one line."""
        event = {
            "time": rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        event |= {name: str(getattr(record, name)) for name in FIELDS if hasattr(record, name)}
        return msgspec.json.encode(event).decode()


def _message(record: logging.LogRecord) -> str:
    """Take the message, and of an exception its traceback, which the redacting filter has written out already."""
    message = record.getMessage()
    return f"{message}\n{record.exc_text}" if record.exc_text else message


def configure(log_format: str, log_level: str, redactor: Redactor) -> None:
    """Send all logs of this process to stderr, through *redactor*."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(RedactingFilter(redactor))
    logging.basicConfig(handlers=[handler], level=log_level.upper(), force=True)
    for chatty in ("watchfiles", "httpx", "httpcore", "uvicorn", "asyncio"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, getattr(logging, log_level.upper())))
