"""One execution: the only writer of its record, from admission to its answer."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from typing import TYPE_CHECKING

from agent_runtime.attempt import Answered, Attempt, Order, Report, Spawned, Stopping
from agent_runtime.command import Session
from agent_runtime.errors import AgentRuntimeError, ErrorClass, SpawnFailed
from agent_runtime.model import AttemptRecord, ExecutionRecord, Metadata, TokenRecord
from agent_runtime.state import Event, Outcome, Phase, StopReason, transition
from agent_runtime.verdict import Verdict, verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.attempt import Note, Surroundings
    from agent_runtime.generations import Generation
    from agent_runtime.store.transcripts import TranscriptReader, TranscriptWriter
    from agent_runtime.task import Task

log = logging.getLogger(__name__)


class Change:
    """Let any number of tasks wait for the next change of something; never misses one, holds nothing for the slow."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Wake everybody who waits."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next :meth:`tell`; take what is to be compared before the first await."""
        await self._event.wait()


class Execution:
    """
    One task, from admission to its final record.

    It belongs to the supervisor: callers look on, wait for :meth:`finished`, or call :meth:`request_stop`. All
    methods run on the event loop's thread; the attempt has a thread of its own and sends notes.

    Args:
        accepted: Called with a generation when the API answered a request made with it.
        refused: Called with a report whose attempt ended by evidence.
    """

    def __init__(
        self,
        task: Task,
        *,
        execution_id: str,
        ignored_fields: list[str],
        surroundings: Surroundings,
        transcript: TranscriptWriter,
        reader: TranscriptReader,
        next_mark: Callable[[], str],
        timeout_seconds: float,
        accepted: Callable[[Generation], None],
        refused: Callable[[Report], None],
        save: Callable[[ExecutionRecord], None],
    ) -> None:
        self.task = task
        self.transcript = transcript
        self.reader = reader
        self.changed = Change()
        self.result_text: str | None = None
        self.result_line: int | None = None
        self.error: AgentRuntimeError | None = None
        self._surroundings = surroundings
        self._next_mark = next_mark
        self._accepted = accepted
        self._refused = refused
        self._save = save
        self._admitted_at = time.monotonic()
        self._timeout_seconds = timeout_seconds
        self._attempt: Attempt | None = None
        self._wish: StopReason | None = None
        self._finished = asyncio.Event()
        self.queue_timer: asyncio.TimerHandle | None = None
        """Ends the wait for a slot; kept here so that it goes with the execution."""
        self.record = ExecutionRecord(
            execution_id=execution_id,
            state=Phase.QUEUED,
            created_at=time.time(),
            request_digest=task.digest,
            metadata=Metadata(ignored_fields=ignored_fields),
        )

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
    def wish(self) -> StopReason | None:
        """Why it was asked to stop, if it was."""
        return self._wish

    def forget_timer(self) -> None:
        """End the watch over its wait for a slot."""
        if self.queue_timer is not None:
            self.queue_timer.cancel()
            self.queue_timer = None

    async def finished(self) -> None:
        """Wait for the final record."""
        await self._finished.wait()

    def request_stop(self, reason: StopReason, *, at_once: bool = False) -> None:
        """Ask for the end, in any phase, any number of times; the first reason wins. *at_once*: without the grace."""
        if self.phase is Phase.FINISHED:
            return
        if self._wish is None:
            self._wish = reason
        if self._attempt is not None:
            self._attempt.request_stop(reason, at_once=at_once)
        self.changed.tell()

    async def run(self) -> None:
        """Run the attempts it takes, with the slot the caller holds for it, and reach the verdict."""
        try:
            report = await self._run_attempt()
            self.end(self._judge(report))
        except BaseException:
            # Whoever waits for this execution must never wait for ever.
            if self.phase is not Phase.FINISHED:
                self.end(Verdict(Outcome.FAILED, ErrorClass.ERROR, "the supervisor failed; its log says more"))
            raise

    def end(self, final: Verdict) -> None:
        """Write the final record; also for an execution that never got a slot."""
        record = self.record
        self._go(Event.ENDED)
        record.outcome = final.outcome
        record.error_class = final.error_class
        record.detail = self._without_ids(final.detail)
        record.ended_at = time.time()
        self.transcript.close()
        self._save(record)
        self._finished.set()
        self.changed.tell()
        log.info(
            "execution finished: outcome=%s error_class=%s attempts=%d",
            record.outcome,
            record.error_class,
            len(record.attempts),
            extra={"execution_id": record.execution_id},
        )

    # -- one attempt

    async def _run_attempt(self) -> Report:
        session = Session(self.task.resume_session_id or uuid.uuid4(), resumes=self.task.resume_session_id is not None)
        order = Order(
            execution_id=self.execution_id,
            task=self.task,
            session=session,
            mark=self._next_mark(),
            total_at=self.total_at,
        )
        loop = asyncio.get_running_loop()
        notes = _Notes(loop, self._take)
        attempt = self._attempt = Attempt(order, self._surroundings, self.transcript, notes.put)
        if self._wish is not None:
            attempt.request_stop(self._wish)
        report: asyncio.Future[Report] = loop.create_future()
        thread = threading.Thread(target=_run_in_thread, args=(attempt, loop, report), name=f"attempt-{order.mark}")
        try:
            thread.start()
        except RuntimeError:
            attempt.abandon()
            return Report(started_at=time.time(), error=SpawnFailed("cannot start a thread for the attempt"))
        try:
            return self._add_up(await report)
        finally:
            self._attempt = None

    def _take(self, note: Note) -> None:
        """Take what the attempt's thread says."""
        record = self.record
        if isinstance(note, Spawned):
            token = note.generation.token
            record.attempts.append(
                AttemptRecord(
                    pid=note.pid,
                    started_at=note.started_at,
                    tokens=[
                        TokenRecord(
                            generation=note.generation.number,
                            fingerprint=token.fingerprint,
                            delivered_at=note.started_at,
                        )
                    ],
                )
            )
            record.started_at = record.started_at or note.started_at
            record.metadata.token_generation = note.generation.number
            record.metadata.token_fingerprint = token.fingerprint
            self._go(Event.SPAWNED)
            self._save(record)
            log.info(
                "attempt spawned: pid=%d generation=%d fingerprint=%s",
                note.pid,
                note.generation.number,
                token.fingerprint,
                extra={"execution_id": record.execution_id},
            )
        elif isinstance(note, Answered):
            self._accepted(note.generation)
        elif isinstance(note, Stopping):
            if self.phase is Phase.RUNNING:
                self._go(Event.STOP_REQUESTED)
                self._save(record)
            log.info("attempt stopping: reason=%s", note.reason, extra={"execution_id": record.execution_id})
        self.changed.tell()

    def _add_up(self, report: Report) -> Report:
        """Put what the attempt amounts to into the record."""
        record, tally = self.record, report.tally
        record.session_id = tally.session_id or record.session_id
        self.result_text = tally.result.text if tally.result is not None else None
        self.result_line = report.result_line or self.result_line
        if report.pid is not None:
            attempt = record.attempts[-1]
            attempt.ended_at = report.ended_at
            attempt.evidence = report.evidence
            if report.ending is not None:
                attempt.exit_code = report.ending.exit_code
                attempt.stop_reason = report.ending.stop_reason
            if report.sweep is not None and report.sweep.survivors:
                log.error(
                    "processes survived the sweep: %d",
                    report.sweep.survivors,
                    extra={"execution_id": self.execution_id},
                )
        metadata = record.metadata
        metadata.attempts = len(record.attempts)
        metadata.cost_usd = tally.cost_usd
        metadata.duration_ms = tally.duration_ms
        metadata.num_turns = tally.num_turns
        metadata.tool_count = tally.tool_count
        metadata.model_name = tally.model_name
        metadata.cli_version = tally.cli_version
        metadata.context_window = tally.context_window
        if tally.usage is not None:
            metadata.input_tokens = tally.usage.input_tokens
            metadata.output_tokens = tally.usage.output_tokens
            metadata.cache_creation_tokens = tally.usage.cache_creation_input_tokens
            metadata.cache_read_tokens = tally.usage.cache_read_input_tokens
        return report

    def _judge(self, report: Report) -> Verdict:
        if report.error is not None:
            self.error = report.error
            return Verdict(Outcome.FAILED, report.error.error_class, str(report.error))
        if report.ending is None:
            return Verdict(Outcome.FAILED, ErrorClass.ERROR, "the attempt ended without a trace")
        final = verdict(report.ending)
        if report.evidence is not None:
            self._refused(report)
        return final

    def _without_ids(self, detail: str | None) -> str | None:
        """Keep ids out of what callers match for words: an id may hold "401" by chance."""
        ids = [self.execution_id, self.record.session_id or self.execution_id]
        if detail is not None and any(known in detail for known in ids):
            return detail.split(":", 1)[0]
        return detail

    def _go(self, event: Event) -> None:
        self.record.state = transition(self.record.state, event)


