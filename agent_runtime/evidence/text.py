"""
Parse the two forms in which the CLI prints an API error: entries of its debug log, and sentences for a person.

Every function reads a bounded piece from the beginning of the text and decodes only what it needs.
"""

from __future__ import annotations

import re

import msgspec

from agent_runtime.claude.frames import plain
from agent_runtime.claude.log_entries import HEAD_BYTES, LogEntry
from agent_runtime.evidence.error_bodies import STATUS_BY_TYPE, ApiError, read_body

_MARK = re.compile(
    rb"API error \(attempt .{0,21}?\): "  # 2.1.30 to 2.1.330
    rb"|Error streaming, falling back to non-streaming mode: "  # 1.0.128 to 2.1.330
    rb"|Error in non-streaming fallback: "  # 1.0.128 to 2.1.30
    rb"|Error in API request: "  # 2.1.330
    rb"|Non-streaming fallback also failed: ",  # 2.1.330
    re.DOTALL,
)
"""Beginnings of the CLI's own entries about API errors. One failure can show in several entries."""

_BODY_BYTES = 16384
_TEXT_LENGTH = 4096
_LEAD_IN = re.compile(r"\A(?:Failed to authenticate|Please run /login|Login expired|Not logged in)[. ]*")
"""A lead-in of a remark, where no dot separates it from the API's answer."""

_STATUS_BY_REMARK = {"API Error: Request rejected (429)": 429, "API Error: Repeated 529": 529}
_INTRODUCTION = re.compile(r"(API Error)(?:: | \()|Error: ")
_STATUS = re.compile(r'([345][0-9]{2})(?:(?=[{<"])|\s+|\Z)(?:\1(?:(?=[{<"])|\s+|\Z))*')
_ABOUT_A_CREDENTIAL = re.compile(
    r"40[13] (?:\{|.*(?:x-api-key|bearer|token|credential|authentication|unauthorized|oauth))",
    re.IGNORECASE | re.DOTALL,
)
"""An answer without ``API Error`` before it, as it comes from a proxy."""


def error_in_entry(entry: LogEntry) -> ApiError | None:
    """Parse a log entry about an API error; None: it is about something else."""
    mark = _MARK.search(entry.text, 0, HEAD_BYTES) if entry.level in {"ERROR", "WARN"} else None
    if mark is None or (before := plain(entry.text[: mark.start()]).strip()) not in {"", '"'}:
        return None
    text = plain(entry.text[mark.end() : mark.start() + _BODY_BYTES])
    error = _parsed(_unquoted(text) if before else text)
    return error if error.text or error.status is not None else None


def error_in_sentence(text: str) -> ApiError:
    """
    Parse a sentence for a person, such as ``Failed to authenticate. API Error: 401 {…} · Please run /login``.

    A status counts only at the beginning of a remark, where the CLI puts it.
    """
    text = text[:_TEXT_LENGTH].strip()
    for remark in text.split(" \u00b7 "):
        found = _LEAD_IN.sub("", remark.strip())
        for words, status in _STATUS_BY_REMARK.items():
            if found.startswith(words):
                return ApiError(status=status, text=text)
        introduction = _INTRODUCTION.match(found)
        answer = found[introduction.end() :] if introduction else found
        if (introduction and introduction[1]) or _is_the_apis(answer) or _ABOUT_A_CREDENTIAL.match(found):
            error = _parsed(answer)
            if error.status is not None or error.type is not None:
                return msgspec.structs.replace(error, text=f"{text} \u00b7 {error.text}")
    return ApiError(text=text)


def _unquoted(text: str) -> str:
    """Undo the quoting of an entry of several lines, even if its end is missing."""
    try:
        return msgspec.json.decode('"' + text.rstrip(), type=str)
    except msgspec.DecodeError:
        return text.replace('\\"', '"').replace("\\n", "\n")


def _parsed(text: str) -> ApiError:
    """Parse ``STATUS STATUS BODY``; each part may be missing."""
    status, text = _split_status(text.strip())
    text = text.removeprefix("undefined ").strip()[:_BODY_BYTES]
    kind, colon, rest = text.partition(": ")
    if colon and kind in STATUS_BY_TYPE:
        return ApiError(status=status, type=kind, text=rest[:_TEXT_LENGTH], message=rest[:_TEXT_LENGTH])
    error = read_body(text, status)
    text = text[:_TEXT_LENGTH]
    if error is None:
        # After a status comes a body in some form; without a status it is a sentence of the CLI or its runtime.
        return ApiError(status=status, text=text, message=None if status is None else text)
    return error if error.text else msgspec.structs.replace(error, text=text)


def _split_status(text: str) -> tuple[int | None, str]:
    """Split off the HTTP status at the beginning, which the CLI writes once or twice; None: there is none."""
    found = _STATUS.match(text)
    return (int(found[1]), text[found.end() :]) if found else (None, text)


def _is_the_apis(answer: str) -> bool:
    """Whether a text is a status and an error body, or begins with one of the API's types."""
    status, rest = _split_status(answer)
    body = read_body(rest) if status is not None and rest.startswith("{") else None
    return answer.partition(": ")[0] in STATUS_BY_TYPE or (body is not None and body.type is not None)
