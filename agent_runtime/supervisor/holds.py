"""Decide how a hold ends: the request is sent again, the API's answer is passed on, or the attempt is ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from agent_runtime.evidence.verdict import Ending
from agent_runtime.execution.attempt_data import AttemptReport, Held
from agent_runtime.model.state import CLASS_BY_TROUBLE, StopReason, TokenTrouble, Verification
from agent_runtime.supervisor.retry_policy import GiveUp, GoOn, Wait
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
        self._settling: dict[Held, tuple[ExecutionRunner, asyncio.Task[None]]] = {}  # in the order in which they began
        self._waiting: set[Held] = set()

    def begin(self, runner: ExecutionRunner, held: Held) -> None:
        """Decide in the background how a hold of the runner's execution ends."""
        self._settling[held] = runner, asyncio.ensure_future(self._settle(runner, held))

    async def _settle(self, runner: ExecutionRunner, held: Held) -> None:
        try:
            await self._decide(runner, held)
        except Exception:
            held.request.release(replays=False)
            log.exception("a fault of the supervisor")
        finally:
            self._waiting.discard(held)
            del self._settling[held]

    async def _decide(self, runner: ExecutionRunner, held: Held) -> None:
        """Verify why the request is held, wait as long as the retry policy has it wait, and end the hold."""
        request, execution, gate = held.request, runner.execution, runner.context.gate
        generation, trouble = request.generation, request.detection.rule.trouble or TokenTrouble.REFUSED
        report = AttemptReport(
            started_at=time.time(),
            generation=generation,
            ending=Ending(exit_code=None, evidence=request.detection),
            # A tool can provoke a refusal, but not a limit, which the relay itself has read in the API's answer.
            used_tool=held.used_tool and trouble is not TokenTrouble.LIMITED,
        )
        decision: GoOn | GiveUp | None
        decided, _, verification = await runner.decide(report, trouble, generation)
        gate.statuses.end_try(execution.execution_id)
        if isinstance(decided, Wait):
            decision = await self._wait(runner, held, decided)
        elif isinstance(decided, GoOn) and decided.counts and verification is Verification.OPEN:
            decision = None  # only the first request of a further attempt can confirm what the probe cannot
        else:
            decision = decided
        if request.is_over or execution.unstarted is not None:
            return  # the attempt of a stopped execution ends by itself
        if isinstance(decision, GoOn) and self._is_of_same_kind(runner, held):
            runner.resumes += decision.counts
            request.release(replays=True)
            return
        if isinstance(decision, GiveUp):
            gate.statuses.note_reported(generation)
            runner.has_waited = True
            if trouble is TokenTrouble.LIMITED:
                request.release(replays=False)  # the CLI ends by itself, and reports the limit
                return
        execution.end_hold(request)  # the execution is parked, runs a further attempt, or is answered

    async def _wait(self, runner: ExecutionRunner, held: Held, wait: Wait) -> GoOn | GiveUp | None:
        """
        Wait in the attempt's process for a token, the end of a limit, or an execution that needs the slot.

        Returns:
            None: the attempt must be ended, and its execution may wait on without it.
        """
        request, execution, trouble = held.request, runner.execution, held.request.detection.rule.trouble
        if self._is_draining():
            if not request.is_over:
                execution.request_stop(StopReason.SHUTDOWN)
            return None
        now, seconds = time.monotonic(), runner.seconds_of(wait)
        until = min(now + seconds, now + request.limit_seconds, execution.total_at)
        can_go_on = runner.resumption_check(request.generation, is_limited=trouble is TokenTrouble.LIMITED)
        self._waiting.add(held)
        came = await runner.wait_until(lambda: request.is_over or can_go_on() or self._must_yield(runner), until)
        is_past = time.monotonic() >= now + seconds - 1.0
        if came and not can_go_on():
            if not request.is_over and runner.ticket is not None:
                runner.ticket.yields = True
            return None
        if came or (wait.is_for_reset and is_past):
            return GoOn(counts=not runner.newer_is_usable(request.generation))
        return GiveUp(CLASS_BY_TROUBLE[trouble or TokenTrouble.REFUSED]) if is_past else None

    @staticmethod
    def _is_of_same_kind(runner: ExecutionRunner, held: Held) -> bool:
        """Whether the held request could be sent with the token in use now: a child keeps to one kind of token."""
        current = runner.context.gate.current
        return current is not None and current.token.kind is held.request.generation.token.kind

    def _must_yield(self, runner: ExecutionRunner) -> bool:
        """Whether other executions that could run now need the runner's slot, because it is among the longest held."""
        waiting = [
            one for held, (one, _) in self._settling.items() if held in self._waiting and not held.request.is_over
        ]
        candidates = dict.fromkeys(one for one in waiting if not one.has_usable_token())
        return runner in list(candidates)[: max(0, runner.context.slots.shortage)]
