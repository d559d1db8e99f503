"""Errors as HTTP responses with a problem document (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response

from agent_runtime.errors import AccessDenied, AdmissionError, AgentRuntimeError, TokenLimited
from agent_runtime.model.problem import MEDIA_TYPE, problem, with_detail_object
from agent_runtime.model.records import to_json


def problem_response(
    error: AgentRuntimeError, *, headers: Mapping[str, str] | None = None, detail_is_object: bool = False
) -> Response:
    """
    Build the response for an error.

    Args:
        headers: Further headers to send.
        detail_is_object: ``detail`` becomes an object, as the setting ``error_detail`` asks for.
    """
    sent = dict(headers or {})
    if isinstance(error, AdmissionError) and error.retry_after_seconds is not None:
        sent["retry-after"] = str(error.retry_after_seconds)
    if isinstance(error, AccessDenied):
        sent["www-authenticate"] = "Bearer"  # RFC 9110 requires it in a 401
    generation = error.token_generation if isinstance(error, AdmissionError) else None
    body = problem(
        error.error_class,
        str(error),
        token_generation=generation,
        token_stale=None if generation is None else False,  # admission uses the newest generation
        code=error.code,
        status=error.status,
        resets_at=error.resets_at if isinstance(error, TokenLimited) else None,
    )
    if detail_is_object:
        body = with_detail_object(body)
    return Response(to_json(body), body.status, sent, MEDIA_TYPE)
