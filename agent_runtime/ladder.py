"""
What happens to an execution whose token was refused or limited: decided by generations, by one pure function.

Four rungs, the first that holds is taken: a newer generation is loaded, so go on with it; the token is good after
all, so go on with it, a bounded number of times; a newer one may come, so wait; nothing of this, so answer.
"""

from __future__ import annotations

import enum

import msgspec

from agent_runtime.errors import ErrorClass

AUTO_PARK_SECONDS = 60.0


class Confirmation(enum.Enum):
    """What is known, after asking, about the token that an attempt ended with."""

    CONFIRMED = "confirmed"
    """It is refused, or its limit lasts."""
    GOOD = "good"
    """The API took it when it was asked again."""
    OPEN = "open"
    """Nobody could say, and what was seen may not condemn it."""


class Restart(enum.Enum):
    """How an execution goes on in a further attempt."""

    RESUME = "resume"
    AFRESH = "afresh"


class Situation(msgspec.Struct, frozen=True):
    """
    What the decision is made from.

    Attributes:
        error_class: ``auth`` or ``rate_limit``.
        newer_is_usable: A generation that is newer than the one charged is loaded, and not refused, limited or expired.
        is_first: Nobody has answered for this generation yet.
        park_seconds: How long the request, or else the setting, lets it wait; None: ``auto``.
        resumes: How often it was resumed without a newer generation.
        had_tool: A tool had run in the attempt.
        had_model: The model had said something in the session.
        is_only_said: The CLI said so in a sentence of its own, before any tool ran; nothing shows what the API said.
    """

    error_class: ErrorClass
    confirmation: Confirmation
    newer_is_usable: bool
    is_first: bool
    park_seconds: float | None
    resumes: int
    max_resumes: int
    had_tool: bool
    had_model: bool
    is_only_said: bool = False

    @property
    def restart(self) -> Restart:
        """Resume what has progress to lose; what has none is begun again, since the CLI may not have kept it."""
        return Restart.RESUME if self.had_tool or self.had_model else Restart.AFRESH


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


class Answer(msgspec.Struct, frozen=True):
    """Tell the caller now."""

    error_class: ErrorClass


Decision = GoOn | Park | Answer


def decide(situation: Situation) -> Decision:
    """Take the first rung of the ladder that holds."""
    restart = situation.restart
    if situation.newer_is_usable:
        return GoOn(restart, counts=False)
    if situation.confirmation is Confirmation.OPEN and situation.is_only_said:
        # Asking the same CLI again gets the same sentence; it condemns nothing, and it is what the caller must know.
        return Answer(situation.error_class)
    if situation.confirmation is not Confirmation.CONFIRMED:
        if situation.resumes < situation.max_resumes:
            return GoOn(restart, counts=True)
        # Good, and refuses the work all the same; or nothing but what a tool may have forged. Neither is to make the
        # backend switch.
        return Answer(ErrorClass.UPSTREAM)
    seconds = situation.park_seconds
    if seconds is None:
        seconds = 0.0 if situation.is_first else AUTO_PARK_SECONDS
    return Park(restart, seconds) if seconds > 0 else Answer(situation.error_class)