class _Notes:
    """Carry notes from an attempt's thread to the event loop; of progress, one at a time is enough."""

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[Note], None]) -> None:
        self._loop = loop
        self._take = take
        self._progress_under_way = False

    def put(self, note: Note) -> None:
        if isinstance(note, Spawned | Stopping | Answered):
            self._send(self._take, note)
        elif not self._progress_under_way:
            self._progress_under_way = True
            self._send(self._progress, note)

    def _progress(self, note: Note) -> None:
        self._progress_under_way = False
        self._take(note)

    def _send(self, call: Callable[[Note], None], note: Note) -> None:
        try:
            self._loop.call_soon_threadsafe(call, note)
        except RuntimeError:
            log.debug("note came after the event loop had closed")


def _run_in_thread(attempt: Attempt, loop: asyncio.AbstractEventLoop, report: asyncio.Future[Report]) -> None:
    outcome: Report | BaseException
    try:
        outcome = attempt.run()
    except BaseException as error:  # noqa: BLE001 - carried over to the loop, where it is raised
        outcome = error
    try:
        loop.call_soon_threadsafe(_settle, report, outcome)
    except RuntimeError:
        log.error("attempt ended after the event loop had closed")


def _settle(future: asyncio.Future[Report], outcome: Report | BaseException) -> None:
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
