"""Decide how a hold ends: the request is sent again, the API's answer is passed on, or the attempt is ended."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from enum import Enum, auto
from typing import TYPE_CHECKING

from agent_runtime.evidence.verdict import Ending
from agent_runtime.execution.attempt_data import AttemptReport
from agent_runtime.model.state import StopReason, TokenTrouble, Verification
from agent_runtime.supervisor.retry_policy import GiveUp, GoOn

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.execution.attempt_data import Held
    from agent_runtime.supervisor.retry_policy import Wait
    from agent_runtime.supervisor.runner import ExecutionRunner

log = logging.getLogger(__name__)


class _HoldEnd(Enum):
    """How a hold ends, unless the attempt ends first."""

    REPLAYED = auto()
    """The request is sent again, with a newer token."""
    RESUMED = auto()
    """The request is sent again with the same token, which counts as a resume."""
    STOPPED = auto()
    """The attempt is ended; its execution is parked, or runs a further attempt."""
    YIELDED = auto()
    """The attempt is ended and its execution parked, because another execution needs the slot."""
    GIVEN_UP = auto()
    """The attempt is ended, and its execution must not wait any more."""
    INTERRUPTED = auto()
    """The supervisor drains, so the execution ends as interrupted."""


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
        request, execution = held.request, runner.execution
        end = await self._end_of(runner, held)
        if request.is_over or execution.unstarted is not None:
            return  # the attempt of a stopped execution ends by itself
        if end is _HoldEnd.INTERRUPTED:
            execution.request_stop(StopReason.SHUTDOWN)
            return
        if end is _HoldEnd.REPLAYED or end is _HoldEnd.RESUMED:
            runner.resumes += end is _HoldEnd.RESUMED
            request.release(replays=True)
            return
        runner.has_waited |= end is _HoldEnd.GIVEN_UP
        if end is _HoldEnd.YIELDED and runner.ticket is not None:
            runner.ticket.yields = True
        if end is _HoldEnd.GIVEN_UP and request.detection.trouble is TokenTrouble.LIMITED:
            request.release(replays=False)  # the CLI ends by itself, and reports the limit
        else:
            execution.end_hold(request)

    async def _end_of(self, runner: ExecutionRunner, held: Held) -> _HoldEnd:
        """Verify why the request is held, and wait as long as the retry policy has it wait."""
        request, gate = held.request, runner.context.gate
        generation, trouble = request.generation, request.detection.trouble or TokenTrouble.REFUSED
        report = AttemptReport(
            started_at=time.time(),
            generation=generation,
            ending=Ending(exit_code=None, evidence=request.detection),
            # A tool can provoke a refusal, but not a limit, which the relay itself has read in the API's answer.
            used_tool=held.used_tool and trouble is not TokenTrouble.LIMITED,
        )
        decision, _, verification = await runner.decide(report, trouble, generation)
        gate.statuses.end_try(runner.execution.execution_id)
        if isinstance(decision, GoOn):
            # If the probe cannot decide, only the first request of a further attempt can confirm a refusal.
            if not self._is_of_same_kind(runner, held) or (decision.counts and verification is Verification.OPEN):
                return _HoldEnd.STOPPED
            return _HoldEnd.RESUMED if decision.counts else _HoldEnd.REPLAYED
        if isinstance(decision, GiveUp):
            if not request.is_over and runner.execution.unstarted is None:
                gate.statuses.note_reported(generation)
            return _HoldEnd.GIVEN_UP
        if self._is_draining():
            return _HoldEnd.INTERRUPTED
        return await self._wait(runner, held, decision)

    async def _wait(self, runner: ExecutionRunner, held: Held, wait: Wait) -> _HoldEnd:
        """Wait in the attempt's process for a token, the end of a limit, or an execution that needs the slot."""
        request, now, seconds = held.request, time.monotonic(), runner.seconds_of(wait)
        until = min(now + seconds, now + request.limit_seconds, runner.execution.total_at)
        is_limited = request.detection.trouble is TokenTrouble.LIMITED
        can_go_on = runner.resumption_check(request.generation, is_limited=is_limited)
        self._waiting.add(held)
        came = await runner.wait_until(lambda: request.is_over or can_go_on() or self._must_yield(runner), until)
        self._waiting.discard(held)
        is_newer, is_past = runner.newer_is_usable(request.generation), time.monotonic() >= now + seconds - 1.0
        if came and not can_go_on():
            return _HoldEnd.YIELDED
        if is_newer and not self._is_of_same_kind(runner, held):
            return _HoldEnd.STOPPED
        if came or (wait.is_for_reset and is_past):
            return _HoldEnd.REPLAYED if is_newer else _HoldEnd.RESUMED
        return _HoldEnd.GIVEN_UP if is_past else _HoldEnd.STOPPED

    @staticmethod
    def _is_of_same_kind(runner: ExecutionRunner, held: Held) -> bool:
        """Whether the held request could be sent with the token in use now: a child keeps to one kind of token."""
        current = runner.context.gate.current
        return current is not None and current.token.kind is held.request.generation.token.kind

    def _must_yield(self, runner: ExecutionRunner) -> bool:
        """Whether other executions that could run now need the runner's slot, because it is among the longest held."""
        waiting = [one for held, one in self._held.items() if held in self._waiting and not held.request.is_over]
        candidates = dict.fromkeys(one for one in waiting if not one.has_usable_token())
        return runner in list(candidates)[: max(0, runner.context.slots.shortage)]
