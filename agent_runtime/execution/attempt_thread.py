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


async def run_attempt(
    context: AttemptContext, next_mark: Callable[[], str], execution: Execution, session: Session
) -> AttemptReport:
    """
    Run one CLI process in *session*, in a thread of its own; its events go to the execution.

    Args:
        next_mark: Returns a mark that is unique among all attempts.
    """
    spec = AttemptSpec(
        execution_id=execution.execution_id,
        task=execution.remaining_task,
        session=replace(session, as_text=execution.record.metadata.sent_as_text),
        mark=next_mark(),
        total_at=execution.total_at,
        live_texts=execution.live_texts,
        cwd=execution.record.cwd,
    )
    attempt = Attempt(spec, context, execution.transcript, _publisher(execution.record_event))
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


def _publisher(record_event: Callable[[AttemptEvent], None]) -> Callable[[AttemptEvent], None]:
    """Return a function that carries events to this event loop; one :class:`Progress` at most is under way."""
    loop = asyncio.get_running_loop()
    progress_is_under_way = False

    def record(event: AttemptEvent) -> None:
        nonlocal progress_is_under_way
        progress_is_under_way &= not isinstance(event, Progress)
        record_event(event)

    def publish(event: AttemptEvent) -> None:
        nonlocal progress_is_under_way
        if isinstance(event, Progress):
            if progress_is_under_way:
                return
            progress_is_under_way = True
        try:
            loop.call_soon_threadsafe(record, event)
        except RuntimeError:
            log.debug("an attempt's event came after the event loop had closed")

    return publish


def _run(attempt: Attempt, report: concurrent.futures.Future[AttemptReport]) -> None:
    report.set_running_or_notify_cancel()  # from here on nothing cancels it
    try:
        report.set_result(attempt.run())
    except BaseException as error:  # noqa: BLE001 - raised again on the event loop
        report.set_exception(error)
