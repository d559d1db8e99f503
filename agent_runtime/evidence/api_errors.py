"""
Parse what is reported of an API error: the body of an answer, an entry of the CLI's debug log, a sentence for a person.

A body may be of the API, a gateway or a proxy. Of a longer text only a bounded piece at its beginning is read.

Source: the API's documentation of errors; LiteLLM's ``ProxyException``; OpenAI's error object, which one-api, new-api
and OpenRouter use too; FastAPI's ``detail``; RFC 9457.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
from msgspec.structs import replace

from agent_runtime.claude.frames import plain
from agent_runtime.claude.log_entries import HEAD_BYTES, LogEntry

STATUS_BY_TYPE: dict[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""
The API's own error types, and the status of each for errors without one (in the middle of a stream).

Source: the API's documentation of errors, 2026.
"""

_MESSAGE_LENGTH = 4096
_CODE_LENGTH = 64
_PREFIX_LENGTH = 160
_FIELD_PATH = (
    r"(?:messages|tools|tool_choice|system|metadata|thinking|max_tokens|temperature|top_k|top_p|stop_sequences|stream|betas"
    r"|container|mcp_servers|context_management|output_config|body)(?:[.\[][^ :]{0,240})?:"
)
"""The path of a request's field before the API's message about it; not ``model``: that message is about the model."""
_TYPE = re.compile('"type":"([^"]*)')
_MESSAGE = re.compile('"message":"([^"]*)')
_STATUS = "[345][0-9]{2}"
_WORD = "[._-]*[A-Za-z0-9][A-Za-z0-9._-]*"
_decoder = json.JSONDecoder(strict=False)

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
_LEAD_IN = r"\A(?:Failed to authenticate|Please run /login|Login expired|Not logged in)[. ]*"
"""A lead-in of a remark, where no dot separates it from the API's answer."""

_STATUS_BY_REMARK = {"API Error: Request rejected (429)": 429, "API Error: Repeated 529": 529}
_INTRODUCTION = r"(API Error)(?:: | \()|Error: "
_STATUSES = r'([345][0-9]{2})(?:(?=[{<"])|\s+|\Z)(?:\1(?:(?=[{<"])|\s+|\Z))*'
_ABOUT_A_CREDENTIAL = r"(?is)40[13] (?:\{|.*(?:x-api-key|bearer|token|credential|authentication|unauthorized|oauth))"
"""An answer without ``API Error`` before it, as it comes from a proxy."""


class ApiError(msgspec.Struct, frozen=True):
    """
    One API error as the CLI reported it, or as the body of an answer says.

    Attributes:
        status: The HTTP status; None: there was no answer, or the report does not say.
        type: The error's type in the body, of the API or of a gateway.
        code: A more specific code than the type: ``error.details.error_code`` of the API, ``error.code`` of gateways.
        word: The CLI's word for the error (``error`` of a frame).
        detail: The CLI's more specific word (``api_error`` of a frame).
        text: The text of the API or the CLI about the error.
        message: The message in the body of the answer, if that is known.
        is_whole: The body was read to its end; false for a line that was cut off.
        is_own_form: The API itself writes errors in this form, and no gateway does.
    """

    status: int | None = None
    type: str | None = None
    code: str | None = None
    word: str | None = None
    detail: str | None = None
    text: str = ""
    message: str | None = None
    is_whole: bool = False
    is_own_form: bool = False


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
    text = text[:_MESSAGE_LENGTH].strip()
    for remark in text.split(" \u00b7 "):
        found = re.sub(_LEAD_IN, "", remark.strip())
        for words, status in _STATUS_BY_REMARK.items():
            if found.startswith(words):
                return ApiError(status=status, text=text)
        introduction = re.match(_INTRODUCTION, found)
        answer = found[introduction.end() :] if introduction else found
        if (introduction and introduction[1]) or _is_the_apis(answer) or re.match(_ABOUT_A_CREDENTIAL, found):
            error = _parsed(answer)
            if error.status is not None or error.type is not None:
                return replace(error, text=f"{text} \u00b7 {error.text}")
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
        return ApiError(status=status, type=kind, text=rest[:_MESSAGE_LENGTH], message=rest[:_MESSAGE_LENGTH])
    error = read_body(text, status)
    text = text[:_MESSAGE_LENGTH]
    if error is None:
        # After a status comes a body in some form; without a status it is a sentence of the CLI or its runtime.
        return ApiError(status=status, text=text, message=None if status is None else text)
    return error if error.text else replace(error, text=text)


