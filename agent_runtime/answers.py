"""The answer to a task: one body for the first caller, for those who join, and for those who come back later."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import msgspec

from agent_runtime.errors import AdmissionError, ErrorClass, TokenLimited
from agent_runtime.model import SUCCESS, Answer, Metadata, rfc3339
from agent_runtime.problem import problem
from agent_runtime.standing import UNKNOWN_LIMIT_SECONDS
from agent_runtime.state import Outcome
from agent_runtime.verdict import SENTENCES

if TYPE_CHECKING:
    from agent_runtime.execution import Execution
    from agent_runtime.model import ExecutionRecord


OVERLOADED_RETRY_SECONDS = 30


class Success(msgspec.Struct, frozen=True, kw_only=True):
    """
    The body of an execution that succeeded or was cancelled.

    Attributes:
        response: The CLI's final text.
        execution_log: Frames of the transcript: its start, its end, and always the ``result`` frame.
        truncated_log: Frames in between were left out.
    """

    execution_id: str
    status: str
    response: str | None
    session_id: str | None
    execution_log: list[msgspec.Raw]
    truncated_log: bool
    metadata: Metadata
    timestamp: str


def answer_to(execution: Execution, *, log_limit_bytes: int, current_generation: int | None) -> Answer:
    """Build the answer of a finished execution from its record and transcript."""
    record = execution.record
    if record.outcome in (Outcome.SUCCESS, Outcome.CANCELLED):
        lines, truncated = execution.reader.answer_log(log_limit_bytes, execution.result_line)
        body = Success(
            execution_id=record.execution_id,
            status=str(record.outcome),
            response=execution.result_text,
            session_id=record.session_id,
            execution_log=[msgspec.Raw(line) for line in lines],
            truncated_log=truncated or execution.transcript.incomplete,
            metadata=record.metadata,
            timestamp=rfc3339(record.ended_at or record.created_at),
        )
        return Answer(SUCCESS, msgspec.json.encode(body))
    error_class = record.error_class or ErrorClass.ERROR
    used = record.metadata.token_generation
    retry_after, resets_at = _when_again(execution, error_class)
    failure = problem(
        error_class,
        record.detail or SENTENCES.get(error_class, "the execution failed"),
        execution_id=record.execution_id,
        metadata=record.metadata,
        token_generation=used,
        token_stale=used is not None and current_generation is not None and current_generation > used,
        resets_at=resets_at,
    )
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    return Answer(failure.status, msgspec.json.encode(failure), headers)


def failed_answer(record: ExecutionRecord, error_class: ErrorClass = ErrorClass.ERROR) -> Answer:
    """Build the answer of an execution that nobody can build a better one of: its supervisor failed, or was killed."""
    failure = problem(
        error_class,
        SENTENCES[error_class],
        execution_id=record.execution_id,
        metadata=record.metadata,
        token_generation=record.metadata.token_generation,
    )
    try:
        body = msgspec.json.encode(failure)
    except (UnicodeEncodeError, TypeError):
        # What cannot be written may be why the supervisor failed; whoever waits gets an answer all the same.
        body = msgspec.json.encode(problem(error_class, SENTENCES[error_class], execution_id=record.execution_id))
    return Answer(failure.status, body)


def _when_again(execution: Execution, error_class: ErrorClass) -> tuple[int | None, float | None]:
    """Tell in how many seconds it is worth asking again, and when a usage limit ends, where either is known."""
    if isinstance(execution.error, TokenLimited):
        return execution.error.retry_after_seconds, execution.error.resets_at
    if isinstance(execution.error, AdmissionError):
        return execution.error.retry_after_seconds, None
    if error_class is ErrorClass.RATE_LIMIT:
        resets_at = execution.resets_at
        seconds = UNKNOWN_LIMIT_SECONDS if resets_at is None else resets_at - time.time()
        return max(1, math.ceil(seconds)), resets_at
    if error_class in (ErrorClass.OVERLOADED, ErrorClass.UPSTREAM, ErrorClass.NETWORK):
        return OVERLOADED_RETRY_SECONDS, None
    return None, None
