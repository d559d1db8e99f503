"""Calculate how long an attempt may be silent, and which deadline is next; reads no clock."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from agent_runtime.claude.run_answer import Stage
from agent_runtime.model.state import StopReason

if TYPE_CHECKING:
    from agent_runtime.settings import Settings

LINGER_SECONDS = 5.0
"""How long the CLI may stay after its last frame: it may hang after ``result`` (anthropics/claude-code issues)."""

MOST_INIT_SECONDS = 600.0
"""How long a start may take in all, however many signs of life there are; a longer init timeout extends it."""


class Deadlines:
    """
    Calculate the moment at which an attempt has been silent for too long.

    All times are monotonic seconds that the caller passes in. The limit depends on how far the attempt is: before
    ``system/init``, before the model's first sign, without an open tool call, with one. Work in the background has a
    limit that is counted from the result.

    Args:
        settings: They hold the limit of each silence, and of work in the background; 0 turns a limit off.
        total_at: When the execution's time is over.
    """

    def __init__(self, settings: Settings, *, spawned_at: float, total_at: float) -> None:
        self._settings = settings
        self._total_at = total_at
        self._since = self._heard_at = spawned_at
        self._init_at = spawned_at + max(MOST_INIT_SECONDS, settings.init_timeout or math.inf)
        self._has_init = False
        self._has_model = False
        self._open_tools = 0
        self._stage = Stage.RUNNING
        self._result_at = spawned_at

    def init_seen(self, now: float) -> None:
        """Record the CLI's ``system/init`` frame."""
        self._has_init = True
        self._since = self._heard_at = now

    def model_seen(self, now: float) -> None:
        """Record a sign of the model: a partial message or an assistant frame."""
        self._has_init = self._has_model = True
        self._since = self._heard_at = now

    def life_seen(self, now: float) -> None:
        """Record another sign of life; it does not extend the wait for the model's first message."""
        self._heard_at = now
        if self._has_model or not self._has_init:
            self._since = now

    def start_seen(self, now: float) -> None:
        """Record a sign of life that counts only before ``system/init``, such as a line of the debug log."""
        if not self._has_init:
            self._since = now

    def stage_seen(self, stage: Stage, open_tools: int, now: float) -> None:
        """Record how far the run is, and how many tool calls and background tasks are open."""
        self._open_tools = open_tools
        if stage is not self._stage:
            self._stage = stage
            self._result_at = self._since = now

    def postpone(self, seconds: float) -> None:
        """Move every deadline but the total time by *seconds* in which silence of the child does not count."""
        self._since += seconds
        self._heard_at += seconds
        self._result_at += seconds
        self._init_at += seconds

    @property
    def next(self) -> tuple[float, StopReason]:
        """The moment of the next deadline (monotonic seconds, may be infinite) and its stop reason."""
        limits = self._settings
        if self._stage is Stage.OVER:
            silence = (self._heard_at + LINGER_SECONDS, StopReason.LINGERED)
        elif self._stage is Stage.IN_BACKGROUND:
            silence = (self._result_at + (limits.background_timeout or math.inf), StopReason.BACKGROUND_TIMEOUT)
        elif not self._has_init:
            until = min(self._since + (limits.init_timeout or math.inf), self._init_at)
            silence = (until, StopReason.INIT_TIMEOUT)
        elif not self._has_model:
            silence = (self._since + (limits.first_message_timeout or math.inf), StopReason.FIRST_MESSAGE_TIMEOUT)
        elif self._open_tools:
            silence = (self._since + (limits.tool_timeout or math.inf), StopReason.TOOL_TIMEOUT)
        else:
            silence = (self._since + (limits.idle_timeout or math.inf), StopReason.IDLE_TIMEOUT)
        return min((self._total_at, StopReason.TIMEOUT), silence)
