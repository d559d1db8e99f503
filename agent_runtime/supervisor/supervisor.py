"""Admission of executions, their run in slots, and the end of the supervisor."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Literal

from agent_runtime.errors import (
    Busy,
    Conflict,
    Draining,
    ErrorClass,
    NotFound,
    NoToken,
    SpawnFailed,
    TokenLimited,
    TokenUnpaid,
    TokenUnusable,
    plain_detail,
)
from agent_runtime.evidence.verdict import Verdict
from agent_runtime.execution.attempt_data import AttemptContext
from agent_runtime.execution.attempt_thread import AttemptThreads
from agent_runtime.execution.execution import Execution, ExecutionContext
from agent_runtime.execution.record_writer import RecordWriter
from agent_runtime.model.records import Usage
from agent_runtime.model.state import Outcome, Phase, StopReason
from agent_runtime.notifier import Notifier
from agent_runtime.process.linux import syscalls as linux
from agent_runtime.process.unkillable import Unkillable
from agent_runtime.process.usage import sample
from agent_runtime.supervisor.answers import answer_to
from agent_runtime.supervisor.archive import OTHER_BODY, StoredResult, View
from agent_runtime.supervisor.holds import Holds
from agent_runtime.supervisor.runner import ExecutionRunner, RunnerContext
from agent_runtime.supervisor.sessions import SessionPlan, SessionUse
from agent_runtime.supervisor.slots import Slots
from agent_runtime.supervisor.token_upkeep import TokenUpkeep
from agent_runtime.telemetry.logs import about
from agent_runtime.tokens.gate import TokenGate
from agent_runtime.tokens.status import TokenStatuses
from agent_runtime.tokens.verifier import RefusalVerifier

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from pathlib import Path
    from typing import Any

    from agent_runtime.delivery.cli_check import CliCheck
    from agent_runtime.delivery.delivery import Deliveries
    from agent_runtime.delivery.reload_results import BackgroundReloadChecker
    from agent_runtime.errors import InvalidRequest
    from agent_runtime.model.records import Answer, ExecutionRecord
    from agent_runtime.model.task import Task
    from agent_runtime.process.containment_choice import Containment
    from agent_runtime.secret.file import SecretFile, SecretStatus
    from agent_runtime.secret.generations import GenerationLedger
    from agent_runtime.settings import Settings
    from agent_runtime.store.tasks import NewTask
    from agent_runtime.supervisor.archive import Archive
    from agent_runtime.telemetry.counters import Counts
    from agent_runtime.telemetry.events import EventLog
    from agent_runtime.telemetry.redaction import Redactor
    from agent_runtime.tokens.probe import Probe

log = logging.getLogger(__name__)

BUSY_RETRY_SECONDS = 5
DRAINING_RETRY_SECONDS = 5
PRUNE_SECONDS = 600


class Supervisor:
    """
    Admit executions, run them in slots, and answer every one.

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
        archive: Archive,
        deliveries: Deliveries,
        containment: Containment,
        probe: Probe | None,
        events: EventLog,
        environ: Mapping[str, str],
        run_dir: Path,
        next_mark: Callable[[], str],
        counts: Counts,
        cli: CliCheck,
        options: BackgroundReloadChecker,
    ) -> None:
        self.settings = settings
        self.counts = counts
        self.secret = secret
        self.redactor = redactor
        self.archive = archive
        self.deliveries = deliveries
        self.events = events
        self.environ = environ
        self.gate = TokenGate(secret, TokenStatuses(ledger), events, probes=probe is not None)
        self.containment = containment
        self.unkillable = Unkillable()
        self.slots = Slots(settings.slots, settings.queue, lambda: self.gate.holds_new_executions)
        self.changed = Notifier()
        self.started_at = time.monotonic()  # a clock that is set must not change the uptime
        self.last_task_at: float | None = None
        self.consecutive_failures = 0
        self.draining = False
        self._is_ending = False
        verifier = RefusalVerifier(self.gate.statuses, probe, events)
        self.sessions = SessionUse()
        self._token_upkeep = TokenUpkeep(
            settings, self.gate, verifier, self.slots, counts, follow_secret=self._follow_secret, spawn=self._spawn
        )
        known = (settings, self.slots, self.sessions, self.gate, verifier, events)
        self._runner_context = RunnerContext(*known, Holds(lambda: self.draining).begin)
        self._execution_context = ExecutionContext(
            counts, cli, events, archive.transcripts, self._token_upkeep.accepted, archive.save
        )
        attempt_context = AttemptContext(
            settings=settings,
            secret=secret,
            deliveries=deliveries,
            redactor=redactor,
            environ=environ,
            workspaces=archive.workspaces,
            run_dir=run_dir,
            containment=containment,
            unkillable=self.unkillable,
            may_use=self.gate.may_use,
            mark_suspect=self.gate.mark_suspect,
            known_options=options.known_options,
        )
        self._run_attempt = AttemptThreads(attempt_context, next_mark).run_attempt
        self._cli, self._options = cli, options
        self._live: dict[str, Execution] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # -- admission

    def submit(self, new: NewTask, fault: InvalidRequest | None = None) -> Execution | StoredResult:
        """
        Admit a task, join the running execution with its id, or return the answer that is stored for it.

        After a failure the same id begins a new attempt on the same record and transcript.

        Args:
            fault: What the CLI in use does not know of the task, if there is something.

        Raises:
            AdmissionError: No room, no usable token, or draining.
            Conflict: The id is known for another body.
            InvalidRequest: The *fault*.
        """
        task = new.task
        execution_id = task.execution_id or str(uuid.uuid4())
        if (live := self._live.get(execution_id)) is not None:
            if live.record.request_digest != task.digest:
                raise Conflict(OTHER_BODY)
            return live
        previous = self.archive.earlier(execution_id, task.digest) if task.execution_id is not None else None
        if isinstance(previous, StoredResult):
            return previous
        if fault is not None:
            raise fault
        if self.draining:
            raise Draining(
                "draining: no new executions here; send it to another agent, or later",
                retry_after_seconds=DRAINING_RETRY_SECONDS,
            )
        parks = self._must_park(task)
        plan = SessionPlan(task, previous)
        if not parks and self.slots.is_full(must_wait=self.sessions.is_claimed(plan.known_id)):
            raise Busy(
                f"all {self.slots.total} slots and {self.slots.queue_limit} queue places are taken; come back later",
                retry_after_seconds=BUSY_RETRY_SECONDS,
            )
        settings, ignored, prompt = self.settings, new.ignored_fields, new.prompt
        cwd = self.archive.directory_of(new, execution_id, previous)
        writer = RecordWriter.for_task(
            task, execution_id, plan.next, settings, ignored_fields=ignored, previous=previous, prompt=prompt, cwd=cwd
        )
        execution = Execution(task, writer, self._execution_context, task.timeout_seconds or settings.timeout)
        self._live[execution_id] = execution
        self.last_task_at = time.time()
        # Task first: a crash between the two writes leaves a task without a record, never a record without its task.
        self.archive.tasks.keep(execution_id, new.content)
        execution.save()
        with about(execution_id=execution_id, trace_id=task.trace.trace_id if task.trace else None):
            log.info("execution admitted")
            execution.publish("execution.admitted")
            runner = ExecutionRunner(execution, self._runner_context, plan, run_attempt=self._run_attempt, parks=parks)
            self._spawn(self._own(execution, runner), execution_id)
        return execution

    async def admit(self, new: NewTask) -> Execution | StoredResult:
        """Submit a task; read the secret file once more before a task is refused because of its token."""
        if self.settings.probe == "on_load":
            await self._poll_secret()  # a new token is probed before an execution begins with it
        fault = await self._options.fault(new.task)
        try:
            return self.submit(new, fault)
        except (NoToken, TokenUnusable, TokenUnpaid, TokenLimited):
            await self._poll_secret()
        return self.submit(new, fault)

    def _must_park(self, task: Task) -> bool:
        """Whether the token cannot be used now, and the task is ready to wait for another."""
        try:
            self.gate.require(task.model)
        except (TokenUnusable, TokenUnpaid, TokenLimited):
            if not task.park_seconds:
                raise
            return True
        return False

    async def _own(self, execution: Execution, runner: ExecutionRunner) -> None:
        try:
            await runner.run()
        finally:
            # Callers must get an answer, whatever has failed.
            if execution.phase is not Phase.FINISHED:
                execution.end(Verdict(Outcome.FAILED, ErrorClass.ERROR, ErrorClass.ERROR.sentence))
            try:
                execution.conclude(await asyncio.to_thread(self._stored_answer_to, execution))
            finally:
                if execution.answer is None:
                    execution.conclude(self.archive.conclude_failed(execution.record))
                self._retire(execution)

    def _stored_answer_to(self, execution: Execution) -> Answer:
        """Store the final record with its answer; return the answer."""
        record, generation = execution.record, self.gate.current
        number = generation.number if generation else None
        build = functools.partial(
            answer_to, execution, log_limit_bytes=self.settings.answer_log_limit, current_generation=number
        )
        answer = build()
        if not self.archive.conclude(record, answer) and record.metadata.retained:
            execution.writer.unretained()
            answer = build()
        return self.archive.shown(record, answer)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run *work* as a task that is held until it ends; its exception is logged."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a fault of the supervisor", exc_info=error, extra={"execution_id": task.get_name()})

    def _retire(self, execution: Execution) -> None:
        self._live.pop(execution.execution_id, None)
        self.sessions.release(execution.execution_id)
        record = execution.record
        self.consecutive_failures = self.consecutive_failures + 1 if record.outcome is Outcome.FAILED else 0
        execution.publish_end()
        self.slots.grant()
        self.changed.notify()

    async def run_maintenance(self, second: Notifier) -> None:
        """Run the upkeep of each *second* that is notified, and delete old executions, until cancelled."""
        while True:
            await asyncio.to_thread(self.archive.prune, self.settings, in_use=frozenset(self._live))
            for _ in range(PRUNE_SECONDS):
                await second.wait()
                self._token_upkeep.each_second()
                await self._measure()
                if linux.has_dead_children():
                    await asyncio.to_thread(self.containment.reap_orphans)
                if self.unkillable.slots:
                    await asyncio.to_thread(self.unkillable.try_again)
                if self.archive.workspaces.has_retired:
                    await asyncio.to_thread(self.archive.workspaces.delete_some)
                if await self._has_full_disk():
                    break

    async def _has_full_disk(self) -> bool:
        """Retry what the disk did not take; return whether something has to be deleted now."""
        is_full = await asyncio.to_thread(self.archive.upkeep)
        for damage in self.archive.new_damage(self._live.keys()):
            self.events.publish("storage.damaged", detail=damage)
        return is_full

    async def _measure(self) -> None:
        """Measure what the running executions take of the machine."""
        shims = {one.execution_id: one.shim_pid for one in self.running if one.shim_pid is not None}
        for execution_id, usage in (await asyncio.to_thread(sample, shims)).items() if shims else ():
            execution = self._live.get(execution_id)
            if execution is not None and execution.shim_pid == shims[execution_id]:
                execution.measured(usage)

    # -- the token

    def _follow_secret(self) -> None:
        for execution in self._live.values():
            execution.follow_secret()

    def secret_changed(self, status: SecretStatus) -> None:
        """Process a new status of the secret file."""
        self._token_upkeep.secret_changed(status)
        self.changed.notify()

    async def reload_token(self) -> None:
        """Read the secret file now, forget limits and an unpaid account, and try a token in trouble at once."""
        await self._token_upkeep.reload()
        self.changed.notify()

    async def _poll_secret(self) -> None:
        await self._token_upkeep.poll()
        self.changed.notify()

    # -- reading

    @property
    def unready(self) -> tuple[str, str] | None:
        """Why a task sent now would be turned away, as a word and as a sentence; None where it would not."""
        return (None if self.draining else self.gate.unready) or self.unready_besides_token

    @property
    def unready_besides_token(self) -> tuple[str, str] | None:
        """The same, whatever the token: a drain, or the CLI."""
        if self.draining:
            return "draining", "draining: no new executions here"
        try:
            self._cli.require()
        except SpawnFailed as error:
            return "no_cli", plain_detail(ErrorClass.SPAWN, str(error))
        return None

    @property
    def running(self) -> list[Execution]:
        """Executions that have a slot."""
        return [e for e in self._live.values() if e.phase in (Phase.RUNNING, Phase.STOPPING)]

    @property
    def usage(self) -> Usage:
        """What all running executions take of the machine."""
        return functools.reduce(Usage.plus, (execution.usage for execution in self.running), Usage())

    @property
    def held_by(self) -> dict[int, int]:
        """How many running attempts hold a generation, by its number."""
        return Counter(sorted(held.number for one in self._live.values() if (held := one.held) is not None))

    @property
    def pending_ids(self) -> list[str]:
        """Ids of executions that wait: for a slot, or for a newer token."""
        return [e.execution_id for e in self._live.values() if e.phase in (Phase.QUEUED, Phase.PARKED)]

    def record(self, execution_id: str) -> ExecutionRecord:
        """
        Return the record of a running or a finished execution.

        Raises:
            NotFound: Nothing is known under this id.
        """
        live = self._live.get(execution_id)
        return live.record if live is not None else self.archive.record(execution_id)

    def view(self, execution_id: str) -> View:
        """
        Return what can be read of a running or a finished execution.

        Raises:
            NotFound: Nothing is known under this id.
        """
        if (live := self._live.get(execution_id)) is not None:
            return View(live.record, live.reader, live.changed, live.live_texts)
        return View(self.archive.record(execution_id), self.archive.transcripts.reader(execution_id), Notifier())

    def result(self, execution_id: str) -> StoredResult | None:
        """
        Return the answer of an execution; None while it goes on.

        Raises:
            NotFound: Nothing is known under this id, or its answer is not stored.
        """
        if execution_id in self._live:
            return None
        stored = self.archive.stored_result(self.archive.record(execution_id))
        if stored is None:
            raise NotFound(
                "no answer is kept of this execution; its record says how it ended", code="no_retained_result"
            )
        return stored

    async def terminate(self, execution_id: str) -> tuple[Literal["terminated", "already_finished"], ExecutionRecord]:
        """
        Cancel an execution and wait for its end; idempotent.

        Raises:
            NotFound: Nothing is known under this id.
        """
        if (execution := self._live.get(execution_id)) is None:
            return "already_finished", self.record(execution_id)
        execution.request_stop(StopReason.CANCELLED)
        await execution.finished()
        record = execution.record
        return "terminated" if record.outcome is Outcome.CANCELLED else "already_finished", record

    # -- the end

    def close_admission(self) -> None:
        """Admit no more executions; those that were admitted go on, unless the relay holds a request of theirs."""
        self.draining = True
        for execution in [one for one in self._live.values() if one.record.held]:
            execution.request_stop(StopReason.SHUTDOWN)
        self.changed.notify()

    def open_admission(self) -> None:
        """Admit executions again, unless the supervisor is ending."""
        if not self._is_ending:
            self.draining = False
            self.changed.notify()

    async def drain(self, timeout_seconds: float) -> None:
        """Close admission, wait *timeout_seconds* for the running, stop the rest politely, and wait for them."""
        self._is_ending = True
        self.close_admission()
        deadline = time.monotonic() + max(0.0, timeout_seconds - self.settings.stop_grace)
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
