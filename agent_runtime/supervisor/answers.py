"""The answer to a task: the same for its first caller, for callers that join, and from the store for later ones."""

from __future__ import annotations

import functools
import logging
import math
import time
from typing import Any

import msgspec

from agent_runtime.claude.frames import decode
from agent_runtime.errors import AdmissionError, ErrorClass, MayHaveRun, StoreUnavailable
from agent_runtime.execution.execution import Execution
from agent_runtime.model.problem import problem, with_detail_object
from agent_runtime.model.records import SUCCESS, Answer, ExecutionRecord, Instant, Metadata, instant, to_json
from agent_runtime.model.state import Outcome
from agent_runtime.notifier import Notifier
from agent_runtime.settings import Settings
from agent_runtime.store.records import RecordStore
from agent_runtime.store.tables import UNREADABLE
from agent_runtime.store.transcripts import TranscriptReader
from agent_runtime.telemetry.live_text import LiveTexts
from agent_runtime.tokens.status import UNKNOWN_LIMIT_SECONDS

log = logging.getLogger(__name__)

COPIES = 4
"""How many copies of an answer's bytes are in memory while its fields are put together."""

LAST_BYTES = 64 << 10
"""How much of the end of a transcript is searched for a result."""


class Success(msgspec.Struct, frozen=True, kw_only=True):
    """
    The body of an execution that succeeded or was cancelled.

    Attributes:
        response: The CLI's final text.
        structured_output: The answer that meets the request's ``json_schema``; null: there is none.
        execution_log: Frames of the transcript: its start, its end, and always the ``result`` frame.
        truncated_log: Frames in between were left out.
    """

    execution_id: str
    status: str
    response: str | None
    structured_output: Any
    session_id: str | None
    execution_log: list[msgspec.Raw]
    truncated_log: bool
    metadata: Metadata
    timestamp: Instant


class KeptResult(msgspec.Struct, kw_only=True):
    """
    How an execution ended: the answer to its first caller, and the same in separate fields.

    Attributes:
        status_code: The HTTP status of that answer.
        answer: Its body.
        response: The CLI's final text; null where it failed.
        structured_output: The answer that meets the request's ``json_schema``; null: there is none.
        error: What went wrong; null where it did not fail.
        error_code: Its ``error_class``; null where it did not fail.
        terminal_reason: ``completed``, ``cancelled``, or the ``error_class``.
    """

    execution_id: str
    status_code: int
    answer: msgspec.Raw
    retained_at: Instant | None
    status: Outcome
    response: str | None
    structured_output: Any
    error: str | None
    error_code: str | None
    terminal_reason: str
    metadata: Metadata
    execution_log: list[msgspec.Raw]
    session_id: str | None
    truncated_log: bool


class StoredResult(msgspec.Struct, frozen=True):
    """
    A finished execution whose answer is stored; a caller can wait for it as for a running one.

    Answers are stored in one form, so the settings of a restart may change the form that is shown.

    Attributes:
        most_bytes: Memory that it takes at most to read the answer and to split it into fields.
    """

    record: ExecutionRecord
    records: RecordStore
    settings: Settings
    transcript: TranscriptReader
    most_bytes: int

    def answer(self) -> Answer:
        """
        Read the answer, in the form that callers get; callable from any thread.

        Raises:
            StoreUnavailable: The answer cannot be read, or was deleted meanwhile.
        """
        if (found := self.records.answer(self.record.execution_id)) is None:
            raise StoreUnavailable("the answer of this execution was deleted")
        try:
            return in_form(found, self.record, self.settings, self.transcript)
        except UNREADABLE as error:
            log.error("answer cannot be read: %s", error, extra={"execution_id": self.record.execution_id})
            raise StoreUnavailable("the answer of this execution is there, and cannot be read") from None

    def result(self) -> KeptResult:
        """Read the answer and split it into fields, with the transcript of a failure; raises as :meth:`answer`."""
        answer, record = self.answer(), self.record
        is_success = answer.status_code == SUCCESS
        if is_success:
            stored = msgspec.json.decode(answer.body, type=_StoredBody)
        else:
            lines, truncated = self.transcript.answer_log(self.settings.answer_log_limit)
            stored = _StoredBody(execution_log=frames_of(lines), truncated_log=truncated)
        error_class = record.error_class or ErrorClass.ERROR
        reason = "cancelled" if record.outcome is Outcome.CANCELLED else "completed"
        return KeptResult(
            execution_id=record.execution_id,
            status_code=answer.status_code,
            answer=msgspec.Raw(answer.body),
            retained_at=instant(record.ended_at),
            status=record.outcome or Outcome.FAILED,
            error=None if is_success else record.detail or error_class.sentence,
            error_code=None if is_success else str(error_class),
            terminal_reason=reason if is_success else str(error_class),
            metadata=record.metadata,
            session_id=record.session_id,
            **msgspec.structs.asdict(stored),
        )

    def answer_to_post(self) -> Answer:
        """
        Read the answer for a caller that would otherwise run the task again.

        Raises:
            MayHaveRun: The answer cannot be read.
        """
        try:
            return self.answer()
        except StoreUnavailable as error:
            raise may_have_run(error) from None

    @property
    def execution_id(self) -> str:
        """The id that callers know the execution by."""
        return self.record.execution_id

    async def finished(self) -> None:
        """Return at once, because the execution has finished."""


