"""The record of one execution, and the only code that changes it."""

from __future__ import annotations

import copy
import time
import uuid

from agent_runtime.claude.invocation import Session, runs_state_changing_command
from agent_runtime.errors import ErrorClass
from agent_runtime.evidence.verdict import Verdict, without_repeated_advice
from agent_runtime.execution.attempt_data import AttemptReport, Reached, Spawned
from agent_runtime.model.records import (
    COMPACT_EVENTS_KEPT,
    AttemptRecord,
    ExecutionRecord,
    Metadata,
    TokenRecord,
    Usage,
    context_window_of,
)
from agent_runtime.model.state import Outcome, Step, StopReason, transition
from agent_runtime.model.usage import COST_DIGITS, AttemptUsage, ModelUsage, added, split, total_of
from agent_runtime.secret.generations import Generation
from agent_runtime.settings import Settings
from agent_runtime.store.tasks import NewTask


class RecordWriter:
    """
    Write one record; its state changes only by :func:`~agent_runtime.model.state.transition`.

    Nothing is written to the store here: the caller saves the record when its change is complete.
    """

    def __init__(self, record: ExecutionRecord) -> None:
        self.record = record
        self._earlier_detail = record.detail
        self._cpu_seconds_before = 0.0
        self._before = Metadata()

    @classmethod
    def for_task(
        cls,
        new: NewTask,
        execution_id: str,
        session: Session,
        settings: Settings,
        *,
        previous: ExecutionRecord | None = None,
        cwd: str | None = None,
    ) -> RecordWriter:
        """
        Begin the record of a task, or go on with *previous*: its attempts stay, how it ended does not.

        Args:
            cwd: The directory that the execution runs in, relative to the workspace; None: the workspace itself.
        """
        task = new.task
        record = previous or ExecutionRecord(
            execution_id=execution_id,
            created_at=time.time(),
            metadata=Metadata(context_window=context_window_of(task.model)),
        )
        writer, metadata = cls(record), record.metadata
        if record.request_digest != task.digest:  # else keep the flag, which is set when the CLI swallows the message
            metadata.sent_as_text = runs_state_changing_command(
                task, settings.workspace, settings.workspace / (cwd or "."), settings.config_dir
            )
        if previous is not None:
            writer.apply(Step.REQUEUED)
            record.outcome = record.error_class = record.detail = record.ended_at = None
            metadata.retained = True
        if session.prompt is None:
            writer.record_session(str(session.session_id) if session.resumes else None)
            record.resumable = False
            record.cost_before_usd = metadata.cost_usd
        record.request_digest = task.digest
        record.cwd, record.env_names = cwd, sorted(task.env or ())
        metadata.ignored_fields = new.ignored_fields
        record.title, record.prompt = task.title or record.title, new.prompt if settings.show_prompts else None
        record.labels = record.labels if task.labels is None else task.labels
        return writer

    def apply(self, step: Step) -> None:
        """
        Change the state.

        Raises:
            IllegalTransition: *step* cannot be taken from the present state.
        """
        self.record.state = transition(self.record.state, step)

    @property
    def spent_usd(self) -> float:
        """The cost of the work of the present request, as far as it is known."""
        return self.record.metadata.cost_usd - self.record.cost_before_usd

    def record_session(self, session_id: str | None) -> None:
        """Record the session that the execution goes on in."""
        self.record.session_id = self.record.metadata.session_id = session_id

    def prepare_attempt(self, session: Session) -> None:
        """Record the session before the CLI reports it: an execution that is cut off goes on in it."""
        self.record_session(str(session.session_id))
        if session.prompt is None:
            # None: if the execution is cut off now, only the CLI can tell whether it has stored the session begun here.
            self.record.resumable = False if session.resumes else None

    def record_spawn(self, event: Spawned) -> None:
        """Record the attempt's process and its token."""
        record, tokens = self.record, [_token_record(event.generation, event.started_at)]
        record.attempts.append(AttemptRecord(pid=event.pid, started_at=event.started_at, tokens=tokens))
        record.metadata.attempts = len(record.attempts)
        record.started_at = record.started_at or event.started_at
        self._before = copy.copy(record.metadata)
        self._note_token(event.generation)
        self.apply(Step.SPAWNED)

    def record_usage(self, usage: AttemptUsage) -> None:
        """Record what the running attempt has used up to now; a call with the same *usage* again changes nothing."""
        metadata, before, total = self.record.metadata, self._before, total_of(usage.by_model)
        for name in ModelUsage.__struct_fields__:
            setattr(metadata, name, round(getattr(before, name) + getattr(total, name), COST_DIGITS))
        metadata.usage_by_model = added(before.usage_by_model, usage.by_model)
        metadata.context_tokens = usage.context_tokens or before.context_tokens
        metadata.model_name = usage.model_name or metadata.model_name
        metadata.context_window = usage.context_window or metadata.context_window
        tokens = self.record.attempts[-1].tokens
        shares = split(usage.by_model, [usage.seen.get(token.generation, {}) for token in tokens])
        for token, share in zip(tokens, shares, strict=True):
            token.usage_by_model = share

    def record_token(self, event: Reached) -> None:
        """Record that the running attempt has a newer token."""
        self.record.attempts[-1].tokens.append(_token_record(event.generation, event.delivered_at))
        self._note_token(event.generation)

    def record_held(self, *, is_held: bool) -> bool:
        """Record whether a request of the running attempt is held; return whether that is new."""
        has_changed = self.record.held is not is_held
        self.record.held = is_held
        return has_changed

    def mark_resumable(self) -> bool:
        """Record that the session holds work to go on with; return whether that has changed the record."""
        has_changed = not self.record.resumable
        self.record.resumable = True
        return has_changed

    def mark_session_lost(self) -> None:
        """Record that the session cannot be resumed."""
        self.record.resumable = False

    def mark_session_restarted(self) -> None:
        """Record that a session that could not be used any more was given up for a new one."""
        self.record.metadata.session_restarted = True

    def count_resume(self) -> bool:
        """Count a resume if an attempt has run before; return whether one has."""
        has_attempts = bool(self.record.attempts)
        self.record.metadata.resumes += has_attempts
        return has_attempts

    def mark_sent_as_text(self) -> None:
        """Record that the message must be sent as text, because the CLI took it for a command of its own."""
        self.record.metadata.sent_as_text = True

    def record_measurement(self, usage: Usage) -> None:
        """Record what the execution's processes take now; add the processor time of earlier attempts to *usage*."""
        usage.cpu_seconds += self._cpu_seconds_before
        self.record.usage = self.record.usage.with_peaks_of(usage)

    def record_attempt_end(self, report: AttemptReport, session: Session) -> None:
        """Add an attempt's report to the record."""
        record, run_stats = self.record, report.run_stats
        record.held = False
        if report.cpu_seconds is not None:
            self._cpu_seconds_before += report.cpu_seconds
            record.usage.cpu_seconds = max(record.usage.cpu_seconds, self._cpu_seconds_before)
        if run_stats.has_init and (session_id := _uuid_text(run_stats.session_id)):
            self.record_session(session_id)
        if run_stats.has_progress or session.prompt is None:
            record.resumable = run_stats.has_progress
        if report.pid is not None:
            attempt = record.attempts[-1]
            attempt.ended_at, attempt.evidence, attempt.survivors = report.ended_at, report.evidence, report.survivors
            if report.ending is not None:
                attempt.exit_code, attempt.stop_reason = report.ending.exit_code, report.ending.stop_reason
            usage = run_stats.usage.so_far
            self.record_usage(usage)
            elapsed_ms = max(0.0, report.ended_at - report.started_at) * 1000
            record.metadata.duration_ms += elapsed_ms if usage.duration_ms is None else usage.duration_ms
            record.metadata.estimated |= usage.is_estimated
        metadata = record.metadata
        metadata.attempts = len(record.attempts)
        metadata.tool_count += run_stats.tool_count
        metadata.cli_version = run_stats.cli_version or metadata.cli_version
        metadata.compact_events = [*metadata.compact_events, *run_stats.compact_events][:COMPACT_EVENTS_KEPT]
        metadata.background_tasks_pending_at_exit = run_stats.background_tasks
        metadata.background_ended = report.background_ended
        metadata.stop_reason = run_stats.answer.stop_reason or metadata.stop_reason

    def finish(self, final: Verdict) -> None:
        """Make the record final; if it ends with the same detail as the last time, do not advise to send it again."""
        record = self.record
        self.apply(Step.ENDED)
        record.outcome, record.error_class = final.outcome, final.error_class
        record.detail = without_repeated_advice(final.detail, final.error_class, self._earlier_detail)
        record.ended_at, record.held = time.time(), False

    def finish_interrupted(self) -> None:
        """Make the record of an execution final that an earlier supervisor left unfinished."""
        self.finish(Verdict(Outcome.FAILED, ErrorClass.INTERRUPTED, ErrorClass.INTERRUPTED.sentence))
        for attempt in self.record.attempts:
            if attempt.ended_at is None:
                attempt.ended_at, attempt.stop_reason = self.record.ended_at, StopReason.SHUTDOWN
                self.record.metadata.estimated = True
        self.record.metadata.attempts = len(self.record.attempts)

    def mark_answer_failed(self) -> None:
        """Record that the answer of an execution that has ended could not be built."""
        record = self.record
        record.outcome, record.error_class = Outcome.FAILED, ErrorClass.ERROR
        record.detail = ErrorClass.ERROR.sentence

    def mark_unretained(self) -> None:
        """Record that the record or the transcript could not be written or read."""
        self.record.metadata.retained = False

    def _note_token(self, generation: Generation) -> None:
        self.record.metadata.token_generation = generation.number
        self.record.metadata.token_fingerprint = generation.token.fingerprint


def _token_record(generation: Generation, delivered_at: float) -> TokenRecord:
    return TokenRecord(
        generation=generation.number,
        fingerprint=generation.token.fingerprint,
        delivered_at=delivered_at,
        subscription=generation.subscription,
    )


def _uuid_text(text: str | None) -> str | None:
    """Return a frame's session id if it is a UUID, else None: any program can print a frame."""
    try:
        return None if text is None else str(uuid.UUID(text))
    except ValueError:
        return None
