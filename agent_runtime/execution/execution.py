"""One execution, from its admission to its answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator

import msgspec

from agent_runtime.claude.invocation import Session, has_text_after_command
from agent_runtime.delivery.cli_check import CliCheck
from agent_runtime.delivery.delivery import HeldRequest
from agent_runtime.errors import AgentRuntimeError, ErrorClass, SpawnFailed, TokenLimited, plain_detail
from agent_runtime.evidence.verdict import UNSTARTED, Verdict, limit_sentence, verdict
from agent_runtime.execution.attempt import Attempt
from agent_runtime.execution.attempt_data import (
    Answered,
    AttemptEvent,
    AttemptReport,
    Held,
    Progress,
    Reached,
    Released,
    Spawned,
    Stopping,
)
from agent_runtime.execution.record_writer import RecordWriter
from agent_runtime.model.records import Answer, ExecutionRecord, Usage
from agent_runtime.model.state import Outcome, Phase, Step, StopReason
from agent_runtime.model.task import Task
from agent_runtime.model.usage import AttemptUsage
from agent_runtime.notifier import Notifier
from agent_runtime.secret.generations import Generation
from agent_runtime.store.transcripts import TranscriptStore
from agent_runtime.telemetry.counters import Counts
from agent_runtime.telemetry.events import EventLog, Value
from agent_runtime.telemetry.live_text import LiveTexts

log = logging.getLogger(__name__)

CLOCK_SLACK_SECONDS = 0.001
"""By how much a timer of the event loop may fire too early."""


class ExecutionContext(msgspec.Struct, frozen=True):
    """
    What all executions of a supervisor share.

    Attributes:
        cli: Records how each start of the CLI ended.
        token_accepted: Called when the API answered a request, with the generation that the request carried and since
            when the child had it (monotonic seconds).
        save: Writes a record; returns whether that was possible.
    """

    counts: Counts
    cli: CliCheck
    events: EventLog
    transcripts: TranscriptStore
    token_accepted: Callable[[Generation, float], None]
    save: Callable[[ExecutionRecord], bool]


class Execution:
    """
    One task, from admission to its final record.

    It belongs to the supervisor: callers read it, wait for :meth:`finished`, or call :meth:`request_stop`. All methods
    run on the event loop's thread.

    Attributes:
        writer: The only code that changes the record.
        stopped: Done as soon as the end was requested.
        slot: Number of its latest slot, from 1; None: it has had none.
        usage: Processor time, memory and so on of its processes now, measured once a second.
        shim_pid: Pid of the parent process of its CLI; None: no attempt runs.
        error: The error by which this supervisor, not the CLI, ended it or its latest attempt; None: there is none.
        resets_at: The end of the usage limit that it met, epoch seconds; None: the API did not name it.
        on_held: Called with the event of each request that is held.
        answer: The answer that every caller gets; None until the execution has finished.
    """

    def __init__(
        self,
        task: Task,
        writer: RecordWriter,
        context: ExecutionContext,
        timeout_seconds: float,
    ) -> None:
        self.task = task
        self.writer = writer
        self.transcript = context.transcripts.writer(writer.record.execution_id)
        self.reader = context.transcripts.reader(writer.record.execution_id)
        self.live_texts = LiveTexts()
        self.changed = Notifier()
        self.stopped: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.requested_stop: StopReason | None = None
        self.slot: int | None = None
        self.usage = Usage()
        self.shim_pid: int | None = None
        self.result_text: str | None = None
        self.structured_output: str | None = None
        self.result_line: int | None = None
        self.error: AgentRuntimeError | None = None
        self.resets_at: float | None = None
        self.answer: Answer | None = None
        self.on_held: Callable[[Held], None] = lambda _held: None
        self._held_requests: set[HeldRequest] = set()
        self._context = context
        self._admitted_at = time.monotonic()
        self.total_at = self._admitted_at + timeout_seconds
        """When the execution's time is over, monotonic seconds."""
        self._attempt: Attempt | None = None
        self._is_announced = False
        self._used: AttemptUsage | None = None
        self._is_saved = True
        self._finished = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Execution {self.record.execution_id} {self.record.state}>"

    @property
    def record(self) -> ExecutionRecord:
        """The execution's record, changed only by :attr:`writer`."""
        return self.writer.record

    @property
    def execution_id(self) -> str:
        """The id that callers know the execution by."""
        return self.record.execution_id

    @property
    def phase(self) -> Phase:
        """The phase that the execution is in now."""
        return self.record.state

    @property
    def generation(self) -> Generation | None:
        """The newest generation that the running attempt's child has; None: no attempt runs, or no token is loaded."""
        return None if self._attempt is None else self._attempt.generation

    @property
    def limited_until(self) -> float | None:
        """The end of the usage limit that it was turned away for, or that it met; epoch seconds; None: not known."""
        return self.error.resets_at if isinstance(self.error, TokenLimited) else self.resets_at

    @property
    def unstarted(self) -> Verdict | None:
        """The final verdict, if the execution was stopped or timed out while it waited; else None."""
        if self.requested_stop is not None:
            return UNSTARTED[self.requested_stop]
        is_over = time.monotonic() >= self.total_at - CLOCK_SLACK_SECONDS
        return UNSTARTED[StopReason.TIMEOUT] if is_over else None

    async def wait(self, event: Awaitable[object], until: float) -> bool:
        """Wait for *event*; return False if first the execution is stopped, or *until* (monotonic seconds) is past."""
        happened, seconds = asyncio.ensure_future(event), max(0.0, until - time.monotonic())
        try:
            if not happened.done():  # a free slot is granted at once
                await asyncio.wait({self.stopped, happened}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return happened.done() and not self.stopped.done()
        finally:
            happened.cancel()

    async def finished(self) -> None:
        """Wait until the record is final and the answer is there."""
        await self._finished.wait()

    def request_stop(self, reason: StopReason, *, at_once: bool = False) -> None:
        """Ask for the end, in any phase, any number of times; the first reason wins. *at_once*: without the grace."""
        if self.phase is Phase.FINISHED:
            return
        self.requested_stop = self.requested_stop or reason
        if not self.stopped.done():
            self.stopped.set_result(None)
        if self._attempt is not None:
            self._attempt.request_stop(reason, at_once=at_once)
        self.changed.notify()

    def publish(self, type: str, **data: Value) -> None:  # noqa: A002 - the contract's word
        """Publish an event of this execution, with its title and labels where it has them."""
        named = {"title": self.record.title, "labels": self.record.labels}
        given: dict[str, Value] = {name: value for name, value in named.items() if value}
        self._context.events.publish(type, execution_id=self.execution_id, **data, **given)

    def publish_end(self) -> None:
        """Publish how the execution has ended and what it has used."""
        end = {"outcome": self.record.outcome, "error_class": self.record.error_class}
        self.publish("execution.finished", **end, **self.record.metadata.totals)

    def end_hold(self, request: HeldRequest) -> None:
        """End the running attempt because of the API error that *request* is held for."""
        if self._attempt is not None:
            self._attempt.end_hold(request)

    def save(self) -> None:
        """Write the record to the store; if that fails, record so (``metadata.retained``)."""
        self._is_saved = True
        if not self._context.save(self.record):
            self.writer.mark_unretained()

    def park(self) -> None:
        """Record that the execution waits for a newer token, without a slot."""
        self._move(Step.PARKED)

    def requeue(self) -> None:
        """Record that the execution waits for a slot again."""
        self._move(Step.REQUEUED)

    def end(self, final: Verdict) -> None:
        """Make the record final, also if the execution never got a slot; call :meth:`conclude` next."""
        record, counts = self.record, self._context.counts
        self.writer.finish(Verdict(final.outcome, final.error_class, self._public_detail(final)))
        self.transcript.close()
        counts.observe("execution_duration_seconds", time.monotonic() - self._admitted_at)
        counts.count("transcript_lines_unwritten", by=self.transcript.missing_lines)
        log.info(
            "execution finished: outcome=%s error_class=%s attempts=%d",
            record.outcome,
            record.error_class,
            len(record.attempts),
            extra={"execution_id": record.execution_id},
        )

    def conclude(self, answer: Answer) -> None:
        """Give the answer to all callers that wait for it."""
        self.answer = answer
        self._finished.set()
        self.changed.notify()

    @property
    def remaining_task(self) -> Task:
        """The task, its budget reduced by what earlier attempts have cost."""
        budget, spent = self.task.max_budget_usd, self.writer.spent_usd
        if budget is None or not spent:
            return self.task
        return msgspec.structs.replace(self.task, max_budget_usd=max(0.0, round(budget - spent, 9)))

    # -- attempts

    def begin_attempt(self, session: Session) -> None:
        """Prepare the record for an attempt in *session*."""
        if self.phase in (Phase.RUNNING, Phase.STOPPING):
            self._move(Step.REQUEUED)
        self.writer.prepare_attempt(session)

    @contextlib.contextmanager
    def attached(self, attempt: Attempt) -> Iterator[None]:
        """Forward stops and newer tokens to *attempt* while the block runs."""
        self._attempt = attempt
        if self.requested_stop is not None:
            attempt.request_stop(self.requested_stop)
        try:
            yield
        finally:
            self._attempt = None

    def follow_secret(self) -> None:
        """Check whether the secret file's generation has reached the running attempt, if there is one."""
        if self._attempt is not None:
            self._attempt.follow_secret()

    def record_measurement(self, usage: Usage) -> None:
        """Record what the execution's processes take of the machine now."""
        self.usage = usage
        self.writer.record_measurement(usage)

    def record_event(self, event: AttemptEvent) -> None:
        """Record an event of the running attempt."""
        record, context, extra = self.record, self._context, {"execution_id": self.execution_id}
        if isinstance(event, Spawned):
            context.counts.count("attempts")
            self.shim_pid = event.shim_pid
            self.writer.record_spawn(event)
            self.save()
            number, fingerprint = event.generation.number, event.generation.token.fingerprint
            if not self._is_announced:
                self._is_announced = True
                self.publish("execution.started", generation=number)
            log.info(
                "attempt spawned: pid=%d fingerprint=%s", event.pid, fingerprint, extra={**extra, "generation": number}
            )
        elif isinstance(event, Progress):
            self._note_usage()
        elif isinstance(event, Reached):
            self._note_usage()
            self.writer.record_token(event)
            self.save()
        elif isinstance(event, Answered):
            if self.writer.mark_resumable():
                self.save()
            context.counts.observe_answer(event.generation, time.time())
            context.token_accepted(event.generation, event.since)
        elif isinstance(event, Stopping):
            if record.state is Phase.RUNNING:
                self.writer.apply(Step.STOP_REQUESTED)
                self.save()
            context.counts.count("attempt_stops", event.reason)
            log.info("attempt stopping: reason=%s", event.reason, extra=extra)
        elif isinstance(event, Held):
            self._held_requests.add(event.request)
            if self.writer.record_held(is_held=True):
                self.save()
                trouble, number = event.request.detection.rule.trouble, event.request.generation.number
                self.publish("execution.held", generation=number, reason=trouble)
                log.info("execution held: reason=%s", trouble, extra={**extra, "generation": number})
            self.on_held(event)
        elif isinstance(event, Released):
            self._held_requests.discard(event.request)
            if not self._held_requests and self.writer.record_held(is_held=False):
                self.save()
                self.publish("execution.released")
                log.info("execution released", extra=extra)
        self.changed.notify()

    def end_attempt(self, report: AttemptReport, session: Session) -> Verdict:
        """Add an attempt's report to the record and the counts; return how the attempt ended."""
        counts = self._context.counts
        self.shim_pid, self.usage = None, Usage()
        self._held_requests.clear()
        self.writer.record_attempt_end(report, session)
        if report.pid is not None:
            for token in self.record.attempts[-1].tokens:
                counts.count_usage(token.subscription, token.usage_by_model)
        result = report.run_stats.result
        self.result_text = None if result is None or result.is_error else result.text
        self.structured_output = None if result is None else result.structured_output
        self.result_line = report.result_line or self.result_line
        if report.cpu_seconds is not None:
            counts.count("executions_cpu_seconds", by=report.cpu_seconds)
        if report.evidence is not None:
            counts.count("evidence", report.evidence.rule)
            if report.evidence.seconds_to_signal is not None:
                counts.observe("line_to_signal_seconds", report.evidence.seconds_to_signal)
        if report.survivors:
            counts.count("survivors", by=report.survivors)
            log.error("processes survived the sweep: %d", report.survivors, extra={"execution_id": self.execution_id})
        elif report.seconds_to_gone is not None:
            counts.observe("signal_to_gone_seconds", report.seconds_to_gone)
        self.error = report.error
        if report.error is not None:
            detail = str(report.error)
            if isinstance(report.error, SpawnFailed):
                detail = self._context.cli.record_failed_spawn(report.error)
            return Verdict(Outcome.FAILED, report.error.error_class, detail)
        if report.ending is None:
            return Verdict(Outcome.FAILED, ErrorClass.ERROR, "the attempt ended without a trace")
        final = verdict(report.ending)
        self._context.cli.record_end(report.ending, final)
        return final

    def _note_usage(self) -> None:
        """Record what the running attempt has used, so that it is known even if this supervisor dies."""
        if self._attempt is None or self._attempt.usage is self._used:
            return
        self._used = self._attempt.usage
        self.writer.record_usage(self._used)
        self._is_saved = False

    def save_usage(self) -> None:
        """Write the record if the usage has grown since; called once a second, so that many messages cost one write."""
        if not self._is_saved:
            self.save()

    def is_swallowed(self, report: AttemptReport) -> bool:
        """Whether the CLI took the message for a command of its own, and gave none of its other text to the model."""
        is_text = self.record.metadata.sent_as_text
        return not is_text and report.run_stats.answer.is_without_model and has_text_after_command(self.task)

    def _public_detail(self, final: Verdict) -> str | None:
        """Return the detail for callers: without ids, and with words that make a backend switch only if it should."""
        detail = final.detail
        if final.error_class is ErrorClass.RATE_LIMIT:
            return limit_sentence(self.limited_until)
        if detail is None:
            return None
        if any(own in detail for own in (self.execution_id, self.record.session_id or self.execution_id)):
            detail = detail.split(":", 1)[0]
        return plain_detail(final.error_class or ErrorClass.ERROR, detail)

    def _move(self, step: Step) -> None:
        self.writer.apply(step)
        self.save()
        self.changed.notify()
