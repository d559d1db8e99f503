"""The executions that have not ended, and the state of the supervisor."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import msgspec

from agent_runtime.delivery.delivery import Deliveries
from agent_runtime.execution.execution import Execution
from agent_runtime.model.records import Usage
from agent_runtime.model.state import DiskState, NotReady, Phase, TokenState
from agent_runtime.process.containment_choice import Containment
from agent_runtime.secret.file import SecretStatus
from agent_runtime.supervisor.slots import Slots
from agent_runtime.tokens.status import Limit

log = logging.getLogger(__name__)


class BackgroundTasks:
    """Tasks of the event loop that are held until they end; their exceptions are logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run *work* as a task; *name* is the id of its execution, or says in a word what it is."""
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
        return Counter(sorted(newest.number for one in self.values() if (newest := one.generation) is not None))

    def follow_secret(self) -> None:
        """Make all running attempts check whether the secret file's generation has reached their children."""
        for one in self.values():
            one.follow_secret()


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
