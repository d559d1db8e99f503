"""
Decide what happens to an execution whose token was refused, blocked, unpaid or limited, by one pure function.

The first rule that holds decides:

1. A newer generation is loaded: go on with it.
2. The evidence is not confirmed: go on with the same generation, a bounded number of times.
3. The limit ends in time: wait for its end.
4. The execution may wait: wait for a newer generation.
5. Otherwise answer the caller.
"""

from __future__ import annotations

import math

import msgspec

from agent_runtime.errors import AdmissionError, ErrorClass
from agent_runtime.evidence.verdict import Verdict
from agent_runtime.execution.attempt_data import AttemptReport
from agent_runtime.model.state import TROUBLE_BY_CLASS, TokenTrouble, Verification

AUTO_PARK_SECONDS = 60.0
"""How long ``auto`` parks an execution that is not the first to end with a generation's trouble."""
AFTER_RESET_SECONDS = (1.0, 15.0)
"""How long after the end of a limit work goes on; spread, so that not all of an account's work begins in one second."""


class Situation(msgspec.Struct, frozen=True):
    """
    The facts that the decision depends on.

    Attributes:
        error_class: ``auth``, ``billing`` or ``rate_limit``.
        newer_is_usable: A newer generation than the one charged is loaded, has not expired and is in no trouble.
        is_first: No execution has been answered with this generation's trouble yet.
        park_seconds: How long the request, or else the setting, lets the execution wait; None: ``auto``.
        waited_seconds: How much of that it has waited already, while a request of its attempt was held.
        resumes: How often it was resumed without a newer generation.
        is_only_said: The only evidence is a sentence of the CLI, printed before any tool ran.
        reset_in_seconds: The time until the limit ends; None: not known.
        wait_for_reset_seconds: How long the setting lets the execution wait for that end.
        seconds_left: The time until the execution's own time is over.
    """

    error_class: ErrorClass
    verification: Verification
    newer_is_usable: bool
    is_first: bool
    park_seconds: float | None
    resumes: int
    max_resumes: int
    waited_seconds: float = 0.0
    is_only_said: bool = False
    reset_in_seconds: float | None = None
    wait_for_reset_seconds: float = 0.0
    seconds_left: float = math.inf


class GoOn(msgspec.Struct, frozen=True):
    """
    Run a further attempt at once.

    Attributes:
        counts: The generation is the same, so the resume counts against the maximum.
    """

    counts: bool


class Wait(msgspec.Struct, frozen=True):
    """
    Wait for a newer generation, then run a further attempt.

    Attributes:
        seconds: How long at most.
        is_for_reset: The limit ends after that time; then a further attempt is run with any generation.
    """

    seconds: float
    is_for_reset: bool = False


class GiveUp(msgspec.Struct, frozen=True):
    """Answer the caller now."""

    error_class: ErrorClass


Decision = GoOn | Wait | GiveUp


def wait_for_reset(reset_in_seconds: float | None, patience_seconds: float, seconds_left: float) -> Wait | None:
    """Return the wait for a limit's end that is known and within the patience, if enough of the time is left then."""
    if reset_in_seconds is None or reset_in_seconds > patience_seconds:
        return None
    is_in_time = reset_in_seconds + AFTER_RESET_SECONDS[0] < seconds_left
    return Wait(max(0.0, reset_in_seconds), is_for_reset=True) if is_in_time else None


def decide(situation: Situation) -> Decision:
    """Return what the first rule that holds decides."""
    if situation.newer_is_usable:
        return GoOn(counts=False)
    if situation.verification is Verification.OPEN and situation.is_only_said:
        # A further attempt would get the same sentence. It condemns no generation, but the caller must know of it.
        return GiveUp(situation.error_class)
    if situation.verification is not Verification.CONFIRMED:
        if situation.resumes < situation.max_resumes:
            return GoOn(counts=True)
        # Either the API accepts the token and refuses the work all the same, or a tool may have forged the evidence.
        # The backend must not switch in either case.
        return GiveUp(ErrorClass.UPSTREAM)
    seconds = situation.park_seconds
    if seconds is None:
        seconds = 0.0 if situation.is_first else AUTO_PARK_SECONDS
    seconds = max(0.0, seconds - situation.waited_seconds)
    if situation.resumes < situation.max_resumes:
        patience = max(seconds, situation.wait_for_reset_seconds)
        if wait := wait_for_reset(situation.reset_in_seconds, patience, situation.seconds_left):
            return wait
    return Wait(seconds) if seconds > 0 else GiveUp(situation.error_class)


def trouble_of(report: AttemptReport, final: Verdict) -> TokenTrouble | None:
    """Return the trouble of the token that ended an attempt; None where no token, new or the same, could help."""
    is_error_of_ours = report.error is not None and not isinstance(report.error, AdmissionError)
    if final.error_class not in TROUBLE_BY_CLASS or is_error_of_ours:
        return None
    detection = report.detection
    if detection is not None and detection.rule.trouble and detection.rule.error_class is final.error_class:
        return detection.rule.trouble
    return TROUBLE_BY_CLASS[final.error_class]
