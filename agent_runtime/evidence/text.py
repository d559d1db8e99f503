"""
Parse the two forms in which the CLI prints an API error: entries of its debug log, and sentences for a person.

Every function reads a bounded piece from the beginning of the text and decodes only what it needs.
"""

from __future__ import annotations

import msgspec

from agent_runtime.claude.frames import plain
from agent_runtime.claude.log_entries import HEAD_BYTES, LogEntry
from agent_runtime.evidence.error_bodies import STATUS_BY_TYPE, ApiError, read_body

_MARKS = (
    b"API error (attempt ",  # 2.1.30 to 2.1.330
    b"Error streaming, falling back to non-streaming mode: ",  # 1.0.128 to 2.1.330
    b"Error in non-streaming fallback: ",  # 1.0.128 to 2.1.30
    b"Error in API request: ",  # 2.1.330
    b"Non-streaming fallback also failed: ",  # 2.1.330
)
"""Beginnings of the CLI's own entries about API errors. One failure can show in several entries."""

_BODY_BYTES = 16384
_TEXT_LENGTH = 4096
_LEAD_INS = ("Failed to authenticate", "Please run /login", "Login expired", "Not logged in")
_OF_A_CREDENTIAL = ("x-api-key", "bearer", "token", "credential", "authentication", "unauthorized", "oauth")


def error_in_entry(entry: LogEntry) -> ApiError | None:
    """Parse a log entry about an API error; None: it is about something else."""
    if entry.level not in {"ERROR", "WARN"}:
        return None
    for mark in _MARKS:
        at = entry.text.find(mark, 0, HEAD_BYTES)
        if at >= 0:
            break
    else:
        return None
    before = plain(entry.text[:at]).strip()
    if before not in {"", '"'}:
        return None
    body = entry.text[at + len(mark) : at + _BODY_BYTES]
    if mark is _MARKS[0]:
        end = body.find(b"): ", 0, 24)
        if end < 0:
            return None  # incomplete, or not an entry of this kind
        body = body[end + 3 :]
    text = plain(body)
    if before:
        text = _unquoted(text)
    error = _parsed(text)
    return error if error.text or error.status is not None else None


def error_in_sentence(text: str) -> ApiError:
    """
    Parse a sentence for a person, such as ``Failed to authenticate. API Error: 401 {…} · Please run /login``.

    A status counts only at the beginning of a remark, where the CLI puts it.
    """
    text = text[:_TEXT_LENGTH].strip()
    for remark in text.split(" \u00b7 "):
        found = _without_lead_in(remark.strip())
        if found.startswith("API Error: Request rejected (429)"):
            return ApiError(status=429, text=text)
        if found.startswith("API Error: Repeated 529"):
            return ApiError(status=529, text=text)
        if found.startswith("API Error: "):
            error = _parsed(found.removeprefix("API Error: "))
        elif found.startswith("API Error ("):
            error = _parsed(found.removeprefix("API Error ("))
        elif _is_the_apis_answer(answer := found.removeprefix("Error: ")):
            error = _parsed(answer)
        elif _speaks_of_a_credential(found):
            error = _parsed(found)
        else:
            continue
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
    text = text.strip()
    status: int | None = None
    while (number := _leading_status(text)) is not None and status in {None, number}:
        status = number
        text = text[3:].lstrip()
    text = text.removeprefix("undefined ").strip()[:_BODY_BYTES]
    kind, colon, rest = text.partition(": ")
    if colon and kind in STATUS_BY_TYPE:
        return ApiError(status=status, type=kind, text=rest[:_TEXT_LENGTH], message=rest[:_TEXT_LENGTH])
    error = read_body(text, status)
    if error is None:
        # After a status comes a body in some form; without a status it is a sentence of the CLI or its runtime.
        return ApiError(
            status=status, text=text[:_TEXT_LENGTH], message=None if status is None else text[:_TEXT_LENGTH]
        )
    return error if error.text else msgspec.structs.replace(error, text=text[:_TEXT_LENGTH])


def _leading_status(text: str) -> int | None:
    digits = text[:3]
    if len(digits) == 3 and digits.isascii() and digits.isdigit() and text[3:4] in {"", " ", "{", "<", '"', "\n"}:
        number = int(digits)
        return number if 300 <= number < 600 else None
    return None


def _without_lead_in(remark: str) -> str:
    """Remove a lead-in, such as "Failed to authenticate", where no dot separates it from the API's answer."""
    for lead_in in _LEAD_INS:
        if remark.startswith(lead_in):
            return remark.removeprefix(lead_in).lstrip(". ")
    return remark


def _is_the_apis_answer(remark: str) -> bool:
    """Whether a remark is a status and an error body, or begins with one of the API's types."""
    if remark.partition(": ")[0] in STATUS_BY_TYPE:
        return True
    if _leading_status(remark) is None or not (body := remark[3:].lstrip()).startswith("{"):
        return False
    found = read_body(body)
    return found is not None and found.type is not None


def _speaks_of_a_credential(remark: str) -> bool:
    """Whether a remark is ``401 …`` about a credential: a proxy's answer comes without ``API Error``."""
    if not remark.startswith(("401 ", "403 ")):
        return False
    rest = remark[4:].lower()
    return rest.startswith("{") or any(word in rest for word in _OF_A_CREDENTIAL)
