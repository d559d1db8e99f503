"""Statistics of a run, counted from its frames: turns, tools, tokens, cost, and open work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_runtime.claude.frames import SYNTHETIC_MODEL, CompactMetadata
from agent_runtime.claude.run_answer import RunAnswer, Stage
from agent_runtime.model.records import COMPACT_EVENTS_KEPT, LONG_CONTEXT_MARK, LONG_CONTEXT_WINDOW, CompactEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.claude.frames import Frame, ModelUsage, Usage
    from agent_runtime.claude.run_answer import Result

_MOST_HOOKS = 100


class RunStats:
    """
    The statistics of one attempt; it takes every frame in order, and its size does not grow with their number.

    Token counts are those of the last assistant frame, because the ``usage`` of ``result`` is cumulative. Cost and
    context window come from ``result``.

    Source: anthropics/claude-code issues on ``result.usage``; frames under ``tests/recorded/``.
    """

    def __init__(self) -> None:
        self.session_id: str | None = None
        self.cli_version: str | None = None
        self.permission_mode: str | None = None
        self.model_name: str | None = None
        self.usage: Usage | None = None
        self.context_window: int | None = None
        self.cost_usd: float | None = None
        self.duration_ms: float | None = None
        self.num_turns: int | None = None
        self.tool_count = 0
        self.tool_results = 0
        self.compact_events: list[CompactEvent] = []
        self.answer = RunAnswer()
        self.has_init = False
        self.model_frames = 0
        self._open_tools: set[str] = set()
        self._background_tasks: set[str] = set()
        self._hooks: dict[str, str] = {}

    @property
    def open_tools(self) -> int:
        """How many tool calls have no result yet, including background tasks."""
        return len(self._open_tools) + len(self._background_tasks)

    @property
    def background_tasks(self) -> int:
        """How many tasks in the background have not ended."""
        return len(self._background_tasks)

    @property
    def has_progress(self) -> bool:
        """Whether a later attempt can build on this one: there is a frame of the model, or a finished tool call."""
        return self.model_frames > 0 or self.tool_results > 0

    @property
    def result(self) -> Result | None:
        """The last result that answers the prompt; without one, the last other result."""
        return self.answer.last_result

    @property
    def answer_text(self) -> str | None:
        """The answer for the caller."""
        return self.result.text if self.result is not None and not self.result.is_error else None

    @property
    def stage(self) -> Stage:
        """The stage of the run."""
        return self.answer.stage(tasks_pending=bool(self._background_tasks))

    @property
    def has_more_to_come(self) -> bool:
        """Whether the run has an answer and continues all the same."""
        return self.answer.result is not None and self.stage is not Stage.OVER

    @property
    def hook(self) -> str | None:
        """The name of a hook that has begun and not ended."""
        return next(reversed(self._hooks.values()), None)

    def add(self, frame: Frame) -> None:
        """Count one frame."""
        if frame.session_id:
            self.session_id = frame.session_id
        if frame.type == "assistant":
            self._assistant(frame)
        elif frame.type == "system":
            self._system(frame)
        elif frame.type == "user":
            self.answer.user(frame)
            for block in frame.blocks:
                if block.type == "tool_result" and block.tool_use_id:
                    self.tool_results += 1
                    self._open_tools.discard(block.tool_use_id)
        elif frame.type == "result":
            self._result(frame)

    def redact(self, redact: Callable[[str], str]) -> None:
        """Apply *redact* to every text from a frame that will be shown."""

        def clean(text: str | None) -> str | None:
            # JavaScript cuts strings in the middle of a character; half of one cannot be written as UTF-8.
            return None if text is None else redact(text.encode("utf-8", "replace").decode())

        self.session_id, self.model_name = clean(self.session_id), clean(self.model_name)
        self.cli_version = clean(self.cli_version)
        self.answer.redact(clean)

    def _system(self, frame: Frame) -> None:
        if frame.subtype == "init":
            self.has_init = True
            self.cli_version = frame.claude_code_version or self.cli_version
            self.permission_mode = frame.permission_mode
            self.model_name = frame.model or self.model_name
            if LONG_CONTEXT_MARK in (frame.model or "").lower():
                self.context_window = self.context_window or LONG_CONTEXT_WINDOW
            self.answer.begin_turn()
        elif frame.subtype == "compact_boundary":
            if len(self.compact_events) < COMPACT_EVENTS_KEPT:
                self.compact_events.append(_compact_event(frame.compact_metadata or CompactMetadata()))
        elif frame.subtype == "background_tasks_changed":
            self._background_tasks = set(frame.background_task_ids)
        elif frame.began_task_id is not None:
            self._background_tasks.add(frame.began_task_id)
            self.answer.begin_task()
        elif frame.ended_task_id is not None:
            self._background_tasks.discard(frame.ended_task_id)
            if frame.subtype == "task_notification" and not frame.ambient:
                self.answer.expect_turn()
        elif frame.subtype == "hook_started" and len(self._hooks) < _MOST_HOOKS:
            self._hooks[frame.hook_id or ""] = frame.hook_name or "unknown"
        elif frame.subtype == "hook_response":
            self._hooks.pop(frame.hook_id or "", None)

    def _assistant(self, frame: Frame) -> None:
        message = frame.message
        if message is None or message.model == SYNTHETIC_MODEL:
            return
        self.model_frames += 1
        self.answer.assistant(frame)
        for block in message.blocks:
            if block.type == "tool_use":
                self.tool_count += 1
                if block.id:
                    self._open_tools.add(block.id)
        if frame.parent_tool_use_id is None:
            self.model_name = message.model or self.model_name
            self.usage = message.usage or self.usage

    def _result(self, frame: Frame) -> None:
        self.answer.add_result(frame)
        self._open_tools.clear()
        self.num_turns = frame.num_turns if frame.num_turns is not None else self.num_turns
        self.duration_ms = frame.duration_ms if frame.duration_ms is not None else self.duration_ms
        self.cost_usd = frame.total_cost_usd if frame.total_cost_usd is not None else self.cost_usd
        self.context_window = _window_of(frame.model_usage or {}, self.model_name) or self.context_window


def _window_of(usage: dict[str, ModelUsage], model: str | None) -> int | None:
    """Return the context window of the model that answered; other models may have done side work."""
    windows = {name: one.context_window for name, one in usage.items() if one.context_window}
    own = [window for name, window in windows.items() if model is not None and name.startswith(model)]
    return max(own or windows.values(), default=None)


def _compact_event(found: CompactMetadata) -> CompactEvent:
    return CompactEvent(
        trigger=found.trigger if found.trigger in ("auto", "manual") else None,
        pre_tokens=found.pre_tokens,
        post_tokens=found.post_tokens,
        duration_ms=found.duration_ms,
    )
