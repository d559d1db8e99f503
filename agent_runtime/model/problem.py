"""Errors as the caller sees them: ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from agent_runtime.errors import ErrorClass, plain_detail
from agent_runtime.model.records import Instant, Metadata, instant

MEDIA_TYPE = "application/problem+json"


class ErrorDetail(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """
    ``detail`` of an error where ``AGENT_RUNTIME_ERROR_DETAIL`` is ``object``.

    For backends that read the cost and the transcript of a failed execution from its ``detail``.

    Attributes:
        message: The sentence that is ``detail`` where the setting is ``text``.
        error_code: The same as ``error_class``, under the name that such backends know.
        metadata: The execution's metadata; where nothing ran, all counts are 0.
        execution_log: Frames of the execution's transcript, as in the answer of a success; empty where nothing ran.
        code: The same as ``code`` of the problem.
    """

    message: str
    error_code: str
    error_class: ErrorClass
    metadata: Metadata
    execution_log: list[msgspec.Raw]
    code: str | None = None


class Problem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """
    The body of every answer that is no success.

    Attributes:
        detail: A sentence for a person; never holds an id, nor words that call for another token unless that is meant.
            Where ``AGENT_RUNTIME_ERROR_DETAIL`` is ``object``, an object that holds the sentence.
        code: A finer distinction than ``error_class``, for programs.
        token_stale: A newer generation than the one that was used is loaded.
        resets_at: When the usage limit ends, where the API said so.
    """

    type: str
    title: str
    status: int
    detail: str | ErrorDetail
    error_class: ErrorClass
    code: str | None = None
    execution_id: str | None = None
    metadata: Metadata | None = None
    token_generation: int | None = None
    token_stale: bool | None = None
    resets_at: Instant | None = None


def problem(
    error_class: ErrorClass,
    detail: str,
    *,
    code: str | None = None,
    execution_id: str | None = None,
    metadata: Metadata | None = None,
    token_generation: int | None = None,
    token_stale: bool | None = None,
    resets_at: float | None = None,
    status: int | None = None,
) -> Problem:
    """Build the problem of an error; *resets_at* is in epoch seconds, *status* is given if not that of the class."""
    return Problem(
        type=f"urn:agent-runtime:problem:{error_class}",
        title=error_class.heading,
        status=status or error_class.status,
        detail=plain_detail(error_class, detail),
        error_class=error_class,
        code=code,
        execution_id=execution_id,
        metadata=metadata,
        token_generation=token_generation,
        token_stale=token_stale,
        resets_at=instant(resets_at),
    )


def with_detail_object(text: Problem, frames: list[msgspec.Raw] | None = None) -> Problem:
    """Return the same problem with an :class:`ErrorDetail` as its detail; *frames*: the transcript's lines."""
    if isinstance(text.detail, ErrorDetail):
        return text
    detail = ErrorDetail(
        message=text.detail,
        error_code=str(text.error_class),
        error_class=text.error_class,
        metadata=text.metadata or Metadata(token_generation=text.token_generation),
        execution_log=frames or [],
        code=text.code,
    )
    return replace(text, detail=detail)
