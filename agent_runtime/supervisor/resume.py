"""Resumption of executions that the end of an earlier supervisor has interrupted."""

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

RETRY_SECONDS = 1.0


class Resumption:
    """
    Submit the tasks of interrupted executions again, as their callers would.

    A task for which there is no usable token or no room yet is submitted again later. A task that its caller has posted
    again in the meantime is left alone.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._waiting: list[Task] = list(supervisor.archive.tasks.kept())

    def __repr__(self) -> str:
        return f"<Resumption waiting={len(self._waiting)}>"

    def turn(self) -> None:
        """Submit all tasks that can be admitted now."""
        self._waiting = [task for task in self._waiting if not self._submit(task)]

    async def run(self) -> None:
        """Submit again and again until every task is settled."""
        while self._waiting:
            changed = self._supervisor.changed.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed, RETRY_SECONDS)
            self.turn()

    def _submit(self, task: Task) -> bool:
        """Submit one task if it is still interrupted; return whether it is done with."""
        known = {"execution_id": task.execution_id}
        try:
            if task.execution_id is None or not self._supervisor.archive.is_interrupted(task.execution_id):
                return True
            self._supervisor.submit(self._supervisor.archive.tasks.prepare(task, []))
        except (AdmissionError, StoreUnavailable) as error:
            log.debug("not resumed yet: %s", error, extra=known)
            return False
        except AgentRuntimeError as error:
            log.warning("not resumed: %s", error, extra=known)
        return True
