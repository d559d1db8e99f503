"""Run attempts in threads of their own, and carry their events to the event loop in the order of publication."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import threading
import time
from collections.abc import Callable

from msgspec.structs import replace

from agent_runtime.claude.invocation import Session
from agent_runtime.errors import SpawnFailed
from agent_runtime.execution.attempt import Attempt
from agent_runtime.execution.attempt_data import AttemptContext, AttemptEvent, AttemptReport, AttemptSpec, Progress
from agent_runtime.execution.execution import Execution

log = logging.getLogger(__name__)


class AttemptThreads:
    """
    Run attempts of executions, each a CLI process with a thread of its own.

    Args:
        next_mark: Returns a mark that is unique among all attempts.
    """

    def __init__(self, context: AttemptContext, next_mark: Callable[[], str]) -> None:
        self._context = context
        self._next_mark = next_mark

    async def run_attempt(self, execution: Execution, session: Session) -> AttemptReport:
        """Run one CLI process in *session*; its events go to the execution."""
        spec = AttemptSpec(
            execution_id=execution.execution_id,
            task=execution.remaining_task,
            session=replace(session, as_text=execution.record.metadata.sent_as_text),
            mark=self._next_mark(),
            total_at=execution.total_at,
            live_texts=execution.live_texts,
            cwd=execution.record.cwd,
        )
        loop = asyncio.get_running_loop()
        attempt = Attempt(spec, self._context, execution.transcript, _Events(loop, execution.record_event).publish)
        report: concurrent.futures.Future[AttemptReport] = concurrent.futures.Future()
        # In a copy of this context, so that the thread's log lines carry the ids of the execution.
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(_run, attempt, report), name=f"attempt-{spec.mark}")
        with execution.attached(attempt):
            try:
                thread.start()
            except RuntimeError:
                attempt.discard()
                error = SpawnFailed("cannot start a thread for the attempt")
                return AttemptReport(started_at=time.time(), error=error)
            return await asyncio.wrap_future(report)


class _Events:
    """Carry an attempt's events to the event loop; at most one :class:`Progress` is under way at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, record_event: Callable[[AttemptEvent], None]) -> None:
        self._loop = loop
        self._record_event = record_event
        self._progress_under_way = False

    def publish(self, event: AttemptEvent) -> None:
        if isinstance(event, Progress):
            if self._progress_under_way:
                return
            self._progress_under_way = True
        try:
            self._loop.call_soon_threadsafe(self._arrived, event)
        except RuntimeError:
            log.debug("an attempt's event came after the event loop had closed")

    def _arrived(self, event: AttemptEvent) -> None:
        if isinstance(event, Progress):
            self._progress_under_way = False
        self._record_event(event)


def _run(attempt: Attempt, report: concurrent.futures.Future[AttemptReport]) -> None:
    report.set_running_or_notify_cancel()  # from here on nothing cancels it
    try:
        report.set_result(attempt.run())
    except BaseException as error:  # noqa: BLE001 - raised again on the event loop
        report.set_exception(error)
