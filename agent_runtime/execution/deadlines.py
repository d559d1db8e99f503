"""Calculate how long an attempt may be silent, and which deadline is next; reads no clock."""

from __future__ import annotations

import math
from enum import Enum

from agent_runtime.claude.run_answer import RunStage
from agent_runtime.model.state import StopReason
from agent_runtime.settings import Settings

LINGER_SECONDS = 5.0
"""How long the CLI may stay after its last frame: it may hang after ``result`` (anthropics/claude-code issues)."""

MOST_INIT_SECONDS = 600.0
"""How long a start may take in all, however many signs of life there are; a longer init timeout extends it."""


class Sign(Enum):
    """A sign of life of the child."""

    MODEL = "model"
    """The model answers: a message, or a part of one."""
    INIT = "init"
    """The CLI has reported its session, its version and its permission mode."""
    TASK = "task"
    """The CLI has begun a task, also one of a sub-agent; this may come before ``INIT``."""
    LOG = "log"
    """Lines of the CLI's debug log without an error in them; they count only before ``INIT``."""
    OTHER = "other"
    """Any other frame, or a line about an API error."""


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
        self._stage = RunStage.RUNNING
        self._result_at = spawned_at

    def seen(self, sign: Sign, now: float) -> None:
        """Record a sign of life; only a sign of the model ends the wait for its first message."""
        if sign is Sign.LOG and self._has_init:
            return
        is_of_the_model = sign in {Sign.MODEL, Sign.TASK}
        if sign is not Sign.LOG:
            self._heard_at = now
        if sign is not Sign.OTHER or self._has_model or not self._has_init:
            self._since = now
        self._has_init |= is_of_the_model or sign is Sign.INIT
        self._has_model |= is_of_the_model

    def stage_seen(self, stage: RunStage, open_tools: int, now: float) -> None:
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
        if self._stage is RunStage.OVER:
            silence = (self._heard_at + LINGER_SECONDS, StopReason.LINGERED)
        elif self._stage is RunStage.IN_BACKGROUND:
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
