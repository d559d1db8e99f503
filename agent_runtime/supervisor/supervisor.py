"""Admission of executions, their run in slots, and the end of the supervisor."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from agent_runtime.delivery.cli_check import CliCheck
from agent_runtime.delivery.delivery import Deliveries
from agent_runtime.delivery.reload_results import BackgroundReloadChecker
from agent_runtime.errors import (
    AdmissionError,
    ErrorClass,
    NotFound,
    NoToken,
    SpawnFailed,
    TokenLimited,
    TokenUnpaid,
    TokenUnusable,
    plain_detail,
)
from agent_runtime.execution.attempt_data import AttemptContext
from agent_runtime.execution.attempt_thread import run_attempt
from agent_runtime.execution.execution import Execution, ExecutionContext
from agent_runtime.model.records import ExecutionRecord
from agent_runtime.model.state import DiskState, NotReady, Outcome, StopReason, TokenState
from agent_runtime.model.task import Task
from agent_runtime.model.tokens import Token
from agent_runtime.model.usage import ModelUsage
from agent_runtime.notifier import Notifier
from agent_runtime.process.containment_choice import Containment
from agent_runtime.process.linux import syscalls as linux
from agent_runtime.process.unkillable import Unkillable
from agent_runtime.secret.file import SecretFile, SecretStatus
from agent_runtime.secret.generations import GenerationLedger
from agent_runtime.secret.writer import put_if_different
from agent_runtime.settings import Settings
from agent_runtime.store.tasks import NewTask
from agent_runtime.store.usage import UsedBy, usage_since
from agent_runtime.supervisor.admission import Admission, BackgroundTasks, LiveExecutions
from agent_runtime.supervisor.answers import StoredResult, View
from agent_runtime.supervisor.archive import Archive
from agent_runtime.supervisor.holds import Holds
from agent_runtime.supervisor.runner import RunnerContext
from agent_runtime.supervisor.sessions import SessionUse
from agent_runtime.supervisor.slots import Slots
from agent_runtime.telemetry.counters import Counts
from agent_runtime.telemetry.events import EventLog
from agent_runtime.telemetry.redaction import Redactor
from agent_runtime.tokens.gate import TokenGate
from agent_runtime.tokens.probe import Probe
from agent_runtime.tokens.status import Limit, TokenStatuses
from agent_runtime.tokens.upkeep import TokenUpkeep
from agent_runtime.tokens.verifier import RefusalVerifier

PRUNE_SECONDS = 600


class SupervisorState(msgspec.Struct, frozen=True, kw_only=True):
    """
    The state of the supervisor: values of one moment, and the objects that hold the rest.

    Attributes:
        executions: All that have not ended.
        limit: The longest limit of the token in use, if it is limited.
        secret: What is known of the secret file.
        unkillable: How many slots are taken by processes that could not be ended.
        last_task_at: When the last task was admitted, epoch seconds.
    """

    unready: NotReady | None
    token: TokenState
    secret: SecretStatus
    limit: Limit | None
    last_refused_generation: int | None
    slots: Slots
    unkillable: int
    executions: LiveExecutions
    recently_completed_ids: list[str]
    last_task_at: float | None
    consecutive_failures: int
    draining: bool
    deliveries: Deliveries
    containment: Containment
    disk: DiskState
    uptime_seconds: float


@dataclass(eq=False, kw_only=True, repr=False)
class Supervisor:
    """
    Admit executions, run them in slots, and answer each; composed of the parts that do so.

    All methods run on the event loop's thread.

    Attributes:
        token_upkeep: Processes changes of the secret file.
        admission: Admits executions, and ends them.
    """

    settings: Settings
    secret: SecretFile
    ledger: GenerationLedger
    redactor: Redactor
    archive: Archive
    deliveries: Deliveries
    containment: Containment
    probe: Probe | None
    events: EventLog
    environ: Mapping[str, str]
    run_dir: Path
    next_mark: Callable[[], str]
    counts: Counts
    cli: CliCheck
    options: BackgroundReloadChecker

    def __post_init__(self) -> None:
        settings, events, archive, counts = self.settings, self.events, self.archive, self.counts
        self._started_at = time.monotonic()  # a clock that is set must not change the uptime
        self._live, self._unkillable, background = LiveExecutions(), Unkillable(), BackgroundTasks()
        gate = self._gate = TokenGate(self.secret, TokenStatuses(self.ledger), events, probes=self.probe is not None)
        self._slots = Slots(settings.slots, settings.queue, lambda: gate.is_verifying)
        verifier = RefusalVerifier(gate.statuses, self.probe, events)
        self.token_upkeep = TokenUpkeep(
            settings,
            gate,
            verifier,
            counts,
            events,
            grant_slots=self._slots.grant,
            follow_secret=self._live.follow_secret,
            spawn=background.spawn,
        )
        attempts = AttemptContext(
            settings=settings,
            secret=self.secret,
            deliveries=self.deliveries,
            redactor=self.redactor,
            environ=self.environ,
            workspaces=archive.workspaces,
            run_dir=self.run_dir,
            containment=self.containment,
            unkillable=self._unkillable,
            require_for_spawn=gate.require_for_spawn,
            mark_suspect=gate.mark_suspect,
            is_known_by_others=gate.statuses.is_known_by_others,
            known_options=self.options.known_options,
        )
        holds = Holds(lambda: self.admission.draining)
        self.admission = Admission(
            archive,
            self._live,
            background,
            RunnerContext(settings, self._slots, SessionUse(), gate, verifier, holds.begin),
            ExecutionContext(
                counts, self.cli, events, archive.transcripts, self.token_upkeep.record_accepted, archive.save
            ),
            functools.partial(run_attempt, attempts, self.next_mark),
        )

    # -- admission

    async def admit(self, new: NewTask) -> Execution | StoredResult:
        """Submit a task; read the secret file once more before a task is refused because of its token."""
        if new.task.cwd is not None or new.task.add_dirs:
            new = await asyncio.to_thread(self.archive.with_obstacle, new)
        if self.settings.probe == "on_load":
            await self.token_upkeep.poll()  # a new token is probed before an execution begins with it
        fault = await self.options.fault(new.task)
        try:
            try:
                return self.admission.submit(new, fault)
            except (NoToken, TokenUnusable, TokenUnpaid, TokenLimited):
                await self.token_upkeep.poll()
            return self.admission.submit(new, fault)
        except AdmissionError as error:
            self.counts.count("admissions_refused", error.error_class)
            raise

    def prepare(self, task: Task, ignored_fields: list[str]) -> NewTask:
        """Check and encode a task, as :meth:`Archive.prepare`."""
        return self.archive.prepare(task, ignored_fields)

    # -- the token

    async def reload_token(self, token: Token | None = None) -> bool:
        """
        Read the secret file now, forget limits and an unpaid account, and try a token in trouble at once.

        Args:
            token: Written to the file first, unless it is there already.

        Returns:
            Whether another token is in use than before.

        Raises:
            NotWritable: The token cannot be written.
        """
        before = self._gate.current  # the thread that watches the file may be the first to see what is written below
        if token is not None:
            self.redactor.add(token)
            await asyncio.to_thread(put_if_different, self.secret.path, token)
        await self.token_upkeep.reload()
        now = self._gate.current
        return (before and before.number) != (now and now.number)

    # -- reading

    def unready(self, *, ignores_token: bool = False) -> NotReady | None:
        """Return why a task sent now would be turned away; None where it would not."""
        if self.admission.draining:
            return NotReady("draining", "draining: no new executions here")
        if not ignores_token and (unusable := self._gate.unready) is not None:
            return NotReady(*unusable)
        try:
            self.cli.require()
        except SpawnFailed as error:
            return NotReady("no_cli", plain_detail(ErrorClass.SPAWN, str(error)))
        return None

    @property
    def state(self) -> SupervisorState:
        """The state of everything, at this moment."""
        gate, archive = self._gate, self.archive
        records, disk = archive.records, archive.transcripts.free_bytes()
        return SupervisorState(
            unready=self.unready(),
            token=gate.state,
            secret=self.secret.status,
            limit=gate.limit,
            last_refused_generation=gate.statuses.last_refused_generation,
            slots=self._slots,
            unkillable=self._unkillable.slots,
            executions=self._live,
            recently_completed_ids=archive.recently_completed_ids,
            last_task_at=self.admission.last_task_at,
            consecutive_failures=self.admission.consecutive_failures,
            draining=self.admission.draining,
            deliveries=self.deliveries,
            containment=self.containment,
            disk=DiskState(
                free_bytes=None if disk is None else disk[0],
                error=records.trouble,
                damage=list(records.damage),
                set_aside=records.set_aside,
                transcripts_without_record=len(archive.orphaned_transcripts),
            ),
            uptime_seconds=time.monotonic() - self._started_at,
        )

    def record(self, execution_id: str) -> ExecutionRecord:
        """
        Return the record of a running or a finished execution.

        Raises:
            NotFound: Nothing is known under this id.
        """
        live = self._live.get(execution_id)
        return live.record if live is not None else self.archive.record(execution_id)

    def records(
        self, state: str | None, outcome: str | None, limit: int, cursor: str | None, labels: Mapping[str, str]
    ) -> tuple[Iterator[ExecutionRecord], str | None]:
        """List records as :meth:`RecordStore.list`; from any thread."""
        return self.archive.records.list(state, outcome, limit, cursor, labels=labels)

    def usage_since(self, since: float, by: UsedBy) -> dict[str | None, ModelUsage]:
        """Add up what executions have used, as :func:`agent_runtime.store.usage.usage_since`; from any thread."""
        return usage_since(self.archive.records, since, by)

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

    # -- chores

    async def run_chores(self, second: Notifier) -> None:
        """
        Look after the token, measurements, orphans, and records that the disk did not accept, until cancelled.

        Args:
            second: Notified each time the chores are due. Now and then old executions are deleted, too.
        """
        archive, workspaces = self.archive, self.archive.workspaces
        while True:
            await asyncio.to_thread(archive.prune, frozenset(self._live))
            for _ in range(PRUNE_SECONDS):
                await second.wait()
                self.token_upkeep.each_second()
                await self._measure()
                if linux.has_dead_children():
                    await asyncio.to_thread(self.containment.reap_orphans)
                if self._unkillable.slots:
                    await asyncio.to_thread(self._unkillable.try_again)
                if workspaces.has_retired:
                    await asyncio.to_thread(workspaces.delete_some)
                is_full = archive.awaits_upkeep and await asyncio.to_thread(archive.retry_writes)
                for damage in archive.collect_damage(self._live.keys()):
                    self.events.publish("storage.damaged", detail=damage)
                if is_full:
                    break

    async def _measure(self) -> None:
        """Save the running executions' usage of the models, and measure what their processes take of the machine."""
        for one in self._live.running:
            one.save_usage()
        shims = {one.execution_id: one.shim_pid for one in self._live.running if one.shim_pid is not None}
        if not shims:
            return
        from agent_runtime.process.usage import sample  # psutil makes the start 6 ms longer, for nothing yet

        for execution_id, usage in (await asyncio.to_thread(sample, shims)).items():
            execution = self._live.get(execution_id)
            if execution is not None and execution.shim_pid == shims[execution_id]:
                execution.record_measurement(usage)
