"""One execution: the only writer of its record, from admission to its answer."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
import uuid
from typing import TYPE_CHECKING, TypeVar

from msgspec.structs import replace

from agent_runtime.claude.slash_commands import has_text_behind, would_change_something
from agent_runtime.errors import AgentRuntimeError, ErrorClass, SpawnFailed, TokenLimited, plain_detail
from agent_runtime.evidence.verdict import Verdict, again, limit_sentence, verdict
from agent_runtime.execution.attempt import Attempt
from agent_runtime.execution.attempt_report import (
    Answered,
    AttemptReport,
    Progress,
    Reached,
    Spawned,
    Stopping,
    measure,
)
from agent_runtime.execution.attempt_spec import AttemptSpec
from agent_runtime.model.records import (
    COMPACT_EVENTS_KEPT,
    Answer,
    AttemptRecord,
    ExecutionRecord,
    Metadata,
    TokenRecord,
    Usage,
    context_window_of,
)
from agent_runtime.model.state import Event, Outcome, Phase, StopReason, transition
from agent_runtime.notifier import Notifier

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.claude.invocation import Session
    from agent_runtime.execution.attempt_report import AttemptEvent
    from agent_runtime.execution.attempt_spec import AttemptContext
    from agent_runtime.model.task import Task
    from agent_runtime.secret.generations import Generation
    from agent_runtime.store.transcripts import TranscriptReader, TranscriptWriter

log = logging.getLogger(__name__)


class Execution:
    """
    One task, from admission to its final record.

    It belongs to the supervisor: callers look on, wait for :meth:`finished`, or call :meth:`request_stop`. All
    methods run on the event loop's thread; the attempt has a thread of its own and sends notes.

    Args:
        accepted: Called when the API answered a request: made with which generation, and since when the child had it.
        session: Of its first attempt.
    """

    def __init__(
        self,
        task: Task,
        *,
        execution_id: str,
        ignored_fields: list[str],
        attempt_context: AttemptContext,
        transcript: TranscriptWriter,
        reader: TranscriptReader,
        next_mark: Callable[[], str],
        timeout_seconds: float,
        accepted: Callable[[Generation, float], None],
        save: Callable[[ExecutionRecord], None],
        tell: Callable[[str, int], None],
        session: Session,
        previous: ExecutionRecord | None = None,
    ) -> None:
        self.task = task
        self.transcript = transcript
        self.reader = reader
        self.changed = Notifier()
        self.result_text: str | None = None
        self.result_line: int | None = None
        self.error: AgentRuntimeError | None = None
        self._attempt_context = attempt_context
        self._next_mark = next_mark
        self._accepted = accepted
        self._save = save
        self._tell = tell
        self._has_started = False
        self._admitted_at = time.monotonic()
        self._timeout_seconds = timeout_seconds
        self._attempt: Attempt | None = None
        self._requested_stop: StopReason | None = None
        self._finished = asyncio.Event()
        self.slot: int | None = None
        """Which slot it has, from 1."""
        self.usage = Usage()
        """What its processes take now, looked at once a second."""
        self.shim_pid: int | None = None
        self._cpu_seconds_before = 0.0
        self.stopped = asyncio.Event()
        """Set as soon as anybody asked for the end."""
        self.resets_at: float | None = None
        """When the usage limit ends that it met, epoch seconds, where the API said so."""
        self.answer: Answer | None = None
        """What every caller gets, as soon as it has finished."""
        self._told_before = previous.detail if previous is not None else None
        self.record = previous or ExecutionRecord(
            execution_id=execution_id,
            created_at=time.time(),
            metadata=Metadata(context_window=context_window_of(task.model)),
        )
        settings = attempt_context.settings
        metadata = self.record.metadata
        if self.record.request_digest != task.digest:  # else it is the same message, which may have been swallowed
            metadata.sent_as_text = would_change_something(task, settings.workspace, settings.config_dir)
        if previous is not None:
            self._begin_again(previous)
        if session.prompt is None:
            self._note_session(str(session.session_id) if session.resumes else None)
            self.record.resumable = False
        self.record.request_digest = task.digest
        self.record.metadata.ignored_fields = ignored_fields

    def __repr__(self) -> str:
        return f"<Execution {self.record.execution_id} {self.record.state}>"

    @property
    def execution_id(self) -> str:
        """The id callers know it by."""
        return self.record.execution_id

    @property
    def phase(self) -> Phase:
        """Where it is now."""
        return self.record.state

    @property
    def total_at(self) -> float:
        """When its time is over, monotonic seconds."""
        return self._admitted_at + self._timeout_seconds

    @property
    def requested_stop(self) -> StopReason | None:
        """Why it was asked to stop, if it was."""
        return self._requested_stop

    @property
    def held(self) -> Generation | None:
        """The generation that its running attempt holds; None: no attempt runs."""
        return None if self._attempt is None else self._attempt.held

    def _begin_again(self, record: ExecutionRecord) -> None:
        """Go on with a finished record: its attempts stay, how it ended does not."""
        self._go(Event.REQUEUED)
        record.outcome = record.error_class = record.detail = record.ended_at = None
        record.metadata.retained = True

    @property
    def park_seconds(self) -> float | None:
        """How long the request lets it wait for a newer token; None: it does not say."""
        return self.task.park_seconds

    async def finished(self) -> None:
        """Wait for the final record."""
        await self._finished.wait()

    def token_loaded(self, generation: Generation) -> None:
        """Note that a newer generation is loaded; it may have reached the running child."""
        if self._attempt is not None:
            self._attempt.token_loaded(generation)

    def request_stop(self, reason: StopReason, *, at_once: bool = False) -> None:
        """Ask for the end, in any phase, any number of times; the first reason wins. *at_once*: without the grace."""
        if self.phase is Phase.FINISHED:
            return
        if self._requested_stop is None:
            self._requested_stop = reason
        self.stopped.set()
        if self._attempt is not None:
            self._attempt.request_stop(reason, at_once=at_once)
        self.changed.notify()

    def measured(self, usage: Usage) -> None:
        """Take what its processes were seen to take."""
        self.usage = usage
        usage.cpu_seconds += self._cpu_seconds_before
        self.record.usage = self.record.usage.with_peaks_of(usage)

    def park(self) -> None:
        """Note that it waits for a newer token, without a slot."""
        self._move(Event.PARKED)

    def requeue(self) -> None:
        """Note that it waits for a slot again."""
        self._move(Event.REQUEUED)

    def end(self, final: Verdict) -> None:
        """Make the record final; also for an execution that never got a slot. :meth:`conclude` follows."""
        record = self.record
        self._go(Event.ENDED)
        record.outcome = final.outcome
        record.error_class = final.error_class
        record.detail = again(self._detail_of(final), final.error_class, self._told_before)
        record.ended_at = time.time()
        self.transcript.close()
        self._attempt_context.counts.observe("execution_duration_seconds", time.monotonic() - self._admitted_at)
        self._attempt_context.counts.count("transcript_lines_unwritten", by=self.transcript.missing_lines)
        log.info(
            "execution finished: outcome=%s error_class=%s attempts=%d",
            record.outcome,
            record.error_class,
            len(record.attempts),
            extra={"execution_id": record.execution_id},
        )

    def conclude(self, answer: Answer) -> None:
        """Let everybody have the answer."""
        self.answer = answer
        self._finished.set()
        self.changed.notify()

    # -- one attempt

    async def attempt(self, session: Session) -> AttemptReport:
        """Run one CLI process in a thread of its own, with the slot the caller holds for it."""
        if self.phase in (Phase.RUNNING, Phase.STOPPING):
            self._move(Event.REQUEUED)
        spec = AttemptSpec(
            execution_id=self.execution_id,
            task=self.task,
            session=replace(session, as_text=self.record.metadata.sent_as_text),
            mark=self._next_mark(),
            total_at=self.total_at,
        )
        # Known before the CLI says it: an execution that is cut off goes on in this session.
        self._note_session(str(session.session_id))
        if session.prompt is None:
            # Unknown, where it is cut off now: the CLI tells whether it knows a session that this attempt has begun.
            self.record.resumable = False if session.resumes else None
        loop = asyncio.get_running_loop()
        notes = _Notes(loop, self._take)
        attempt = self._attempt = Attempt(spec, self._attempt_context, self.transcript, notes.put)
        if self._requested_stop is not None:
            attempt.request_stop(self._requested_stop)
        report: asyncio.Future[AttemptReport] = loop.create_future()
        # In a copy of this context, so that what the thread logs says whom it is about.
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(_run_in_thread, attempt, loop, report), name=f"attempt-{spec.mark}")
        try:
            thread.start()
        except RuntimeError:
            attempt.abandon()
            return AttemptReport(started_at=time.time(), error=SpawnFailed("cannot start a thread for the attempt"))
        try:
            return self._add_up(await report, session)
        finally:
            self._attempt = None

    def _take(self, note: AttemptEvent) -> None:
        """Take what the attempt's thread says."""
        record = self.record
        if isinstance(note, Spawned):
            self._attempt_context.counts.count("attempts")
            self.shim_pid = note.shim_pid
            token = note.generation.token
            record.attempts.append(
                AttemptRecord(
                    pid=note.pid,
                    started_at=note.started_at,
                    tokens=[_token_record(note.generation, note.started_at)],
                )
            )
            record.started_at = record.started_at or note.started_at
            record.metadata.token_generation = note.generation.number
            record.metadata.token_fingerprint = token.fingerprint
            self._go(Event.SPAWNED)
            self._save(record)
            if not self._has_started:
                self._has_started = True
                self._tell("execution.started", note.generation.number)
            log.info(
                "attempt spawned: pid=%d fingerprint=%s",
                note.pid,
                token.fingerprint,
                extra={"execution_id": record.execution_id, "generation": note.generation.number},
            )
        elif isinstance(note, Reached):
            record.attempts[-1].tokens.append(_token_record(note.generation, note.delivered_at))
            record.metadata.token_generation = note.generation.number
            record.metadata.token_fingerprint = note.generation.token.fingerprint
            self._save(record)
        elif isinstance(note, Answered):
            if not record.resumable:
                record.resumable = True
                self._save(record)
            self._attempt_context.counts.answered(note.generation, time.time())
            self._accepted(note.generation, note.since)
        elif isinstance(note, Stopping):
            if self.phase is Phase.RUNNING:
                self._go(Event.STOP_REQUESTED)
                self._save(record)
            self._attempt_context.counts.count("attempt_stops", note.reason)
            log.info("attempt stopping: reason=%s", note.reason, extra={"execution_id": record.execution_id})
        self.changed.notify()

    def _add_up(self, report: AttemptReport, session: Session) -> AttemptReport:
        """Put what the attempt amounts to into the record."""
        record, run_stats = self.record, report.run_stats
        self.shim_pid, self.usage = None, Usage()
        if report.cpu_seconds is not None:
            self._attempt_context.counts.count("executions_cpu_seconds", by=report.cpu_seconds)
            self._cpu_seconds_before += report.cpu_seconds
            record.usage.cpu_seconds = max(record.usage.cpu_seconds, self._cpu_seconds_before)
        measure(report, self._attempt_context.counts)
        if run_stats.has_init and (session_id := _uuid_text(run_stats.session_id)):
            self._note_session(session_id)
        if run_stats.has_progress or session.prompt is None:
            record.resumable = run_stats.has_progress
        self.result_text = run_stats.answer_text
        self.result_line = report.result_line or self.result_line
        if report.pid is not None:
            attempt = record.attempts[-1]
            attempt.ended_at = report.ended_at
            attempt.evidence = report.evidence
            if report.ending is not None:
                attempt.exit_code = report.ending.exit_code
                attempt.stop_reason = report.ending.stop_reason
            if report.sweep is not None and report.sweep.survivors:
                attempt.survivors = report.sweep.survivors
                log.error(
                    "processes survived the sweep: %d",
                    report.sweep.survivors,
                    extra={"execution_id": self.execution_id},
                )
        metadata = record.metadata
        metadata.attempts = len(record.attempts)
        metadata.cost_usd += _count(run_stats.cost_usd)
        metadata.duration_ms += _count(run_stats.duration_ms)
        metadata.num_turns += _count(run_stats.num_turns)
        metadata.tool_count += run_stats.tool_count
        metadata.model_name = run_stats.model_name or metadata.model_name
        metadata.cli_version = run_stats.cli_version or metadata.cli_version
        metadata.context_window = run_stats.context_window or metadata.context_window
        metadata.compact_events = [*metadata.compact_events, *run_stats.compact_events][:COMPACT_EVENTS_KEPT]
        metadata.background_tasks_pending_at_exit = run_stats.background_tasks
        metadata.background_ended = report.background_ended
        metadata.stop_reason = run_stats.answer.stop_reason or metadata.stop_reason
        if (usage := run_stats.usage) is not None:
            metadata.input_tokens += _count(usage.input_tokens)
            metadata.output_tokens += _count(usage.output_tokens)
            metadata.cache_creation_tokens += _count(usage.cache_creation_input_tokens)
            metadata.cache_read_tokens += _count(usage.cache_read_input_tokens)
        return report

    def give_up_session(self) -> None:
        """Note that nobody can go on in its session."""
        self.record.resumable = False

    def was_swallowed(self, report: AttemptReport) -> bool:
        """
        Whether the CLI took the message for a command of its own, and answered it itself though it has more to say.

        If so, the next attempt sends it as text.
        """
        metadata, answer = self.record.metadata, report.run_stats.answer
        if metadata.sent_as_text or not (answer.is_without_model and has_text_behind(self.task)):
            return False
        metadata.sent_as_text = True
        return True

    def _note_session(self, session_id: str | None) -> None:
        self.record.session_id = self.record.metadata.session_id = session_id

    def judge(self, report: AttemptReport) -> Verdict:
        """Say how an attempt ended."""
        self.error = None
        if report.error is not None:
            self.error = report.error
            detail = str(report.error)
            if isinstance(report.error, SpawnFailed):
                detail = self._attempt_context.cli.not_spawned(report.error)
            return Verdict(Outcome.FAILED, report.error.error_class, detail)
        if report.ending is None:
            return Verdict(Outcome.FAILED, ErrorClass.ERROR, "the attempt ended without a trace")
        final = verdict(report.ending)
        self._attempt_context.cli.ended(report.ending, final)
        return final

    @property
    def limited_until(self) -> float | None:
        """When the usage limit ends that it was turned away for, or that it met; epoch seconds, where known."""
        return self.error.resets_at if isinstance(self.error, TokenLimited) else self.resets_at

    def _detail_of(self, final: Verdict) -> str | None:
        """Say what went wrong, without ids, and without words that backends act on unless they are meant."""
        detail = final.detail
        if final.error_class is ErrorClass.RATE_LIMIT:
            return limit_sentence(self.limited_until)
        if detail is None:
            return None
        ids = [self.execution_id, self.record.session_id or self.execution_id]
        if any(known in detail for known in ids):
            detail = detail.split(":", 1)[0]
        return plain_detail(final.error_class or ErrorClass.ERROR, detail)

    def _move(self, event: Event) -> None:
        """Change the phase and let everybody know."""
        self._go(event)
        self._save(self.record)
        self.changed.notify()

    def _go(self, event: Event) -> None:
        self.record.state = transition(self.record.state, event)


