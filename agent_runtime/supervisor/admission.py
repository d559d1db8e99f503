"""Admit executions, have them run, know those that have not ended, and end all of them in a drain."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import msgspec

from agent_runtime.errors import (
    AdmissionError,
    AgentRuntimeError,
    Busy,
    Conflict,
    Draining,
    ErrorClass,
    InvalidRequest,
    StoreUnavailable,
    TokenLimited,
    TokenUnpaid,
    TokenUnusable,
)
from agent_runtime.evidence.verdict import Verdict
from agent_runtime.execution.execution import Execution, ExecutionContext
from agent_runtime.execution.record_writer import RecordWriter
from agent_runtime.model.records import Answer, Usage
from agent_runtime.model.state import Outcome, Phase, StopReason
from agent_runtime.model.task import Task
from agent_runtime.notifier import Notifier
from agent_runtime.store.tasks import NewTask
from agent_runtime.supervisor.answers import StoredResult, answer_to
from agent_runtime.supervisor.archive import Archive
from agent_runtime.supervisor.runner import ExecutionRunner, RunAttempt, RunnerContext
from agent_runtime.supervisor.sessions import SessionPlan
from agent_runtime.telemetry.logs import log_fields

log = logging.getLogger(__name__)

SHORT_BYTES = 64 * 1024
"""The answer of a longer transcript is built and stored in a thread, because that would hold up the event loop."""
RESUME_SECONDS = 1.0
"""How long after a failed submission a task that an earlier supervisor left is submitted again."""


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


class Admission(msgspec.Struct, eq=False):
    """
    Admit executions, start a runner for each, and store how each has ended.

    All methods run on the event loop's thread. Admission is synchronous: :meth:`submit` either raises or returns an
    execution that belongs to the supervisor from then on.

    Attributes:
        runners: What the runners of executions share; *executions*: what the executions themselves share.
        run_attempt: Runs one CLI process in a session.
        changed: Notified when an execution has ended, or admission was opened or closed.
        draining: Nothing is admitted.
        is_ending: The supervisor ends, so admission must not be opened again.
        last_task_at: When the last task was admitted, epoch seconds.
        consecutive_failures: How many executions in a row have failed.
    """

    archive: Archive
    live: LiveExecutions
    background: BackgroundTasks
    runners: RunnerContext
    executions: ExecutionContext
    run_attempt: RunAttempt
    changed: Notifier = msgspec.field(default_factory=Notifier)
    draining: bool = False
    is_ending: bool = False
    last_task_at: float | None = None
    consecutive_failures: int = 0

    def submit(self, new: NewTask, fault: InvalidRequest | None = None) -> Execution | StoredResult:
        """
        Admit a task, join the running execution with its id, or return the answer that is stored for it.

        After a failure the same id begins a new attempt on the same record and transcript.

        Args:
            fault: The error for an option of the task that the CLI in use does not know, if there is one.

        Raises:
            AdmissionError: No room, no usable token, or draining.
            Conflict: The id is known for another body.
            InvalidRequest: The *fault*.
        """
        task = new.task
        execution_id = task.execution_id or str(uuid.uuid4())
        if (live := self.live.get(execution_id)) is not None:
            if live.record.request_digest != task.digest:
                raise Conflict(ErrorClass.CONFLICT.sentence)
            return live
        previous = self.archive.earlier(execution_id, task.digest) if task.execution_id is not None else None
        if isinstance(previous, StoredResult):
            return previous
        if fault is not None:
            raise fault
        if self.draining:
            raise Draining("draining: no new executions here; send it to another agent, or later")
        obstacle = self._parkable_obstacle(task)
        plan = SessionPlan(task, previous)
        slots, settings = self.runners.slots, self.runners.settings
        if obstacle is None and slots.is_full(must_wait=self.runners.sessions.is_claimed(plan.known_id)):
            raise Busy(f"all {slots.total} slots and {slots.queue_limit} queue places are taken; come back later")
        cwd = self.archive.directory_of(new, execution_id, previous)
        writer = RecordWriter.for_task(new, execution_id, plan.next, settings, previous=previous, cwd=cwd)
        execution = Execution(task, writer, self.executions, task.timeout_seconds or settings.timeout)
        self.live[execution_id] = execution
        self.last_task_at = time.time()
        # Task first: a crash between the two writes leaves a task without a record, never a record without its task.
        self.archive.tasks.save(execution_id, new.content)
        execution.save()
        with log_fields(execution_id=execution_id, trace_id=task.trace.trace_id if task.trace else None):
            log.info("execution admitted")
            execution.publish("execution.admitted")
            runner = ExecutionRunner(execution, self.runners, plan, obstacle, run_attempt=self.run_attempt)
            self.background.spawn(self._run_to_end(execution, runner), execution_id)
        return execution

    def _parkable_obstacle(self, task: Task) -> AdmissionError | None:
        """Return why the token cannot be used now, if the task may wait for another; raise it if the task may not."""
        try:
            self.runners.gate.require(task.model)
        except (TokenUnusable, TokenUnpaid, TokenLimited) as error:
            if not task.park_seconds:
                raise
            return error
        return None

    async def _run_to_end(self, execution: Execution, runner: ExecutionRunner) -> None:
        try:
            await runner.run()
        finally:
            # Callers must get an answer, whatever has failed.
            if execution.phase is not Phase.FINISHED:
                execution.end(Verdict(Outcome.FAILED, ErrorClass.ERROR, ErrorClass.ERROR.sentence))
            try:
                size_bytes = self.archive.transcripts.size_bytes(execution.execution_id)
                is_short = size_bytes <= SHORT_BYTES and not execution.transcript.incomplete
                store = functools.partial(self._stored_answer_to, execution)
                execution.conclude(store() if is_short else await asyncio.to_thread(store))
            finally:
                if execution.answer is None:
                    execution.conclude(self.archive.conclude_failed(execution.record))
                self._remove(execution)

    def _stored_answer_to(self, execution: Execution) -> Answer:
        """Store the final record with its answer; return the answer."""
        record, generation = execution.record, self.runners.gate.current
        number = generation.number if generation else None
        build = functools.partial(
            answer_to, execution, log_limit_bytes=self.runners.settings.answer_log_limit, current_generation=number
        )
        answer = build()
        if not self.archive.conclude(record, answer) and record.metadata.retained:
            execution.writer.mark_unretained()
            answer = build()
        return self.archive.shown(record, answer)

    def _remove(self, execution: Execution) -> None:
        self.live.pop(execution.execution_id, None)
        self.runners.sessions.release(execution.execution_id)
        record = execution.record
        self.consecutive_failures = self.consecutive_failures + 1 if record.outcome is Outcome.FAILED else 0
        execution.publish_end()
        self.runners.slots.grant()
        self.runners.gate.changed.notify()
        self.changed.notify()

    # -- the end

    def close(self) -> None:
        """Admit no more executions; those that were admitted go on, unless they are held."""
        self.draining = True
        for execution in [one for one in self.live.values() if one.record.held]:
            execution.request_stop(StopReason.SHUTDOWN)
        self.changed.notify()

    def open(self) -> None:
        """Admit executions again, unless the supervisor is ending."""
        if not self.is_ending:
            self.draining = False
            self.changed.notify()

    async def drain(self, timeout_seconds: float) -> None:
        """
        Close admission, let executions run on, then stop the rest politely and wait until all have ended.

        Args:
            timeout_seconds: For executions to run on and to stop; they are asked to stop a grace period before its end.
        """
        self.is_ending = True
        self.close()
        deadline = time.monotonic() + max(0.0, timeout_seconds - self.runners.settings.stop_grace)
        while self.live and (left := deadline - time.monotonic()) > 0:
            try:
                await asyncio.wait_for(self.changed.wait(), left)
            except TimeoutError:
                break
        self.stop_all(StopReason.SHUTDOWN)
        while self.live:
            await self.changed.wait()

    def stop_all(self, reason: StopReason, *, at_once: bool = False) -> None:
        """Ask every execution to end, politely or at once."""
        for execution in list(self.live.values()):
            execution.request_stop(reason, at_once=at_once)


async def resume_interrupted(admission: Admission) -> None:
    """
    Submit the tasks of interrupted executions again, as their callers would, until every task is settled.

    A task for which there is no usable token or no room yet is submitted again later. A task that its caller has posted
    again in the meantime is left alone. All that can be admitted at once is admitted before the first wait.
    """
    waiting = list(admission.archive.tasks.load_all())
    while waiting := [task for task in waiting if not _submit_again(admission, task)]:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(admission.changed.wait(), RESUME_SECONDS)


def _submit_again(admission: Admission, task: Task) -> bool:
    """Submit one task if it is still interrupted; return whether it needs no further call."""
    known, archive = {"execution_id": task.execution_id}, admission.archive
    try:
        if task.execution_id is None or not archive.is_interrupted(task.execution_id):
            return True
        admission.submit(archive.prepare(task, []))
    except (AdmissionError, StoreUnavailable) as error:
        log.debug("not resumed yet: %s", error, extra=known)
        return False
    except AgentRuntimeError as error:
        log.warning("not resumed: %s", error, extra=known)
    return True
