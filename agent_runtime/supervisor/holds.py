"""What becomes of a request that is held: sent again, passed on, or its attempt ended."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from typing import TYPE_CHECKING

from agent_runtime.evidence.verdict import Ending
from agent_runtime.execution.attempt_data import AttemptReport
from agent_runtime.model.state import StopReason, TokenTrouble, Verification
from agent_runtime.supervisor.retry_policy import AwaitReset, GiveUp, GoOn

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.execution.attempt_data import Held
    from agent_runtime.supervisor.runner import ExecutionRunner

log = logging.getLogger(__name__)


class Holds:
    """
    Verify why each request is held, and wait as the retry policy decides for an attempt that has ended.

    What the policy would go on with, or park for, the request waits for in its place; the execution keeps its slot and
    its process. Where the policy gives up, or the wait is over, the attempt is ended, and goes the way of any other.
    In a drain nothing waits: the execution ends as interrupted, and can be resumed elsewhere.
    """

    def __init__(self, is_draining: Callable[[], bool] = lambda: False) -> None:
        self._is_draining = is_draining
        self._settling: set[asyncio.Task[None]] = set()

    def begin(self, runner: ExecutionRunner, held: Held) -> None:
        """Decide about a request in the background."""
        task = asyncio.ensure_future(_settle(runner, held, self._is_draining))
        self._settling.add(task)
        task.add_done_callback(functools.partial(self._settled, held))

    def _settled(self, held: Held, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        if task.cancelled() or task.exception() is not None:
            held.request.release(replays=False)
            log.error("a fault of the supervisor", exc_info=None if task.cancelled() else task.exception())


async def _settle(runner: ExecutionRunner, held: Held, is_draining: Callable[[], bool]) -> None:
    request, execution, gate = held.request, runner.execution, runner.context.gate
    generation = request.generation
    trouble = request.detection.trouble or TokenTrouble.REFUSED
    is_limit = trouble is TokenTrouble.LIMITED
    report = AttemptReport(
        started_at=time.time(),
        generation=generation,
        ending=Ending(exit_code=None, evidence=request.detection),
        # The relay itself has read the limit off the API's answer; which requests are refused a tool can choose.
        used_tool=held.used_tool and not is_limit,
    )
    decision, _, verification = await runner.decide(report, trouble, generation)
    gate.statuses.end_try(execution.execution_id)

    def is_moot() -> bool:
        return request.is_over or execution.requested_stop is not None

    if is_moot():
        return

    def replay(*, counts: bool) -> None:
        runner.resumes += counts
        request.release(replays=True)

    def end(*, gives_up: bool) -> None:
        runner.gives_up |= gives_up
        if is_limit and gives_up:
            request.release(replays=False)  # the CLI ends by itself, and says of what
        else:
            execution.end_hold(request)

    current = gate.current
    is_of_its_kind = current is not None and current.token.kind is generation.token.kind
    if isinstance(decision, GoOn):
        # If the probe cannot decide, only the first request of a further attempt can confirm a refusal.
        if is_of_its_kind and not (decision.counts and verification is Verification.OPEN):
            replay(counts=decision.counts)
        else:
            end(gives_up=False)
        return
    if isinstance(decision, GiveUp):
        gate.statuses.note_reported(generation)
        end(gives_up=True)
        return
    if is_draining():
        execution.request_stop(StopReason.SHUTDOWN)
        return
    resets_at = execution.resets_at if isinstance(decision, AwaitReset) else None
    seconds = decision.seconds if not isinstance(decision, AwaitReset) else 0.0
    if resets_at is not None:
        seconds = runner.seconds_past(resets_at)
    limit = gate.limit_for(generation, execution.task.model) if is_limit else None
    may_return = runner.resumes < runner.context.settings.max_resumes

    def is_good_again() -> bool:
        # A limit that has ended by itself lets none go on before its own random pause is over.
        is_taken_back = may_return and (limit is None or time.time() < limit.until)
        return is_taken_back and gate.is_good_again(generation, execution.task.model)

    now = time.monotonic()
    until = min(now + seconds, now + request.limit_seconds, execution.total_at)
    came = await runner.until(lambda: request.is_over or runner.newer_is_usable(generation) or is_good_again(), until)
    if is_moot():
        return
    is_newer, is_past = runner.newer_is_usable(generation), time.monotonic() >= now + seconds - 1.0
    current = gate.current
    if is_newer and (current is None or current.token.kind is not generation.token.kind):
        end(gives_up=False)
    elif came or (resets_at is not None and is_past):
        replay(counts=not is_newer)
    else:
        end(gives_up=is_past)
