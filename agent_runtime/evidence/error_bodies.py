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
    body = _body(found) if isinstance(found, dict) else _cut_off(text)
    if not (body.type or body.code or body.message):
        return None
    message = (body.message or "")[:_MESSAGE_LENGTH]
    return msgspec.structs.replace(body, status=status or body.status, text=message, message=message)


def _decoded(text: str) -> Any:
    """Decode the JSON at the beginning of *text*, control characters in its strings included; None: there is none."""
    try:
        return _decoder.raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None


def _body(found: dict[str, Any]) -> ApiError:
    error = found.get("error")
    if not isinstance(error, dict) and isinstance(found.get("detail"), dict):
        detail = found["detail"]
        error = detail["error"] if isinstance(detail.get("error"), dict) else detail
    while isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    if isinstance(error, dict):
        body = _of_object(error)
        message = body.message or _text(found, "message", "detail", "msg")
        return _passed_on_body(msgspec.structs.replace(body, message=message, is_own_form=_is_own(found, body.type)))
    kind = found.get("type")
    message = _text(found, "message", "detail", "msg", "title")
    code = _code(found.get("code"))
    if isinstance(error, str) and _is_word(error):
        code, message = error[:_CODE_LENGTH], message or error
    elif isinstance(error, str):
        message = error
    return _passed_on_body(
        ApiError(
            type=kind if isinstance(kind, str) and kind in STATUS_BY_TYPE else None,
            code=code,
            status=_status(found.get("code")),
            message=message,
            is_whole=True,
        )
    )


def _is_own(found: dict[str, Any], kind: str | None) -> bool:
    return found.get("type") == "error" and kind in STATUS_BY_TYPE


def _of_object(error: dict[str, Any]) -> ApiError:
    details = error.get("details")
    fine = details.get("error_code") if isinstance(details, dict) else None
    return ApiError(
        type=_text(error, "type"),
        code=_code(fine) or _code(error.get("code")),
        status=_status(error.get("code")),
        message=_text(error, "message", "msg", "detail"),
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
    passed = _of_object(inner["error"])
    if "exception" not in message[:at].lower() and not _is_own(inner, passed.type):
        return body
    return msgspec.structs.replace(
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
    whole = _decoded(text[at + len('"error":') :]) if at >= 0 else None
    if isinstance(whole, dict):
        body = _of_object(whole)
        is_own = text.startswith('{"type":"error"') and body.type in STATUS_BY_TYPE
        return msgspec.structs.replace(body, is_own_form=is_own)
    kind, message = _TYPE.search(text, max(at, 0)), _MESSAGE.search(text, max(at, 0))
    return ApiError(type=kind and kind[1], message=message and message[1])


def _text(found: dict[str, Any], *names: str) -> str | None:
    return next((value for name in names if isinstance(value := found.get(name), str) and value), None)


def _code(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int) or _status(value) is not None:
        return None
    return str(value)[:_CODE_LENGTH] or None


def _status(value: Any) -> int | None:
    """Return *value* if it is an error's HTTP status, as a number or as text; gateways repeat that as their code."""
    text = str(value)
    return int(text) if len(text) == 3 and text.isascii() and text.isdigit() and 300 <= int(text) < 600 else None


def _is_word(text: str) -> bool:
    return text.replace("_", "").replace("-", "").replace(".", "").isalnum() and text.isascii()
