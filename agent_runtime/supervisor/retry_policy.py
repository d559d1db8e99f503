"""
What happens to an execution whose token was refused, blocked, unpaid or limited: decided by one pure function.

Five rungs, the first that holds is taken: a newer generation is loaded, so go on with it; what was seen is not
confirmed, so go on with the same one, a bounded number of times; its limit ends in time, so wait for that; a newer one
may come, so wait; nothing of this, so answer.
"""

from __future__ import annotations

import enum
import math

import msgspec

from agent_runtime.errors import ErrorClass
from agent_runtime.model.state import Verification

AUTO_PARK_SECONDS = 60.0
AFTER_RESET_SECONDS = (1.0, 15.0)
"""How long after the end of a limit work goes on; spread, so that not all of an account's work begins in one second."""


class Restart(enum.Enum):
    """How an execution goes on in a further attempt."""

    RESUME = "resume"
    AFRESH = "afresh"


class Situation(msgspec.Struct, frozen=True):
    """
    What the decision is made from.

    Attributes:
        error_class: ``auth``, ``billing`` or ``rate_limit``.
        newer_is_usable: A generation that is newer than the one charged is loaded, is not expired, and nothing is held
            against it.
        is_first: Nobody has answered for this generation yet.
        park_seconds: How long the request, or else the setting, lets it wait; None: ``auto``.
        resumes: How often it was resumed without a newer generation.
        has_progress: The model has said something in the session, or a tool call is finished.
        is_only_said: The CLI said so in a sentence of its own, before any tool ran; nothing shows what the API said.
        reset_in_seconds: How long the limit lasts, where that is known.
        wait_for_reset_seconds: How long the setting lets it wait for that.
        seconds_left: Of its own time.
    """

    error_class: ErrorClass
    confirmation: Verification
    newer_is_usable: bool
    is_first: bool
    park_seconds: float | None
    resumes: int
    max_resumes: int
    has_progress: bool
    is_only_said: bool = False
    reset_in_seconds: float | None = None
    wait_for_reset_seconds: float = 0.0
    seconds_left: float = math.inf

    @property
    def restart(self) -> Restart:
        """Resume what has progress to lose; what has none is begun again, since the CLI may not have kept it."""
        return Restart.RESUME if self.has_progress else Restart.AFRESH


class GoOn(msgspec.Struct, frozen=True):
    """
    Run a further attempt at once.

    Attributes:
        counts: It is no newer generation, so it counts against the limit.
    """

    restart: Restart
    counts: bool


class Park(msgspec.Struct, frozen=True):
    """Give the slot back and wait for a newer generation."""

    restart: Restart
    seconds: float


class AwaitReset(msgspec.Struct, frozen=True):
    """Give the slot back and wait for the end of the limit, or for a newer generation."""

    restart: Restart


class GiveUp(msgspec.Struct, frozen=True):
    """Tell the caller now."""

    error_class: ErrorClass


Decision = GoOn | AwaitReset | Park | GiveUp


def resets_in_time(reset_in_seconds: float | None, patience_seconds: float, seconds_left: float) -> bool:
    """Whether a limit is known to end within the patience, and early enough for work to go on in the time left."""
    if reset_in_seconds is None or reset_in_seconds > patience_seconds:
        return False
    return reset_in_seconds + AFTER_RESET_SECONDS[0] < seconds_left


def decide(situation: Situation) -> Decision:
    """Take the first rung of the retry policy that holds."""
    restart = situation.restart
    if situation.newer_is_usable:
        return GoOn(restart, counts=False)
    if situation.confirmation is Verification.OPEN and situation.is_only_said:
        # Asking the same CLI again gets the same sentence; it condemns nothing, and it is what the caller must know.
        return GiveUp(situation.error_class)
    if situation.confirmation is not Verification.CONFIRMED:
        if situation.resumes < situation.max_resumes:
            return GoOn(restart, counts=True)
        # Good, and refuses the work all the same; or nothing but what a tool may have forged. Neither is to make the
        # backend switch.
        return GiveUp(ErrorClass.UPSTREAM)
    seconds = situation.park_seconds
    if seconds is None:
        seconds = 0.0 if situation.is_first else AUTO_PARK_SECONDS
    patience = max(seconds, situation.wait_for_reset_seconds)
    is_in_time = resets_in_time(situation.reset_in_seconds, patience, situation.seconds_left)
    if is_in_time and situation.resumes < situation.max_resumes:
        return AwaitReset(restart)
    return Park(restart, seconds) if seconds > 0 else GiveUp(situation.error_class)
