"""
Parse the body of an error answer, whether the API, a gateway or a proxy wrote it.

Source: the API's documentation of errors; LiteLLM's ``ProxyException``; OpenAI's error object, which one-api, new-api
and OpenRouter use too; FastAPI's ``detail``; RFC 9457.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
from msgspec.structs import replace

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
_FIELD_PATH = re.compile(
    r"(?:messages|tools|tool_choice|system|metadata|thinking|max_tokens|temperature|top_k|top_p|stop_sequences|stream|betas"
    r"|container|mcp_servers|context_management|output_config|body)(?:[.\[][^ :]{0,240})?:"
)
"""The path of a request's field before the API's message about it; not ``model``: that message is about the model."""
_TYPE = re.compile('"type":"([^"]*)')
_MESSAGE = re.compile('"message":"([^"]*)')
_STATUS = re.compile("[345][0-9]{2}")
_WORD = re.compile("[._-]*[A-Za-z0-9][A-Za-z0-9._-]*")
_decoder = json.JSONDecoder(strict=False)


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
    if isinstance(error, str) and _WORD.fullmatch(error):
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
    return _FIELD_PATH.match(message) is not None


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
    return int(value) if _STATUS.fullmatch(str(value)) else None