def may_have_run(error: StoreUnavailable) -> MayHaveRun:
    """Build the error for a task that cannot be run, because it is unknown whether it has run already."""
    return MayHaveRun(f"it may have run already: {error}; ask again later, or send it under another id")


class View(msgspec.Struct, frozen=True):
    """A record and its transcript, for reading; *changed* is notified when there is more to read."""

    record: ExecutionRecord
    transcript: TranscriptReader
    changed: Notifier
    live_texts: LiveTexts | None = None


def answer_to(execution: Execution, *, log_limit_bytes: int, current_generation: int | None) -> Answer:
    """
    Build the answer of a finished execution from its record and transcript.

    If the transcript could not be written or read, the answer lacks its log, and ``metadata.retained`` is false.
    """
    record, transcript = execution.record, execution.transcript
    if transcript.incomplete:
        execution.writer.mark_unretained()
    if record.outcome in (Outcome.SUCCESS, Outcome.CANCELLED):
        lines, truncated = transcript.answer_log(log_limit_bytes, execution.result_line)
        frames = frames_of(lines)
        is_lost = len(frames) < len(lines) or (transcript.last_line > 0 and not frames)
        if is_lost:
            execution.writer.mark_unretained()
        body = Success(
            execution_id=record.execution_id,
            status=str(record.outcome),
            response=execution.result_text,
            structured_output=msgspec.Raw((execution.structured_output or "null").encode()),
            session_id=record.session_id,
            execution_log=frames,
            truncated_log=truncated or is_lost,
            metadata=record.metadata,
            timestamp=instant(record.ended_at or record.created_at),
        )
        return Answer(SUCCESS, to_json(body))
    error_class = record.error_class or ErrorClass.ERROR
    error, used = execution.error, record.metadata.token_generation
    if isinstance(error, AdmissionError) and error.error_class is error_class:
        used = error.token_generation or used  # refused before an attempt could use it
    retry_after, resets_at = _when_again(execution, error_class)
    failure = problem(
        error_class,
        record.detail or error_class.sentence,
        code=error.code if error is not None else None,
        execution_id=record.execution_id,
        metadata=record.metadata,
        token_generation=used,
        token_stale=used is not None and current_generation is not None and current_generation > used,
        resets_at=resets_at,
    )
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    return Answer(failure.status, to_json(failure), headers)


def failed_answer(record: ExecutionRecord, error_class: ErrorClass = ErrorClass.ERROR) -> Answer:
    """Build the answer of an execution whose supervisor failed or was killed, from its record alone."""
    build = functools.partial(problem, error_class, error_class.sentence, execution_id=record.execution_id)
    try:
        body = to_json(build(metadata=record.metadata, token_generation=record.metadata.token_generation))
    except (UnicodeEncodeError, TypeError):
        # A field that cannot be encoded may be why the supervisor failed: answer without the metadata.
        body = to_json(build())
    return Answer(error_class.status, body)


def frames_of(lines: list[bytes]) -> list[msgspec.Raw]:
    """Return the lines of a transcript that are JSON: all, unless the disk has damaged some."""
    return [msgspec.Raw(line) for line in lines if _is_json(line)]


def has_result(transcript: TranscriptReader) -> bool:
    """Whether the CLI has given a result, as far as the last lines of a transcript say."""
    lines, _ = transcript.answer_log(LAST_BYTES)
    return any((frame := decode(line)) is not None and frame.type == "result" for line in lines)


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def in_form(answer: Answer, record: ExecutionRecord, settings: Settings, transcript: TranscriptReader) -> Answer:
    """Convert an answer as it is stored to the form that callers get, with the metadata of its record."""
    fields = msgspec.json.decode(answer.body, type=dict[str, msgspec.Raw])
    fields["metadata"] = _raw(record.metadata)  # counts that 0.1.0 stored may be null
    if answer.status_code == SUCCESS:
        fields.setdefault("structured_output", msgspec.Raw(b"null"))  # not stored by earlier versions
    elif settings.error_detail == "object":
        lines, _ = transcript.answer_log(settings.answer_log_limit)
        stored, error_class = msgspec.json.decode(answer.body, type=_StoredProblem), record.error_class
        failure = problem(error_class or ErrorClass.ERROR, stored.detail, code=stored.code, metadata=record.metadata)
        fields["detail"] = _raw(with_detail_object(failure, frames_of(lines)).detail)
    return msgspec.structs.replace(answer, body=msgspec.json.encode(fields))


class _StoredBody(msgspec.Struct):
    response: str | None = None
    structured_output: msgspec.Raw = msgspec.Raw(b"null")
    execution_log: list[msgspec.Raw] = []
    truncated_log: bool = False


class _StoredProblem(msgspec.Struct):
    detail: str
    code: str | None = None


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _when_again(execution: Execution, error_class: ErrorClass) -> tuple[int | None, float | None]:
    """Return the seconds for Retry-After and the end of a usage limit (epoch seconds), where known."""
    if isinstance(execution.error, AdmissionError):
        return execution.error.retry_after_seconds, execution.error.resets_at
    if error_class is ErrorClass.RATE_LIMIT:
        resets_at = execution.resets_at
        seconds = UNKNOWN_LIMIT_SECONDS if resets_at is None else resets_at - time.time()
        return max(1, math.ceil(seconds)), resets_at
    return error_class.retry_seconds, None
