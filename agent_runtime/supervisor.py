"""Who gets in, what runs, and how it all ends."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_runtime.answers import answer_to, interrupted_body
from agent_runtime.change import Change
from agent_runtime.command import resolve
from agent_runtime.confirmation import Confirmer
from agent_runtime.course import Course, Office
from agent_runtime.desk import TokenDesk
from agent_runtime.errors import (
    STATUS_BY_CLASS,
    AgentRuntimeError,
    Busy,
    Conflict,
    Draining,
    ErrorClass,
    NotFound,
    SpawnFailed,
    TokenLimited,
    TokenUnusable,
)
from agent_runtime.execution import Execution
from agent_runtime.model import Answer
from agent_runtime.orders import Surroundings
from agent_runtime.probe import ProbeVerdict
from agent_runtime.process import reap_orphans
from agent_runtime.slots import Slots
from agent_runtime.standing import Standing
from agent_runtime.state import Outcome, Phase, StopReason
from agent_runtime.store.database import StoreUnavailable
from agent_runtime.store.retention import prune
from agent_runtime.verdict import SENTENCES, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping
    from pathlib import Path
    from typing import Any

    from agent_runtime.delivery import Deliveries
    from agent_runtime.events import EventLog
    from agent_runtime.generations import Generation, GenerationLedger
    from agent_runtime.model import ExecutionRecord
    from agent_runtime.probe import Probe
    from agent_runtime.redaction import Redactor
    from agent_runtime.secret_file import SecretFile, SecretStatus
    from agent_runtime.settings import Settings
    from agent_runtime.store.records import RecordStore
    from agent_runtime.store.tasks import TaskStore
    from agent_runtime.store.transcripts import TranscriptReader, TranscriptStore
    from agent_runtime.task import Task

log = logging.getLogger(__name__)

BUSY_RETRY_SECONDS = 5
DRAINING_RETRY_SECONDS = 5
RECENT_SECONDS = 15 * 60
KEPT_IN_MEMORY = 200
"""Finished executions whose record stays in memory; older ones are read from the store."""

TICK_SECONDS = 1.0
_PROBE = "probe"
PRUNE_TICKS = 600
_OTHER_BODY = "this execution_id is known for another body; choose another id"


@dataclass(frozen=True, slots=True)
class View:
    """What those see who only look on: a record and its transcript, and when there is more to see."""

    record: ExecutionRecord
    transcript: TranscriptReader
    changed: Change


@dataclass(frozen=True, slots=True)
class Kept:
    """A finished execution whose answer is there already: to be waited for like one that runs."""

    record: ExecutionRecord
    answer: Answer

    @property
    def execution_id(self) -> str:
        """The id callers know it by."""
        return self.record.execution_id

    async def finished(self) -> None:
        """Return at once."""


class Supervisor:
    """
    Admit executions, run them in slots, and account for every one.

    All methods run on the event loop's thread. Admission is synchronous: :meth:`submit` either raises or returns an
    execution that belongs to the supervisor from then on.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        secret: SecretFile,
        ledger: GenerationLedger,
        redactor: Redactor,
        records: RecordStore,
        transcripts: TranscriptStore,
        tasks: TaskStore,
        deliveries: Deliveries,
        probe: Probe | None,
        events: EventLog,
        environ: Mapping[str, str],
        run_dir: Path,
        next_mark: Callable[[], str],
    ) -> None:
        self.settings = settings
        self.secret = secret
        self.redactor = redactor
        self.records = records
        self.transcripts = transcripts
        self.tasks = tasks
        self.deliveries = deliveries
        self.events = events
        self.environ = environ
        self.desk = TokenDesk(secret, Standing(ledger), events, probes=probe is not None)
        self.slots = Slots(settings.slots, settings.queue, lambda: self.desk.holds_new_executions)
        self.changed = Change()
        self.started_at = time.time()
        self.last_task_at: float | None = None
        self.consecutive_failures = 0
        self.draining = False
        self._is_ending = False
        self._confirmer = Confirmer(self.desk.standing, probe, events)
        self._office = Office(settings, self.slots, self.desk, self._confirmer, events)
        self._surroundings = Surroundings(
            settings=settings,
            secret=secret,
            deliveries=deliveries,
            redactor=redactor,
            environ=environ,
            run_dir=run_dir,
            may_use=self.desk.may_use,
        )
        self._next_mark = next_mark
        self._live: dict[str, Execution] = {}
        self._recent: dict[str, Execution] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen: set[int] = set()

    # -- admission

    def submit(self, task: Task, ignored_fields: Iterable[str] = ()) -> Execution | Kept:
        """
        Let a task in, join the execution that its id names, or find the answer that is kept of it.

        After a failure the same id begins a new attempt on the same record and transcript.

        Raises:
            AdmissionError: There is no room, no token, or no wish for more.
            Conflict: The id is known for other work.
        """
        execution_id = task.execution_id or str(uuid.uuid4())
        if (live := self._live.get(execution_id)) is not None:
            if live.record.request_digest != task.digest:
                raise Conflict(_OTHER_BODY)
            return live
        previous = self._known(execution_id) if task.execution_id is not None else None
        if previous is not None and previous.outcome is Outcome.SUCCESS:
            if previous.request_digest != task.digest:
                raise Conflict(_OTHER_BODY)
            if (kept := self._kept(previous)) is not None:
                return kept
        if self.draining:
            raise Draining("draining: no new executions here", retry_after_seconds=DRAINING_RETRY_SECONDS)
        parks = self._must_park(task)
        if not parks and self.slots.is_full:
            raise Busy(
                f"all {self.slots.total} slots and {self.slots.queue_limit} queue places are taken",
                retry_after_seconds=BUSY_RETRY_SECONDS,
            )
        execution = Execution(
            task,
            execution_id=execution_id,
            ignored_fields=list(ignored_fields),
            surroundings=self._surroundings,
            transcript=self.transcripts.writer(execution_id),
            reader=self.transcripts.reader(execution_id),
            next_mark=self._next_mark,
            timeout_seconds=task.timeout_seconds or self.settings.timeout,
            accepted=self._accepted,
            save=self._save,
            tell=lambda kind, number: self.events.publish(kind, execution_id=execution_id, generation=number),
            previous=previous,
        )
        self._live[execution_id] = execution
        self._recent.pop(execution_id, None)
        self.last_task_at = time.time()
        self._save(execution.record)
        self.tasks.keep(execution_id, task)
        log.info("execution admitted", extra={"execution_id": execution_id})
        self.events.publish("execution.admitted", execution_id=execution_id)
        ticket = None if parks else self.slots.enqueue()
        self._spawn(self._own(execution, Course(execution, self._office, ticket)), execution_id)
        return execution

    def _must_park(self, task: Task) -> bool:
        """Whether the token cannot be used now, and the task is ready to wait for another."""
        try:
            self.desk.require(task.model)
        except (TokenUnusable, TokenLimited):
            if not task.park_seconds:
                raise
            return True
        return False

    async def _own(self, execution: Execution, course: Course) -> None:
        try:
            await course.run()
        finally:
            # Whoever waits for this execution must never wait for ever.
            if execution.phase is not Phase.FINISHED:
                execution.end(Verdict(Outcome.FAILED, ErrorClass.ERROR, SENTENCES[ErrorClass.ERROR]))
            await self._conclude(execution)
            self._retire(execution)

    async def _conclude(self, execution: Execution) -> None:
        """Keep the final record with its answer, and let everybody have it."""
        record = execution.record
        answer = await asyncio.to_thread(self._answer_to, execution)
        try:
            await asyncio.to_thread(
                self.records.conclude, record, answer.status_code, answer.body, record.ended_at or time.time()
            )
        except StoreUnavailable as error:
            log.error("answer not kept: %s", error, extra={"execution_id": record.execution_id})
            record.metadata.retained = False
            answer = await asyncio.to_thread(self._answer_to, execution)
        if record.error_class is not ErrorClass.INTERRUPTED:
            self.tasks.forget(record.execution_id)
        execution.conclude(answer)

    def _answer_to(self, execution: Execution) -> Answer:
        generation = self.desk.current
        return answer_to(
            execution,
            log_limit_bytes=self.settings.answer_log_limit,
            current_generation=generation.number if generation else None,
        )

    def _known(self, execution_id: str) -> ExecutionRecord | None:
        """Find the record of a finished execution."""
        if (recent := self._recent.get(execution_id)) is not None:
            return recent.record
        return self.records.load(execution_id)

    def _kept(self, record: ExecutionRecord) -> Kept | None:
        """Find the answer of a finished execution, if it is kept."""
        if (recent := self._recent.get(record.execution_id)) is not None and recent.answer is not None:
            return Kept(record, recent.answer)
        kept = self.records.answer(record.execution_id)
        return Kept(record, Answer(kept.status_code, kept.answer)) if kept is not None else None

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run *work* as a task of ours; what goes wrong in it is logged."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a fault of the supervisor", exc_info=error, extra={"execution_id": task.get_name()})

    def _retire(self, execution: Execution) -> None:
        self._live.pop(execution.execution_id, None)
        self._recent[execution.execution_id] = execution
        while len(self._recent) > KEPT_IN_MEMORY:
            self._recent.pop(next(iter(self._recent)))
        failed = execution.record.outcome is Outcome.FAILED
        self.consecutive_failures = self.consecutive_failures + 1 if failed else 0
        record = execution.record
        self.events.publish(
            "execution.finished",
            execution_id=record.execution_id,
            outcome=record.outcome,
            error_class=record.error_class,
        )
        self.slots.grant()
        self.changed.tell()

    # -- after a restart

    def account(self) -> None:
        """
        Give every execution that an earlier supervisor left without an end one: ``interrupted``.

        To be called before anything is admitted, when the earlier one's children are gone.
        """
        now = time.time()
        for record in self.records.unfinished():
            record.state = Phase.FINISHED
            record.outcome, record.error_class = Outcome.FAILED, ErrorClass.INTERRUPTED
            record.detail = SENTENCES[ErrorClass.INTERRUPTED]
            record.ended_at = now
            for attempt in record.attempts:
                if attempt.ended_at is None:
                    attempt.ended_at, attempt.stop_reason = now, StopReason.SHUTDOWN
            body = interrupted_body(record)
            try:
                self.records.conclude(record, STATUS_BY_CLASS[ErrorClass.INTERRUPTED], body, now)
            except StoreUnavailable as error:
                log.error("record not kept: %s", error, extra={"execution_id": record.execution_id})
            log.warning("execution was interrupted", extra={"execution_id": record.execution_id})

    def resume_interrupted(self) -> None:
        """Go on with executions that were interrupted, as if their tasks had been posted again."""
        for task in self.tasks.kept():
            try:
                self.submit(task)
            except AgentRuntimeError as error:
                log.warning("not resumed: %s", error, extra={"execution_id": task.execution_id})

    async def keep_house(self) -> None:
        """Delete what is too old or too much, now and then, for as long as the supervisor lives."""
        while True:
            try:
                await asyncio.to_thread(self._prune)
            except (StoreUnavailable, OSError) as error:
                log.warning("cannot delete old executions: %s", error)
            for _ in range(PRUNE_TICKS):
                await asyncio.sleep(TICK_SECONDS)
                self.desk.warn_of_expiry()
                self._retry_refused()
                await asyncio.to_thread(reap_orphans)

    def _prune(self) -> None:
        deleted = prune(
            self.records,
            self.transcripts,
            max_age_seconds=self.settings.retain_age,
            max_bytes=self.settings.retain_bytes,
            now=time.time(),
            in_use=frozenset(self._live),
        )
        if deleted:
            log.info("old executions deleted: %d", deleted)

    # -- the token

    def _accepted(self, generation: Generation, since: float) -> None:
        self._confirmer.accepted(generation, since)
        self.slots.grant()
        self.desk.changed.tell()

    def secret_changed(self, status: SecretStatus) -> None:
        """Take a new status of the secret file."""
        generation = status.generation
        is_new = generation is not None and generation.number not in self._seen
        self.desk.secret_changed(status)
        if generation is not None and is_new:
            self._seen.add(generation.number)
            for execution in self._live.values():
                execution.token_loaded(generation)
            if self.settings.probe == "on_load":
                self._spawn(self._probe(generation), "probe")
        self.slots.grant()
        self.changed.tell()

    async def _probe(self, generation: Generation) -> None:
        """Ask the API about a token, a refused one too; meanwhile new executions wait, or are still turned away."""
        standing = self.desk.standing
        was_refused = standing.is_refused(generation)
        if was_refused and not standing.begin_try(generation, _PROBE, time.monotonic()):
            return
        standing.suspect(generation, _PROBE, time.monotonic())
        try:
            verdict = await self._confirmer.ask(generation)
            if verdict is ProbeVerdict.REFUSED:
                self._confirmer.refused(generation, _PROBE)
            elif verdict is ProbeVerdict.VALID:
                self._confirmer.accepted(generation)
            elif was_refused:
                standing.leave_to_execution(generation)
        finally:
            standing.end_try(_PROBE)
            standing.unsuspect(_PROBE)
            self.slots.grant()
            self.desk.changed.tell()

    def _retry_refused(self) -> None:
        """Let the probe try the token in use again, where it is refused and its pause is over."""
        generation, standing = self.desk.current, self.desk.standing
        if self.settings.probe == "off" or generation is None or not standing.is_refused(generation):
            return
        is_due = standing.retry_after_seconds(generation, time.monotonic()) <= 0
        if is_due and not standing.is_left_to_execution(generation):
            self._spawn(self._probe(generation), _PROBE)

    async def reload_token(self) -> bool:
        """Re-read the secret file now, and try a refused or limited token at once; tell whether it is another one."""
        before = self.desk.current
        status = await asyncio.to_thread(self.secret.poll)
        self.secret_changed(status)
        if (generation := status.generation) is not None:
            self.desk.standing.forget_limits(generation)
            if self.desk.standing.is_refused(generation):
                self.desk.standing.retry_now(generation)
                await self._probe(generation)
        return before is None or generation is None or generation.number != before.number

    # -- looking on

    @property
    def unready(self) -> tuple[str, str] | None:
        """Why a task sent now would be turned away, as a word and as a sentence; None where it would not."""
        if self.draining:
            return "draining", "draining: no new executions here"
        try:
            self.desk.require()
        except AgentRuntimeError as error:
            return f"token_{self.desk.state}", str(error)
        if self.desk.holds_new_executions:
            return "token_suspect", "it is being found out whether the token is good"
        try:
            resolve(self.settings.claude, self.environ.get("PATH"))
        except SpawnFailed as error:
            return "no_cli", str(error)
        return None

    @property
    def running(self) -> list[Execution]:
        """Executions that have a slot."""
        return [e for e in self._live.values() if e.phase in (Phase.RUNNING, Phase.STOPPING)]

    @property
    def pending_ids(self) -> list[str]:
        """Ids of executions that wait: for a slot, or for a newer token."""
        return [e.execution_id for e in self._live.values() if e.phase in (Phase.QUEUED, Phase.PARKED)]

    @property
    def recently_completed_ids(self) -> list[str]:
        """Ids of executions that ended in the last 15 minutes."""
        since = time.time() - RECENT_SECONDS
        return [e.execution_id for e in self._recent.values() if (e.record.ended_at or 0) >= since]

    def execution(self, execution_id: str) -> Execution | None:
        """Find an execution that runs, or ended not long ago."""
        return self._live.get(execution_id) or self._recent.get(execution_id)

    def record(self, execution_id: str) -> ExecutionRecord:
        """
        Find a record, in memory or in the store.

        Raises:
            NotFound: Nothing is known under this id.
        """
        if execution := self.execution(execution_id):
            return execution.record
        record = self.records.load(execution_id)
        if record is None:
            raise NotFound("no execution is known under this id")
        return record

    def view(self, execution_id: str) -> View:
        """
        Look at an execution, alive or kept.

        Raises:
            NotFound: Nothing is known under this id.
        """
        if execution := self.execution(execution_id):
            return View(execution.record, execution.reader, execution.changed)
        return View(self.record(execution_id), self.transcripts.reader(execution_id), Change())

    def result(self, execution_id: str) -> Kept | None:
        """
        Find the answer of an execution; None while it goes on.

        Raises:
            NotFound: Nothing is known under this id, or its answer is not kept.
        """
        if execution_id in self._live:
            return None
        record = self.record(execution_id)
        kept = self._kept(record)
        if kept is None:
            raise NotFound("no answer is kept of this execution", code="no_retained_result")
        return kept

    async def terminate(self, execution_id: str) -> tuple[str, ExecutionRecord]:
        """
        Cancel an execution and wait for its end; idempotent.

        Raises:
            NotFound: Nothing is known under this id.
        """
        execution = self._live.get(execution_id)
        if execution is None:
            return "already_finished", self.record(execution_id)
        execution.request_stop(StopReason.CANCELLED)
        await execution.finished()
        return "terminated", execution.record

    # -- the end

    def close_admission(self) -> None:
        """Let nobody in any more; what was let in goes on."""
        self.draining = True
        self.changed.tell()

    def open_admission(self) -> None:
        """Let executions in again, unless the supervisor is going away."""
        if not self._is_ending:
            self.draining = False
            self.changed.tell()

    async def drain(self, timeout_seconds: float) -> None:
        """Let nobody in, let the running finish for *timeout_seconds*, stop the rest politely, and wait for them."""
        self._is_ending = True
        self.close_admission()
        polite = max(0.0, timeout_seconds - self.settings.stop_grace)
        deadline = time.monotonic() + polite
        while self._live and (left := deadline - time.monotonic()) > 0:
            try:
                await asyncio.wait_for(self.changed.wait(), left)
            except TimeoutError:
                break
        self.stop_all(StopReason.SHUTDOWN)
        while self._live:
            await self.changed.wait()

    def stop_all(self, reason: StopReason, *, at_once: bool = False) -> None:
        """Ask every execution to end, politely or at once."""
        for execution in list(self._live.values()):
            execution.request_stop(reason, at_once=at_once)

    def _save(self, record: ExecutionRecord) -> None:
        try:
            self.records.save(record)
        except StoreUnavailable as error:
            record.metadata.retained = False
            log.error("record not kept: %s", error, extra={"execution_id": record.execution_id})