def _uuid_text(text: str | None) -> str | None:
    """Take a session id from a frame only if it is one: anything can print a frame."""
    try:
        return None if text is None else str(uuid.UUID(text))
    except ValueError:
        return None


def _token_record(generation: Generation, delivered_at: float) -> TokenRecord:
    return TokenRecord(
        generation=generation.number, fingerprint=generation.token.fingerprint, delivered_at=delivered_at
    )


MOST = 2**53
"""Above this a JSON number is not exact everywhere (RFC 8259, 6)."""

N = TypeVar("N", int, float)


def _count(told: N | None) -> N:
    """Take a number from a frame for a count only if it can be one: anything can print a frame."""
    return told if told is not None and 0 <= told <= MOST else 0


class _Notes:
    """Carry notes from an attempt's thread to the event loop; of progress, one at a time is enough."""

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[AttemptEvent], None]) -> None:
        self._loop = loop
        self._take = take
        self._progress_under_way = False

    def put(self, note: AttemptEvent) -> None:
        if not isinstance(note, Progress):
            self._send(self._take, note)
        elif not self._progress_under_way:
            self._progress_under_way = True
            self._send(self._progress, note)

    def _progress(self, note: AttemptEvent) -> None:
        self._progress_under_way = False
        self._take(note)

    def _send(self, call: Callable[[AttemptEvent], None], note: AttemptEvent) -> None:
        try:
            self._loop.call_soon_threadsafe(call, note)
        except RuntimeError:
            log.debug("note came after the event loop had closed")


def _run_in_thread(attempt: Attempt, loop: asyncio.AbstractEventLoop, report: asyncio.Future[AttemptReport]) -> None:
    outcome: AttemptReport | BaseException
    try:
        outcome = attempt.run()
    except BaseException as error:  # noqa: BLE001 - carried over to the loop, where it is raised
        outcome = error
    try:
        loop.call_soon_threadsafe(_settle, report, outcome)
    except RuntimeError:
        log.error("attempt ended after the event loop had closed")


def _settle(future: asyncio.Future[AttemptReport], outcome: AttemptReport | BaseException) -> None:
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
