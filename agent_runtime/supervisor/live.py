"""The executions that have not ended, the chores of each second, and the state of the supervisor at one moment."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from agent_runtime.execution.execution import Execution
from agent_runtime.model.records import Usage
from agent_runtime.model.state import Phase
from agent_runtime.process.linux import syscalls as linux

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from typing import Any

    from agent_runtime.model.state import TokenState
    from agent_runtime.notifier import Notifier
    from agent_runtime.process.containment_choice import Containment
    from agent_runtime.process.linux.landlock import Confinement
    from agent_runtime.process.unkillable import Unkillable
    from agent_runtime.secret.file import SecretStatus
    from agent_runtime.settings import Settings
    from agent_runtime.supervisor.archive import Archive
    from agent_runtime.telemetry.events import EventLog
    from agent_runtime.tokens.status import Limit
    from agent_runtime.tokens.upkeep import TokenUpkeep

log = logging.getLogger(__name__)

PRUNE_SECONDS = 600


class BackgroundTasks:
    """Tasks of the event loop that are held until they end; their exceptions are logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run *work* as a task; *name* is the id of its execution, if it belongs to one."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a fault of the supervisor", exc_info=error, extra={"execution_id": task.get_name()})


class LiveExecutions(dict[str, Execution]):
    """The executions that have not ended, by their ids."""

    @property
    def running(self) -> list[Execution]:
        """The executions that have a slot."""
        return [one for one in self.values() if one.phase in (Phase.RUNNING, Phase.STOPPING)]

    @property
    def pending_ids(self) -> list[str]:
        """Ids of the executions that wait for a slot or for a newer token."""
        return [one.execution_id for one in self.values() if one.phase in (Phase.QUEUED, Phase.PARKED)]

    @property
    def usage(self) -> Usage:
        """What all running executions together take of the machine."""
        return functools.reduce(Usage.plus, (one.usage for one in self.running), Usage())

    @property
    def held_by(self) -> dict[int, int]:
        """How many running attempts hold each generation, by its number."""
        return Counter(sorted(held.number for one in self.values() if (held := one.held) is not None))

    def follow_secret(self) -> None:
        """Make all running attempts check whether the secret file's generation has reached their children."""
        for one in self.values():
            one.follow_secret()


class Unready(msgspec.Struct, frozen=True):
    """Why a task sent now would be turned away, as a word and as a sentence."""

    reason: str
    detail: str


class DiskState(msgspec.Struct, frozen=True):
    """
    The disk that holds records and transcripts.

    Attributes:
        free_bytes: Free space; None: unknown.
        error: Why a record cannot be written, or read, now; None: it can.
        damage: What was found to be lost or damaged since the start, a sentence each.
        set_aside: Names of damaged files in the data directory.
        transcripts_without_record: How many transcripts have no record.
    """

    free_bytes: int | None
    error: str | None
    damage: list[str]
    set_aside: list[str]
    transcripts_without_record: int


class SupervisorState(msgspec.Struct, frozen=True, kw_only=True):
    """
    The state of the supervisor at one moment.

    Attributes:
        executions: All that have not ended; *running*: those that have a slot.
        limit: The longest limit of the token in use, if it is limited.
        secret: What is known of the secret file.
        unkillable: How many slots are taken by processes that could not be ended.
        held_by: How many running attempts hold each generation, by its number.
        last_task_at: When the last task was admitted, epoch seconds.
        delivery: How a token reaches a child: ``delivery``, ``reason`` and ``setting``.
        cannot_deliver: No token can be delivered in that way.
        containment: How attempts are contained: ``layer``, ``setting`` and ``lacking``.
    """

    unready: Unready | None
    token: TokenState
    secret: SecretStatus
    limit: Limit | None
    last_refused_generation: int | None
    slots: int
    slots_taken: int
    unkillable: int
    queue_limit: int
    queue_length: int
    executions: list[Execution]
    running: list[Execution]
    pending_ids: list[str]
    recently_completed_ids: list[str]
    usage: Usage
    held_by: dict[int, int]
    last_task_at: float | None
    consecutive_failures: int
    draining: bool
    delivery: dict[str, str]
    cannot_deliver: bool
    containment: Mapping[str, Any]
    confinement: Confinement
    disk: DiskState
    uptime_seconds: float


class Maintenance(msgspec.Struct, frozen=True):
    """The chores of each second: the token, measurements, orphans, and records that the disk did not accept."""

    settings: Settings
    live: LiveExecutions
    archive: Archive
    events: EventLog
    token: TokenUpkeep
    containment: Containment
    unkillable: Unkillable

    async def run(self, second: Notifier) -> None:
        """Do the chores each time *second* is notified, and now and then delete old executions, until cancelled."""
        workspaces = self.archive.workspaces
        while True:
            await asyncio.to_thread(self.archive.prune, self.settings, in_use=frozenset(self.live))
            for _ in range(PRUNE_SECONDS):
                await second.wait()
                self.token.each_second()
                await self._measure()
                if linux.has_dead_children():
                    await asyncio.to_thread(self.containment.reap_orphans)
                if self.unkillable.slots:
                    await asyncio.to_thread(self.unkillable.try_again)
                if workspaces.has_retired:
                    await asyncio.to_thread(workspaces.delete_some)
                is_full = self.archive.awaits_upkeep and await asyncio.to_thread(self.archive.retry_writes)
                for damage in self.archive.collect_damage(self.live.keys()):
                    self.events.publish("storage.damaged", detail=damage)
                if is_full:
                    break

    async def _measure(self) -> None:
        """Save the running executions' usage of the models, and measure what their processes take of the machine."""
        for one in self.live.running:
            one.save_usage()
        shims = {one.execution_id: one.shim_pid for one in self.live.running if one.shim_pid is not None}
        if not shims:
            return
        from agent_runtime.process.usage import sample  # psutil makes the start 6 ms longer, for nothing yet

        for execution_id, usage in (await asyncio.to_thread(sample, shims)).items():
            execution = self.live.get(execution_id)
            if execution is not None and execution.shim_pid == shims[execution_id]:
                execution.record_measurement(usage)
