"""Going on, after a restart, with what the end of an earlier supervisor has interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from agent_runtime.errors import AdmissionError, AgentRuntimeError, StoreUnavailable

if TYPE_CHECKING:
    from agent_runtime.model.task import Task
    from agent_runtime.supervisor.supervisor import Supervisor

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 1.0


class Resumption:
    """
    Post the tasks of interrupted executions again, as their callers would.

    One that is turned away, because there is no token yet or no room, waits for its turn; one that its caller has
    posted again in the meantime is left to that.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._waiting: list[Task] = list(supervisor.archive.tasks.kept())

    def __repr__(self) -> str:
        return f"<Resumption waiting={len(self._waiting)}>"

    def turn(self) -> None:
        """Post all that may go on now."""
        self._waiting = [task for task in self._waiting if not self._is_settled(task)]

    async def run(self) -> None:
        """Take turns until all have gone on."""
        while self._waiting:
            changed = self._supervisor.changed.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed, LOOK_AGAIN_SECONDS)
            self.turn()

    def _is_settled(self, task: Task) -> bool:
        """Try to go on with one; tell whether it needs no further look."""
        known = {"execution_id": task.execution_id}
        try:
            if task.execution_id is None or not self._supervisor.archive.is_interrupted(task.execution_id):
                return True
            self._supervisor.submit(task)
        except (AdmissionError, StoreUnavailable) as error:
            log.debug("not resumed yet: %s", error, extra=known)
            return False
        except AgentRuntimeError as error:
            log.warning("not resumed: %s", error, extra=known)
        return True