def _split_status(text: str) -> tuple[int | None, str]:
    """Split off the HTTP status at the beginning, which the CLI writes once or twice; None: there is none."""
    found = re.match(_STATUSES, text)
    return (int(found[1]), text[found.end() :]) if found else (None, text)


def _is_the_apis(answer: str) -> bool:
    """Whether a text is a status and an error body, or begins with one of the API's types."""
    status, rest = _split_status(answer)
    body = read_body(rest) if status is not None and rest.startswith("{") else None
    return answer.partition(": ")[0] in STATUS_BY_TYPE or (body is not None and body.type is not None)


def read_body(text: str, status: int | None = None) -> ApiError | None:
    """
    Parse a body that begins with JSON; None without a readable error. Never raises.

    Args:
        status: The HTTP status of the answer; None: unknown, and the body may contain it.
    """
    if not text.startswith(("{", "[")):
        return None
    found = _decoded(text)
    if isinstance(found, list):
        found = found[0] if found else None
    body = _passed_on_body(_body(found)) if isinstance(found, dict) else _cut_off(text)
    if not (body.type or body.code or body.message):
        return None
    message = (body.message or "")[:_MESSAGE_LENGTH]
    return replace(body, status=status or body.status, text=message, message=message)


def _decoded(text: str) -> Any:
    """Decode the JSON at the beginning of *text*, control characters in its strings included; None: there is none."""
    try:
        return _decoder.raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None


def _body(found: dict[str, Any]) -> ApiError:
    error = found.get("error")
    if not isinstance(error, dict) and isinstance(found.get("detail"), dict):
        error = found["detail"]
    while isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    if isinstance(error, dict):
        body = _of_object(error)
        is_own_form = found.get("type") == "error" and body.type in STATUS_BY_TYPE
        return replace(body, message=body.message or _message(found), is_own_form=is_own_form)
    body = _of_object(found)
    if body.type not in STATUS_BY_TYPE:
        body = replace(body, type=None)
    if isinstance(error, str) and re.fullmatch(_WORD, error):
        return replace(body, code=error[:_CODE_LENGTH], message=body.message or error)
    return replace(body, message=error) if isinstance(error, str) else body


def _of_object(error: dict[str, Any]) -> ApiError:
    kind, code, details = error.get("type"), error.get("code"), error.get("details")
    fine = details.get("error_code") if isinstance(details, dict) else None
    return ApiError(
        type=kind if isinstance(kind, str) and kind else None,
        code=_code(fine) or _code(code),
        status=_status(code),
        message=_message(error),
        is_whole=True,
    )


def _passed_on_body(body: ApiError) -> ApiError:
    """
    Return the inner body if a gateway passes on another server's body, after words of its own; else *body*.

    Source: LiteLLM, ``litellm.BadRequestError: AnthropicException - {"type":"error",…}. Received Model Group=…``.
    """
    message = body.message or ""
    at = message.find("{", 0, _PREFIX_LENGTH)
    if at < 0 or is_about_a_field(message):
        return body
    inner = _decoded(message[at:])
    if not isinstance(inner, dict) or not isinstance(inner.get("error"), dict):
        return body
    passed = _body(inner)
    if "exception" not in message[:at].lower() and not passed.is_own_form:
        return body
    return replace(
        body, type=passed.type or body.type, code=body.code or passed.code, message=passed.message or message
    )


def is_about_a_field(message: str) -> bool:
    """
    Whether a message is about a field of the request, such as ``messages.0.content: Input should be …``.

    Such a message may quote anything from the request, and is never about an account.
    """
    return re.match(_FIELD_PATH, message) is not None


def _cut_off(text: str) -> ApiError:
    """Parse the readable part of a body that was cut off."""
    at = text.find('"error":{')
    error = _decoded(text[at + len('"error":') :]) if at >= 0 else None
    if isinstance(error, dict):
        return _body({"type": "error" if text.startswith('{"type":"error"') else None, "error": error})
    kind, message = _TYPE.search(text, max(at, 0)), _MESSAGE.search(text, max(at, 0))
    return ApiError(type=kind and kind[1], message=message and message[1])


def _message(found: dict[str, Any]) -> str | None:
    values = map(found.get, ("message", "detail", "msg", "title"))
    return next((value for value in values if isinstance(value, str) and value), None)


def _code(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int) or _status(value) is not None:
        return None
    return str(value)[:_CODE_LENGTH] or None


def _status(value: Any) -> int | None:
    """Return *value* if it is an error's HTTP status, as a number or as text; gateways repeat that as their code."""
    return int(value) if re.fullmatch(_STATUS, str(value)) else None
