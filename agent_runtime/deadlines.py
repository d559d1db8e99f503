"""How long an attempt may be silent: which deadline is next, told without a clock of its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from agent_runtime.state import StopReason

if TYPE_CHECKING:
    from agent_runtime.settings import Settings


class Patience(msgspec.Struct, frozen=True):
    """How long each silence may last, in seconds; infinity where it is turned off."""

    init: float
    first_message: float
    idle: float
    tool: float

    @classmethod
    def of(cls, settings: Settings) -> Patience:
        """Take the four timeouts of *settings*, where 0 means off."""
        return cls(
            *(
                seconds or math.inf
                for seconds in (
                    settings.init_timeout,
                    settings.first_message_timeout,
                    settings.idle_timeout,
                    settings.tool_timeout,
                )
            )
        )


class Deadlines:
    """
    Tell when an attempt has been silent for too long.

    All times are monotonic seconds that the caller passes in. Which silence counts depends on how far the attempt is:
    before ``system/init``, before the model's first sign, with no tool open, with one open.
    """

    def __init__(self, patience: Patience, *, spawned_at: float, total_at: float) -> None:
        self._patience = patience
        self._total_at = total_at
        self._since = spawned_at
        self._has_init = False
        self._has_model = False
        self._open_tools = 0

    def init_seen(self, now: float) -> None:
        """Note the CLI's ``system/init`` frame."""
        self._has_init = True
        self._since = now

    def model_seen(self, now: float) -> None:
        """Note any sign of the model: a partial message or an assistant frame."""
        self._has_init = self._has_model = True
        self._since = now

    def life_seen(self, now: float) -> None:
        """Note a sign of life that does not come from the model; does not extend the wait for init or first message."""
        if self._has_model:
            self._since = now

    def tools_open(self, count: int) -> None:
        """Note how many tool calls (and background tasks) are unanswered."""
        self._open_tools = count

    def postpone(self, seconds: float) -> None:
        """Make up for time in which nobody could look, as when this process was stopped; the total time goes on."""
        self._since += seconds

    @property
    def next(self) -> tuple[float, StopReason]:
        """The moment of the next deadline (monotonic seconds, may be infinite) and what it would be called."""
        if not self._has_init:
            silence = (self._since + self._patience.init, StopReason.INIT_TIMEOUT)
        elif not self._has_model:
            silence = (self._since + self._patience.first_message, StopReason.FIRST_MESSAGE_TIMEOUT)
        elif self._open_tools:
            silence = (self._since + self._patience.tool, StopReason.TOOL_TIMEOUT)
        else:
            silence = (self._since + self._patience.idle, StopReason.IDLE_TIMEOUT)
        return min((self._total_at, StopReason.TIMEOUT), silence)
