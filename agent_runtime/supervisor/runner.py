"""The course of one execution: slot, attempt, decision, and again, until there is an answer."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING

import msgspec

from agent_runtime.errors import AdmissionError, AgentRuntimeError, ErrorClass, SessionUnknown, TokenLimited
from agent_runtime.evidence.verdict import Verdict, token_verdict
from agent_runtime.model.state import CLASS_BY_TROUBLE, Outcome, StopReason, TokenTrouble, Verification
from agent_runtime.supervisor.retry_policy import (
    AFTER_RESET_SECONDS,
    AwaitReset,
    GiveUp,
    GoOn,
    Restart,
    Situation,
    decide,
    resets_in_time,
)
from agent_runtime.supervisor.sessions import SessionTrouble
from agent_runtime.tokens.status import UNKNOWN_LIMIT_SECONDS, Limit

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from agent_runtime.evidence.detector import Detection
    from agent_runtime.execution.attempt_report import AttemptReport
    from agent_runtime.execution.execution import Execution
    from agent_runtime.secret.generations import Generation
    from agent_runtime.settings import Settings
    from agent_runtime.supervisor.retry_policy import Decision
    from agent_runtime.supervisor.sessions import SessionPlan, SessionUse
    from agent_runtime.supervisor.slots import Slots, Ticket
    from agent_runtime.telemetry.events import EventLog
    from agent_runtime.tokens.gate import TokenGate
    from agent_runtime.tokens.verifier import RefusalVerifier

log = logging.getLogger(__name__)

CLOCK_SLACK_SECONDS = 0.001

UNSTARTED: dict[StopReason, Verdict] = {
    StopReason.TIMEOUT: Verdict(Outcome.FAILED, ErrorClass.TIMEOUT, "the timeout was over while the execution waited"),
    StopReason.CANCELLED: Verdict(Outcome.CANCELLED, ErrorClass.CANCELLED, ErrorClass.CANCELLED.sentence),
    StopReason.SHUTDOWN: Verdict(Outcome.FAILED, ErrorClass.INTERRUPTED, ErrorClass.INTERRUPTED.sentence),
}
"""How an execution ends that is stopped while it waits."""


class RunnerContext(msgspec.Struct, frozen=True):
    """What all courses share: who gives out slots, and who knows about tokens."""

    settings: Settings
    slots: Slots
    sessions: SessionUse
    gate: TokenGate
    confirmer: RefusalVerifier
    events: EventLog


class ExecutionRunner:
    """
    Take one execution through as many attempts as it needs.

    The slot is held during attempts and while it is found out what became of the token, never while it is parked.
    """

    def __init__(self, execution: Execution, context: RunnerContext, plan: SessionPlan, *, parks: bool) -> None:
        self._execution = execution
        self._context = context
        self._plan = plan
        self._resumes = 0
        self._first_session_id = plan.known_id
        self._claim(self._first_session_id)
        self._ticket = None if parks else self._enqueue()

    async def run(self) -> None:
        """Run to the final record."""
        execution = self._execution
        try:
            final = await self._run()
        finally:
            self._context.gate.statuses.end_try(execution.execution_id)
            self._context.gate.statuses.unsuspect(execution.execution_id)
            self._leave_slot()
        execution.end(final)

    async def _run(self) -> Verdict:
        execution, gate, plan = self._execution, self._context.gate, self._plan
        if self._ticket is None:
            # Admitted although its token cannot be used now, because it is ready to wait.
            refused = self._refused_at_admission()
            if not await self._park_at_admission():
                return self._unstarted() or refused
        while True:
            if self._ticket is None:
                self._ticket = self._enqueue(ahead=True)
            if not await self._wait(self._ticket.granted, execution.total_at):
                return self._unstarted() or UNSTARTED[StopReason.TIMEOUT]
            execution.slot = self._ticket.number
            if self._context.settings.probe == "before_dispatch":
                await self._ask_first()
                if (ended := self._unstarted()) is not None:
                    return ended
            self._claim(str(plan.next.session_id))
            report = await execution.attempt(plan.next)
            self._claim(execution.record.session_id)  # 1.0.128 goes on under another id
            final = execution.judge(report)
            if (trouble := plan.ended(report, final)) is not None:
                execution.give_up_session()
                if execution.requested_stop is None and self._begins_anew(trouble, report):
                    continue
                if execution.requested_stop is None and trouble is SessionTrouble.UNKNOWN:
                    return self._session_unknown()
            if plan.next.prompt is None and execution.requested_stop is None and execution.was_swallowed(report):
                plan.begin_anew()
                continue
            if not _is_about_token(report, final):
                return final
            generation = report.generation or gate.current
            decision, final = await self._decide(report, final, generation)
            gate.statuses.end_try(execution.execution_id)
            if (ended := self._unstarted()) is not None:
                return ended
            if isinstance(decision, GiveUp):
                gate.statuses.answered(generation)
                return _as(final, decision.error_class)
            if isinstance(decision, GoOn):
                self._resumes += decision.counts
            else:
                self._leave_slot()
                resets_at = execution.resets_at if isinstance(decision, AwaitReset) else None
                seconds = 0.0 if isinstance(decision, AwaitReset) else decision.seconds
                is_limited = final.error_class is ErrorClass.RATE_LIMIT
                if not await self._park(seconds, generation, is_limited=is_limited, resets_at=resets_at):
                    return self._unstarted() or final
            self._restart(decision.restart)

    # -- deciding

    async def _decide(
        self, report: AttemptReport, final: Verdict, generation: Generation | None
    ) -> tuple[Decision, Verdict]:
        """Find out what holds for the token; return what to do, and what to tell the caller if it comes to that."""
        execution, gate = self._execution, self._context.gate
        newer = gate.is_newer_usable(generation, execution.task.model)
        if not newer:
            # It may have been written without having been noticed yet.
            await asyncio.to_thread(gate.secret.poll)
            newer = gate.is_newer_usable(generation, execution.task.model)
        confirmation = Verification.CONFIRMED
        trouble = _trouble(report, final)
        execution.resets_at = report.error.resets_at if isinstance(report.error, TokenLimited) else None
        if trouble is TokenTrouble.LIMITED:
            if report.ending is not None and generation is not None:
                confirmation = self._note_limit(report, generation)
        elif report.ending is not None and generation is not None:
            confirming = self._context.confirmer.begin(self._confirm(report, generation, trouble))
            newer = newer or await self._newer_while(confirming, generation)
            # What became of an older one is found out beside: this execution need not wait for it.
            if confirming.done():
                confirmation = confirming.result()
            elif not newer:
                confirmation = Verification.OPEN
            self._context.slots.grant()
            if confirmation is Verification.CONFIRMED:
                trouble = gate.statuses.trouble_of(generation) or trouble
        settings, reset_at = self._context.settings, execution.resets_at
        decision = decide(
            Situation(
                error_class=CLASS_BY_TROUBLE[trouble],
                confirmation=confirmation,
                newer_is_usable=newer,
                is_first=gate.statuses.nobody_answered(generation),
                park_seconds=execution.park_seconds if execution.park_seconds is not None else settings.park,
                resumes=self._resumes,
                max_resumes=settings.max_resumes,
                has_progress=self._plan.has_progress,
                is_only_said=_is_only_said(report),
                reset_in_seconds=None if reset_at is None else reset_at - time.time(),
                wait_for_reset_seconds=settings.wait_for_reset,
                seconds_left=execution.total_at - time.monotonic(),
            )
        )
        return decision, final if report.error is not None else token_verdict(trouble)

    async def _newer_while(self, confirming: asyncio.Task[Verification], generation: Generation) -> bool:
        """Wait for a verdict; tell whether a newer generation came first, or with it. Less, if this one is stopped."""
        execution, gate = self._execution, self._context.gate
        confirming.add_done_callback(lambda _: gate.changed.notify())
        change = gate.changed.wait()
        while not (newer := gate.is_newer_usable(generation, execution.task.model)) and not confirming.done():
            if not await self._wait(change, execution.total_at):
                return False
            change = gate.changed.wait()
        change.close()
        return newer

    async def _confirm(self, report: AttemptReport, generation: Generation, trouble: TokenTrouble) -> Verification:
        detection = _detection(report)
        may_condemn = detection is not None and detection.condemns and not report.used_tool
        current, by = self._context.gate.current, self._execution.execution_id
        is_in_use = current is not None and current.number == generation.number
        if not is_in_use:
            self._context.gate.statuses.unsuspect(by)  # nobody would begin with it anyway
        return await self._context.confirmer.confirm(
            generation,
            by=by if is_in_use else None,
            trouble=trouble,
            may_condemn=may_condemn,
            rule=detection.rule if detection else "unknown",
            model=report.run_stats.model_name,
        )

    async def _ask_first(self) -> None:
        """Ask the API about the token that the next attempt would get; not for longer than anybody wants to know."""
        gate, confirmer = self._context.gate, self._context.confirmer
        await asyncio.to_thread(gate.secret.poll)  # a token that was written just now is the one it would get
        generation = gate.current
        if generation is None or gate.statuses.trouble_of(generation) is not None:
            return
        asked_at = time.monotonic()
        asking = asyncio.ensure_future(confirmer.ask(generation, self._execution.task.model))
        if await self._wait(asking, self._execution.total_at):
            confirmer.heed(generation, asking.result(), asked_at)

    def _note_limit(self, report: AttemptReport, generation: Generation) -> Verification:
        """Believe a usage limit that no tool can have forged; any other is confirmed only by one that is believed."""
        execution, gate = self._execution, self._context.gate
        detection = _detection(report)
        if report.used_tool or detection is None:
            known = gate.limit_of(generation, execution.task.model or report.run_stats.model_name)
            if known is None:
                return Verification.OPEN
            execution.resets_at = known.until if known.is_told else None
            return Verification.CONFIRMED
        now = time.time()
        told = detection.resets_at if detection.resets_at is not None and detection.resets_at > now else None
        limit = Limit(
            detection.limit_type, detection.limit_model, told or now + UNKNOWN_LIMIT_SECONDS, told is not None
        )
        execution.resets_at = told
        gate.limited(generation, limit)
        return Verification.CONFIRMED

    # -- sessions

    def _begins_anew(self, trouble: SessionTrouble, report: AttemptReport) -> bool:
        """Begin in a new session where the CLI has lost this one, or where nothing is answered in it any more."""
        plan, execution = self._plan, self._execution
        if trouble is SessionTrouble.UNKNOWN and plan.is_named:
            return False
        if not plan.next.resumes or report.run_stats.has_progress or not plan.restart(trouble):
            return False
        execution.record.metadata.session_restarted = True
        log.warning("session is %s: begun anew", trouble.value, extra={"execution_id": execution.execution_id})
        return True

    def _session_unknown(self) -> Verdict:
        """Say that the CLI does not know the session: the task's, or one of ours, lost for the second time."""
        if not self._plan.is_named:
            return Verdict(Outcome.FAILED, ErrorClass.ERROR, _SESSION_LOST)
        error = self._execution.error = SessionUnknown(_SESSION_UNKNOWN)
        return Verdict(Outcome.FAILED, error.error_class, str(error))

    def _claim(self, session_id: str | None) -> None:
        if session_id is not None:
            self._context.sessions.claim(session_id, self._execution.execution_id)

    def _enqueue(self, *, ahead: bool = False) -> Ticket:
        """Take a place in the queue; others pass it for as long as another execution uses the session."""
        use, known, by = self._context.sessions, self._first_session_id, self._execution.execution_id
        return self._context.slots.enqueue(ahead=ahead, may_start=lambda: use.may_use(known, by))

    def _restart(self, restart: Restart) -> None:
        """Choose how the next attempt begins."""
        execution = self._execution
        session_id = execution.record.session_id
        if restart is Restart.RESUME and session_id is not None:
            self._plan.resume(session_id)
        else:
            self._plan.begin_anew()
        if execution.record.attempts:
            execution.record.metadata.resumes += 1
            self._context.events.publish(
                "execution.resumed", execution_id=execution.execution_id, attempts=len(execution.record.attempts)
            )

    # -- waiting

    async def _park_at_admission(self) -> bool:
        """Wait for a token that can be used, or for the end of the limit, as long as the request says."""
        execution = self._execution
        seconds, error = execution.park_seconds or 0.0, execution.error
        if not isinstance(error, TokenLimited):
            return await self._park(seconds, None, counts=False)
        reset_in = None if error.resets_at is None else error.resets_at - time.time()
        is_in_time = resets_in_time(reset_in, seconds, execution.total_at - time.monotonic())
        resets_at = error.resets_at if is_in_time else None
        return await self._park(seconds, self._context.gate.current, is_limited=True, resets_at=resets_at, counts=False)

    async def _park(
        self,
        seconds: float,
        generation: Generation | None,
        *,
        is_limited: bool = False,
        resets_at: float | None = None,
        counts: bool = True,
    ) -> bool:
        """
        Wait for a newer generation that can be used, or for this one to be good after all; False: in vain.

        Args:
            generation: The one that cannot be used now; None: any one will do.
            is_limited: It cannot be used because of a usage limit.
            resets_at: The end of that limit, epoch seconds, where it is waited for instead of *seconds*.
            counts: To go on with the same generation counts as a resume.
        """
        execution, gate, model = self._execution, self._context.gate, self._execution.task.model
        if resets_at is not None:
            seconds = self._seconds_past(resets_at)
        until = min(time.monotonic() + seconds, execution.total_at)
        execution.park()
        self._context.events.publish(
            "execution.parked",
            execution_id=execution.execution_id,
            generation=generation.number if generation else None,
            seconds=seconds,
        )
        log.info("execution parked for %g s", seconds, extra={"execution_id": execution.execution_id})
        limit = gate.limit_of(generation, model) if is_limited and generation is not None else None
        may_return = (limit is not None or not is_limited) and not (
            counts and self._resumes >= self._context.settings.max_resumes
        )
        change = gate.changed.wait()
        while not gate.is_newer_usable(generation, model):
            # Where a limit has ended by itself, nobody goes on before the spread is over.
            is_taken_back = may_return and (limit is None or time.time() < limit.until)
            if is_taken_back and generation is not None and gate.is_good_again(generation, model):
                self._resumes += counts
                break
            if not await self._wait(change, until):
                if resets_at is None or self._unstarted() is not None:
                    return False
                self._resumes += counts
                execution.requeue()
                return True
            change = gate.changed.wait()
        change.close()
        execution.requeue()
        return True

    def _seconds_past(self, resets_at: float) -> float:
        """Choose when to go on after a limit's end, in seconds from now: at random, and with time left to work in."""
        reset_in = max(0.0, resets_at - time.time())
        left = self._execution.total_at - time.monotonic() - reset_in
        first, last = AFTER_RESET_SECONDS
        return reset_in + random.uniform(first, max(first, min(last, left / 2)))  # noqa: S311 - nothing secret

    def _unstarted(self) -> Verdict | None:
        """Tell how an execution ends that was stopped, or whose time ran out, while it waited."""
        if (requested_stop := self._execution.requested_stop) is not None:
            return UNSTARTED[requested_stop]
        # A timer may ring a little early.
        over = time.monotonic() >= self._execution.total_at - CLOCK_SLACK_SECONDS
        return UNSTARTED[StopReason.TIMEOUT] if over else None

    def _refused_at_admission(self) -> Verdict:
        try:
            self._context.gate.require(self._execution.task.model)
        except AgentRuntimeError as error:
            self._execution.error = error
            return Verdict(Outcome.FAILED, error.error_class, str(error))
        return Verdict(Outcome.FAILED, ErrorClass.AUTH, ErrorClass.AUTH.sentence)

    async def _wait(self, event: Awaitable[object], until: float) -> bool:
        """Wait for *event*; False when the execution is stopped, or it is *until* (monotonic seconds), first."""
        stopped = asyncio.ensure_future(self._execution.stopped.wait())
        happened = asyncio.ensure_future(event)
        try:
            await asyncio.wait(
                {stopped, happened}, timeout=max(0.0, until - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
            )
            return happened.done() and not stopped.done()
        finally:
            stopped.cancel()
            if not happened.done():
                happened.cancel()

    def _leave_slot(self) -> None:
        if self._ticket is not None:
            self._context.slots.leave(self._ticket)
            self._ticket = None


def _detection(report: AttemptReport) -> Detection | None:
    """Return the API error that ended the attempt, as far as one is known."""
    return report.ending.evidence or report.ending.last_error if report.ending else None


def _trouble(report: AttemptReport, final: Verdict) -> TokenTrouble:
    """Return what the API holds against the token, by what ended the attempt."""
    detection = _detection(report)
    if detection is not None and detection.trouble is not None and detection.error_class is final.error_class:
        return detection.trouble
    return _CURABLE[final.error_class or ErrorClass.AUTH]


def _is_only_said(report: AttemptReport) -> bool:
    """Whether all there is is a sentence of the CLI, and no tool ran that could have put it there."""
    detection = _detection(report)
    return detection is not None and not detection.condemns and not report.used_tool


def _is_about_token(report: AttemptReport, final: Verdict) -> bool:
    """Whether another token, or the same one once more, could help."""
    if report.error is not None:
        return isinstance(report.error, AdmissionError) and final.error_class in _CURABLE
    return final.error_class in _CURABLE


_SESSION_UNKNOWN = (
    "no conversation found under the id in resume_session_id; send the task without it to begin a new session"
)
_SESSION_LOST = (
    "no conversation found in the session of this execution: the CLI has not kept it; send the same execution_id again "
    "to begin anew"
)
_CURABLE = {
    ErrorClass.AUTH: TokenTrouble.REFUSED,
    ErrorClass.BILLING: TokenTrouble.BILLING,
    ErrorClass.RATE_LIMIT: TokenTrouble.LIMITED,
}
"""What another token can cure, and the trouble of the token where no more is known than the class."""


def _as(final: Verdict, error_class: ErrorClass) -> Verdict:
    if error_class is final.error_class:
        return final
    return Verdict(Outcome.FAILED, error_class, error_class.sentence)
