"""How long an attempt may be silent: which deadline is next, told without a clock of its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from agent_runtime.claude.run_answer import Stage
from agent_runtime.model.state import StopReason

if TYPE_CHECKING:
    from agent_runtime.settings import Settings

LINGER_SECONDS = 5.0
"""How long a CLI that has said its last word may stay: it may hang after ``result`` (anthropics/claude-code issues)."""

MOST_INIT_SECONDS = 600.0
"""How long a start may take in all, however many signs of life come, unless the setting allows a longer silence."""


class Patience(msgspec.Struct, frozen=True):
    """How long each silence, and work in the background, may last, in seconds; infinity where it is turned off."""

    init: float
    first_message: float
    idle: float
    tool: float
    background: float

    @classmethod
    def of(cls, settings: Settings) -> Patience:
        """Take the timeouts of *settings*, where 0 means off."""
        return cls(
            *(
                seconds or math.inf
                for seconds in (
                    settings.init_timeout,
                    settings.first_message_timeout,
                    settings.idle_timeout,
                    settings.tool_timeout,
                    settings.background_timeout,
                )
            )
        )


class Deadlines:
    """
    Tell when an attempt has been silent for too long.

    All times are monotonic seconds that the caller passes in. Which silence counts depends on how far the attempt is:
    before ``system/init``, before the model's first sign, with no tool open, with one open. With a result in hand no
    silence counts but that of work in the background, from the result on.
    """

    def __init__(self, patience: Patience, *, spawned_at: float, total_at: float) -> None:
        self._patience = patience
        self._total_at = total_at
        self._since = self._heard_at = spawned_at
        self._init_at = spawned_at + max(MOST_INIT_SECONDS, patience.init)
        self._has_init = False
        self._has_model = False
        self._open_tools = 0
        self._stage = Stage.RUNNING
        self._result_at = spawned_at

    def init_seen(self, now: float) -> None:
        """Note the CLI's ``system/init`` frame."""
        self._has_init = True
        self._since = self._heard_at = now

    def model_seen(self, now: float) -> None:
        """Note any sign of the model: a partial message or an assistant frame."""
        self._has_init = self._has_model = True
        self._since = self._heard_at = now

    def life_seen(self, now: float) -> None:
        """Note a sign of life that does not come from the model; does not extend the wait for its first message."""
        self._heard_at = now
        if self._has_model or not self._has_init:
            self._since = now

    def start_seen(self, now: float) -> None:
        """Note a sign of life that counts only while the CLI starts, as a line of its debug log."""
        if not self._has_init:
            self._since = now

    def stage_seen(self, stage: Stage, open_tools: int, now: float) -> None:
        """Note how far the run is, and how many tool calls (and background tasks) are unanswered."""
        self._open_tools = open_tools
        if stage is not self._stage:
            self._stage = stage
            self._result_at = self._since = now

    def postpone(self, seconds: float) -> None:
        """Make up for time in which nobody could look, as when this process was stopped; the total time goes on."""
        self._since += seconds
        self._heard_at += seconds
        self._result_at += seconds
        self._init_at += seconds

    @property
    def next(self) -> tuple[float, StopReason]:
        """The moment of the next deadline (monotonic seconds, may be infinite) and what it would be called."""
        patience = self._patience
        if self._stage is Stage.OVER:
            silence = (self._heard_at + LINGER_SECONDS, StopReason.LINGERED)
        elif self._stage is Stage.IN_BACKGROUND:
            silence = (self._result_at + patience.background, StopReason.BACKGROUND_TIMEOUT)
        elif not self._has_init:
            silence = (min(self._since + patience.init, self._init_at), StopReason.INIT_TIMEOUT)
        elif not self._has_model:
            silence = (self._since + patience.first_message, StopReason.FIRST_MESSAGE_TIMEOUT)
        elif self._open_tools:
            silence = (self._since + patience.tool, StopReason.TOOL_TIMEOUT)
        else:
            silence = (self._since + patience.idle, StopReason.IDLE_TIMEOUT)
        return min((self._total_at, StopReason.TIMEOUT), silence)
