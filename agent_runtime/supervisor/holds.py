"""Decide how a hold ends: the request is sent again, the API's answer is passed on, or the attempt is ended."""

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
    Verify why each request is held, and apply the retry policy to it as if its attempt had ended.

    Where the policy would run a further attempt, the request is sent again instead. Where the policy would park the
    execution, the request waits instead, and the execution keeps its slot and its process. Where the policy gives up,
    or the wait was in vain, the attempt is ended and treated like any other that has ended.

    If another execution that could run now waits for a slot, the attempt that has been held longest is ended, too; its
    execution is parked and resumed later. In a drain no request waits: the execution ends as interrupted, and can be
    resumed elsewhere.
    """

    def __init__(self, is_draining: Callable[[], bool] = lambda: False) -> None:
        self._is_draining = is_draining
        self._settling: set[asyncio.Task[None]] = set()
        self._held: dict[Held, ExecutionRunner] = {}
        self._waiting: set[Held] = set()

    def begin(self, runner: ExecutionRunner, held: Held) -> None:
        """Decide in the background how a hold of the runner's execution ends."""
        self._held[held] = runner  # in the order in which they began
        task = asyncio.ensure_future(self._settle(runner, held))
        self._settling.add(task)
        task.add_done_callback(functools.partial(self._settled, held))

    def _settled(self, held: Held, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        self._waiting.discard(held)
        del self._held[held]
        if task.cancelled() or task.exception() is not None:
            held.request.release(replays=False)
            log.error("a fault of the supervisor", exc_info=None if task.cancelled() else task.exception())

    async def _settle(self, runner: ExecutionRunner, held: Held) -> None:
        request, execution, gate = held.request, runner.execution, runner.context.gate
        generation = request.generation
        trouble = request.detection.trouble or TokenTrouble.REFUSED
        is_limit = trouble is TokenTrouble.LIMITED
        report = AttemptReport(
            started_at=time.time(),
            generation=generation,
            ending=Ending(exit_code=None, evidence=request.detection),
            # A tool can provoke a refusal, but not a limit, which the relay itself has read in the API's answer.
            used_tool=held.used_tool and not is_limit,
        )
        decision, _, verification = await runner.decide(report, trouble, generation)
        gate.statuses.end_try(execution.execution_id)

        def is_moot() -> bool:
            return request.is_over or execution.unstarted is not None  # a stopped execution's attempt ends by itself

        if is_moot():
            return

        def replay(*, counts: bool) -> None:
            runner.resumes += counts
            request.release(replays=True)

        def end(*, gives_up: bool) -> None:
            runner.gives_up |= gives_up
            if is_limit and gives_up:
                request.release(replays=False)  # the CLI ends by itself, and reports the limit
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
        if self._is_draining():
            execution.request_stop(StopReason.SHUTDOWN)
            return
        resets_at = execution.resets_at if isinstance(decision, AwaitReset) else None
        seconds = decision.seconds if not isinstance(decision, AwaitReset) else 0.0
        if resets_at is not None:
            seconds = runner.seconds_past(resets_at)
        now = time.monotonic()
        until = min(now + seconds, now + request.limit_seconds, execution.total_at)
        can_go_on = runner.can_go_on(generation, is_limited=is_limit)
        self._waiting.add(held)
        came = await runner.until(lambda: request.is_over or can_go_on() or self._must_yield(runner), until)
        self._waiting.discard(held)
        if is_moot():
            return
        is_newer, is_past = runner.newer_is_usable(generation), time.monotonic() >= now + seconds - 1.0
        current = gate.current
        if came and not can_go_on() and runner.ticket is not None:
            runner.ticket.yields = True
            end(gives_up=False)
        elif is_newer and (current is None or current.token.kind is not generation.token.kind):
            end(gives_up=False)
        elif came or (resets_at is not None and is_past):
            replay(counts=not is_newer)
        else:
            end(gives_up=is_past)

    def _must_yield(self, runner: ExecutionRunner) -> bool:
        """Whether other executions that could run now need the runner's slot, because it is among the longest held."""
        waiting = [one for held, one in self._held.items() if held in self._waiting and not held.request.is_over]
        candidates = dict.fromkeys(one for one in waiting if not one.could_run())
        return runner in list(candidates)[: max(0, runner.context.slots.wanted)]
