"""Run one execution: wait for a slot, run an attempt, decide how to go on, and so on until there is an answer."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from agent_runtime.claude.invocation import Session
from agent_runtime.errors import AdmissionError, AgentRuntimeError, ErrorClass, SessionUnknown, TokenLimited
from agent_runtime.evidence.verdict import UNSTARTED, Verdict, token_verdict
from agent_runtime.execution.attempt_data import AttemptReport, Held
from agent_runtime.execution.execution import Execution
from agent_runtime.model.state import CLASS_BY_TROUBLE, Outcome, StopReason, TokenTrouble, Verification
from agent_runtime.secret.generations import Generation
from agent_runtime.settings import Settings
from agent_runtime.supervisor.retry_policy import (
    AFTER_RESET_SECONDS,
    Decision,
    GiveUp,
    GoOn,
    Situation,
    Wait,
    decide,
    trouble_of,
    wait_for_reset,
)
from agent_runtime.supervisor.sessions import SessionPlan, SessionTrouble, SessionUse
from agent_runtime.supervisor.slots import Slots, Ticket
from agent_runtime.tokens.gate import TokenGate
from agent_runtime.tokens.verifier import RefusalVerifier

RunAttempt = Callable[[Execution, Session], Awaitable[AttemptReport]]

log = logging.getLogger(__name__)


class RunnerContext(msgspec.Struct, frozen=True):
    """
    What the runners of a supervisor share: slots, sessions, and what is known about tokens.

    Attributes:
        hold: Decides how each hold of a request ends.
    """

    settings: Settings
    slots: Slots
    sessions: SessionUse
    gate: TokenGate
    verifier: RefusalVerifier
    hold: Callable[[ExecutionRunner, Held], None] = lambda _runner, held: held.request.release(replays=False)


@dataclass(eq=False, repr=False)
class ExecutionRunner:
    """
    Take one execution through as many attempts as it needs.

    The slot is held during attempts and while a refusal is verified, never while the execution is parked.

    Attributes:
        run_attempt: Runs one CLI process in a session; nothing else here needs a process.
        obstacle: Why the token cannot be used now, if the execution was admitted to wait for another; None: it can be.
        resumes: How often the execution went on without a newer generation.
        has_waited: The execution must not wait any more: it did while a request of its attempt was held.
        ticket: The execution's slot, or its place in the queue; None: it has neither.
    """

    execution: Execution
    context: RunnerContext
    plan: SessionPlan
    obstacle: AdmissionError | None = None
    run_attempt: RunAttempt = field(kw_only=True)
    resumes: int = 0
    has_waited: bool = False
    ticket: Ticket | None = None

    def __post_init__(self) -> None:
        self.execution.on_held = functools.partial(self.context.hold, self)
        self._first_session_id = self.plan.known_id
        self._claim(self._first_session_id)
        if self.obstacle is None:
            self.ticket = self._enqueue()

    async def run(self) -> None:
        """Run to the final record."""
        execution = self.execution
        try:
            final = await self._run()
        finally:
            self.context.gate.statuses.end_try(execution.execution_id)
            self.context.gate.statuses.clear_suspicion(execution.execution_id)
            self._leave_slot()
        execution.end(final)

    async def _run(self) -> Verdict:
        execution, plan = self.execution, self.plan
        if self.obstacle is not None:
            refused = self._failed(self.obstacle)
            if not await self._park_at_admission(self.obstacle):
                return execution.unstarted or refused
        while True:
            if self.ticket is None:
                self.ticket = self._enqueue(ahead=True)
            if not await execution.wait(self.ticket.granted, execution.total_at):
                return execution.unstarted or UNSTARTED[StopReason.TIMEOUT]
            execution.slot = self.ticket.number
            if self.context.settings.probe == "before_dispatch":
                await self._probe_first()
                if (ended := execution.unstarted) is not None:
                    return ended
            if execution.remaining_task.max_budget_usd == 0:
                return Verdict(Outcome.FAILED, ErrorClass.MAX_BUDGET, ErrorClass.MAX_BUDGET.sentence)
            report, final = await self._attempt(plan.next)
            if (trouble := plan.record_end(report, final)) is not None:
                execution.writer.mark_session_lost()
                if execution.requested_stop is None and self._begin_anew(trouble, report):
                    continue
                if execution.requested_stop is None and trouble is SessionTrouble.UNKNOWN:
                    return self._session_unknown()
            if plan.next.prompt is None and execution.requested_stop is None and execution.is_swallowed(report):
                execution.writer.mark_sent_as_text()
                plan.begin_anew()
                continue
            if (token_trouble := trouble_of(report, final)) is None:
                return final
            if (answer := await self._after_token_trouble(report, final, token_trouble)) is not None:
                return answer

    async def _attempt(self, session: Session) -> tuple[AttemptReport, Verdict]:
        execution = self.execution
        self._claim(str(session.session_id))
        execution.begin_attempt(session)
        report = await self.run_attempt(execution, session)
        final = execution.end_attempt(report, session)
        self._claim(execution.record.session_id)  # CLI 1.0.128 resumes a session under another id
        return report, final

    # -- deciding

    async def _after_token_trouble(
        self, report: AttemptReport, final: Verdict, trouble: TokenTrouble
    ) -> Verdict | None:
        """Verify the trouble and wait as the retry policy decides; return the final verdict, or None to run again."""
        execution, gate = self.execution, self.context.gate
        generation = report.generation or gate.current
        decision, trouble, _ = await self.decide(report, trouble, generation)
        final = final if report.error is not None else token_verdict(trouble)
        gate.statuses.end_try(execution.execution_id)
        if (ended := execution.unstarted) is not None:
            return ended
        if isinstance(decision, GiveUp):
            gate.statuses.note_reported(generation)
            error_class = decision.error_class
            is_same = error_class is final.error_class
            return final if is_same else Verdict(Outcome.FAILED, error_class, error_class.sentence)
        if isinstance(decision, GoOn):
            self.resumes += decision.counts
        else:
            self._leave_slot()
            if not await self._park(decision, generation, is_limited=final.error_class is ErrorClass.RATE_LIMIT):
                return execution.unstarted or final
        self.plan.continue_in(execution.record.session_id)
        if execution.writer.count_resume():
            execution.publish("execution.resumed", attempts=len(execution.record.attempts))
        return None

    async def decide(
        self, report: AttemptReport, trouble: TokenTrouble, generation: Generation | None
    ) -> tuple[Decision, TokenTrouble, Verification]:
        """Verify the trouble; return the decision, the trouble after verification, and what has been verified."""
        execution, gate, settings = self.execution, self.context.gate, self.context.settings
        if not self.newer_is_usable(generation):
            await asyncio.to_thread(gate.secret.poll)  # a newer token may be written and not noticed yet
        verification = Verification.CONFIRMED
        execution.resets_at = report.error.resets_at if isinstance(report.error, TokenLimited) else None
        if report.ending is not None and generation is not None:
            if trouble is TokenTrouble.LIMITED:
                model = execution.task.model or report.run_stats.usage.model_name
                verification, execution.resets_at = gate.verify_limit(
                    generation, report.detection, model, may_be_forged=report.used_tool
                )
            else:
                verification = await self._verify(report, generation, trouble)
                if verification is Verification.CONFIRMED:
                    trouble = gate.statuses.trouble_of(generation) or trouble
        detection, reset_at, asked = report.detection, execution.resets_at, execution.task.park_seconds
        decision = decide(
            Situation(
                error_class=CLASS_BY_TROUBLE[trouble],
                verification=verification,
                newer_is_usable=self.newer_is_usable(generation),
                is_first=self.has_waited or gate.statuses.is_unreported(generation),
                park_seconds=0.0 if self.has_waited else asked if asked is not None else settings.park,
                waited_seconds=report.waited_seconds,
                resumes=self.resumes,
                max_resumes=settings.max_resumes,
                is_only_said=detection is not None and not detection.condemns and not report.used_tool,
                reset_in_seconds=None if reset_at is None else reset_at - time.time(),
                wait_for_reset_seconds=0.0 if self.has_waited else settings.wait_for_reset,
                seconds_left=execution.total_at - time.monotonic(),
            )
        )
        return decision, trouble, verification

    async def _verify(self, report: AttemptReport, generation: Generation, trouble: TokenTrouble) -> Verification:
        """
        Wait until a refusal is verified or a newer token is loaded; also returns when the execution is stopped.

        When a newer token is loaded first, the verification goes on by itself.
        """
        gate, by, detection = self.context.gate, self.execution.execution_id, report.detection
        current = gate.current
        is_in_use = current is not None and current.number == generation.number
        if not is_in_use:
            gate.statuses.clear_suspicion(by)  # no execution would begin with an older generation anyway
        verifying = self.context.verifier.start(
            self.context.verifier.verify(
                generation,
                by=by if is_in_use else None,
                trouble=trouble,
                may_condemn=detection is not None and detection.condemns and not report.used_tool,
                rule=detection.rule.id if detection else "unknown",
                model=report.run_stats.usage.model_name,
            )
        )
        verifying.add_done_callback(lambda _: gate.changed.notify())
        await self.wait_until(lambda: verifying.done() or self.newer_is_usable(generation), self.execution.total_at)
        self.context.slots.grant()
        if verifying.done():
            return verifying.result()
        return Verification.CONFIRMED if self.newer_is_usable(generation) else Verification.OPEN

    async def _probe_first(self) -> None:
        """Ask the API about the token that the next attempt would get; return early if the execution is stopped."""
        gate, verifier = self.context.gate, self.context.verifier
        await asyncio.to_thread(gate.secret.poll)
        generation = gate.current
        if generation is None or gate.statuses.trouble_of(generation) is not None:
            return
        asked_at = time.monotonic()
        asking = asyncio.ensure_future(verifier.ask(generation, self.execution.task.model))
        if await self.execution.wait(asking, self.execution.total_at):
            verifier.note_verdict(generation, asking.result(), asked_at)

    def newer_is_usable(self, generation: Generation | None) -> bool:
        """Whether a generation newer than *generation* is loaded and could be spawned with now."""
        return self.context.gate.is_newer_usable(generation, self.execution.task.model)

    # -- sessions

    def _begin_anew(self, trouble: SessionTrouble, report: AttemptReport) -> bool:
        """Plan a new session where the present one is lost or refused; return whether that is possible."""
        plan, execution = self.plan, self.execution
        if trouble is SessionTrouble.UNKNOWN and plan.is_named:
            return False
        if not plan.next.has_history or report.run_stats.has_progress or not plan.restart(trouble):
            return False
        execution.writer.mark_session_restarted()
        log.warning("session is %s: begun anew", trouble.value, extra={"execution_id": execution.execution_id})
        return True

    def _session_unknown(self) -> Verdict:
        """Return the verdict where the CLI knows no such session: the one the task names, or ours, lost once more."""
        if not self.plan.is_named:
            return Verdict(Outcome.FAILED, ErrorClass.ERROR, SessionUnknown.OURS)
        return self._failed(SessionUnknown(SessionUnknown.NAMED))

    def _failed(self, error: AgentRuntimeError) -> Verdict:
        self.execution.error = error
        return Verdict(Outcome.FAILED, error.error_class, str(error))

    def _claim(self, session_id: str | None) -> None:
        if session_id is not None:
            self.context.sessions.claim(session_id, self.execution.execution_id)

    # -- waiting

    def _enqueue(self, *, ahead: bool = False) -> Ticket:
        """Queue for a slot; later executions pass this one for as long as another execution uses its session."""
        use, known, by = self.context.sessions, self._first_session_id, self.execution.execution_id
        ticket = Ticket(functools.partial(use.has_turn, known, by), self.has_usable_token, is_ahead=ahead)
        self.context.slots.enqueue(ticket)
        self.context.gate.changed.notify()  # a held execution may have to make room
        return ticket

    @property
    def _has_had_slot(self) -> bool:
        """Whether going on with the same generation counts as a resume: a first attempt is none."""
        return self.execution.slot is not None

    def has_usable_token(self) -> bool:
        """Whether there is a token to run with now."""
        return self.context.gate.is_usable(self.execution.task.model)

    def _leave_slot(self) -> None:
        if self.ticket is not None:
            self.context.slots.leave(self.ticket)
            self.ticket = None

    async def _park_at_admission(self, obstacle: AdmissionError) -> bool:
        """Wait for a usable token or the end of the limit, as long as the request allows; return as :meth:`_park`."""
        seconds = self.execution.task.park_seconds or 0.0
        if not isinstance(obstacle, TokenLimited):
            return await self._park(Wait(seconds), None, is_limited=False)
        reset_in = None if obstacle.resets_at is None else obstacle.resets_at - time.time()
        wait = wait_for_reset(reset_in, seconds, self.execution.total_at - time.monotonic()) or Wait(seconds)
        return await self._park(wait, self.context.gate.current, is_limited=True)

    async def _park(self, wait: Wait, generation: Generation | None, *, is_limited: bool) -> bool:
        """
        Wait without a slot until the execution can go on, with a newer generation or this one; return whether it can.

        Args:
            generation: The one that cannot be used now; None: any generation will do.
            is_limited: It cannot be used because of a usage limit.
        """
        execution, seconds = self.execution, self.seconds_of(wait)
        until = min(time.monotonic() + seconds, execution.total_at)
        execution.park()
        number = generation.number if generation else None
        execution.publish("execution.parked", generation=number, seconds=seconds)
        log.info("execution parked for %g s", seconds, extra={"execution_id": execution.execution_id})
        came = await self.wait_until(self.resumption_check(generation, is_limited=is_limited), until)
        if not came and (not wait.is_for_reset or execution.unstarted is not None):
            return False
        self.resumes += self._has_had_slot and not self.newer_is_usable(generation)
        execution.requeue()
        return True

    def resumption_check(self, generation: Generation | None, *, is_limited: bool) -> Callable[[], bool]:
        """Return a check whether to go on, with a newer generation or this one; arguments as for :meth:`_park`."""
        gate, model = self.context.gate, self.execution.task.model
        limit = gate.limit_for(generation, model) if is_limited and generation is not None else None
        may_resume = not self._has_had_slot or self.resumes < self.context.settings.max_resumes
        may_return = may_resume and (limit is not None or not is_limited)

        def condition() -> bool:
            # When a limit ends by itself, each execution still waits for its own random pause to be over.
            is_taken_back = may_return and (limit is None or time.time() < limit.until)
            is_good_again = is_taken_back and generation is not None and gate.is_good_again(generation, model)
            return is_good_again or self.newer_is_usable(generation)

        return condition

    def seconds_of(self, wait: Wait) -> float:
        """Return how long to wait; for a limit's end until a random moment after it that leaves time to work in."""
        if not wait.is_for_reset:
            return wait.seconds
        left = self.execution.total_at - time.monotonic() - wait.seconds
        first, last = AFTER_RESET_SECONDS
        return wait.seconds + random.uniform(first, max(first, min(last, left / 2)))  # noqa: S311 - nothing secret

    async def wait_until(self, condition: Callable[[], bool], until: float) -> bool:
        """Wait until *condition* holds, checked at each change of the gate; False as from :meth:`Execution.wait`."""
        change = self.context.gate.changed.wait()
        while not condition():
            if not await self.execution.wait(change, until):
                return False
            change = self.context.gate.changed.wait()
        return True
