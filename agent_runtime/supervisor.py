"""Who gets in, what runs, and how it all ends."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_runtime.attempt import Surroundings
from agent_runtime.change import Change
from agent_runtime.command import resolve
from agent_runtime.confirmation import Confirmer
from agent_runtime.course import Course, Office
from agent_runtime.desk import TokenDesk
from agent_runtime.errors import (
    AgentRuntimeError,
    Busy,
    Conflict,
    Draining,
    NotFound,
    SpawnFailed,
    TokenLimited,
    TokenUnusable,
)
from agent_runtime.execution import Execution
from agent_runtime.probe import ProbeVerdict
from agent_runtime.slots import Slots
from agent_runtime.standing import Standing
from agent_runtime.state import Outcome, Phase, StopReason
from agent_runtime.store.records import StoreUnavailable

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
    from agent_runtime.store.transcripts import TranscriptReader, TranscriptStore
    from agent_runtime.task import Task

log = logging.getLogger(__name__)

BUSY_RETRY_SECONDS = 5
DRAINING_RETRY_SECONDS = 5
RECENT_SECONDS = 15 * 60
KEPT_IN_MEMORY = 200
"""Finished executions whose record stays in memory; older ones are read from the store."""

TICK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class View:
    """What those see who only look on: a record and its transcript, and when there is more to see."""

    record: ExecutionRecord
    transcript: TranscriptReader
    changed: Change


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
        self.deliveries = deliveries
        self.events = events
        self.desk = TokenDesk(secret, Standing(ledger), events)
        self.slots = Slots(settings.slots, settings.queue, lambda: self.desk.holds_new_executions)
        self.changed = Change()
        self.started_at = time.time()
        self.last_task_at: float | None = None
        self.consecutive_failures = 0
        self.draining = False
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

    def submit(self, task: Task, ignored_fields: Iterable[str] = ()) -> Execution:
        """
        Let a task in, or join the execution that its id names already.

        Raises:
            AdmissionError: There is no room, no token, or no wish for more.
            Conflict: The id is known for other work.
        """
        execution_id = task.execution_id or str(uuid.uuid4())
        if (known := self.execution(execution_id)) and (
            known.phase is not Phase.FINISHED or known.record.outcome is Outcome.SUCCESS
        ):
            if known.record.request_digest != task.digest:
                raise Conflict("this execution_id is known for another body; choose another id")
            return known
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
        )
        self._live[execution_id] = execution
        self._recent.pop(execution_id, None)
        self.last_task_at = time.time()
        self._save(execution.record)
        log.info("execution admitted", extra={"execution_id": execution_id})
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
            self._retire(execution)

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

    # -- the token

    def _accepted(self, generation: Generation) -> None:
        self._confirmer.accepted(generation)
        self.slots.grant()

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
        """Ask the API about a token, and keep new executions waiting meanwhile."""
        self.desk.standing.suspect(generation, "probe")
        try:
            verdict = await self._confirmer.ask(generation)
            if verdict is ProbeVerdict.REFUSED:
                self._confirmer.refused(generation, "probe")
            elif verdict is ProbeVerdict.VALID:
                self._confirmer.accepted(generation)
        finally:
            self.desk.standing.unsuspect("probe")
            self.slots.grant()
            self.desk.changed.tell()

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
            resolve(self.settings.claude, self._surroundings.environ.get("PATH"))
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

    async def drain(self, timeout_seconds: float) -> None:
        """Let nobody in, let the running finish for *timeout_seconds*, stop the rest politely, and wait for them."""
        self.draining = True
        self.changed.tell()
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
