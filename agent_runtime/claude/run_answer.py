"""Find in a run's frames its answer, and whether more is to come."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum

import msgspec
from msgspec.structs import replace

from agent_runtime.claude.frames import DIAGNOSTIC_MARK, ContentBlock, Frame, Partial, text_of

_OTHERS_PROMPTS = frozenset(
    {"task-notification", "peer", "channel", "coordinator", "observer-activity", "plugin", "suggestion"}
)
"""
The ``origin`` of turns whose prompt is not the caller's.

Source: 2.1.332; only the first was seen in a run, the others are in the binary.
"""

_INTERRUPTED = "[Request interrupted"
_ABORTED_STREAMING = "aborted_streaming"
_COMMAND_OUTPUT = "<local-command-stdout>"
_END_OF_COMMAND_OUTPUT = "</local-command-stdout>"


class Result(msgspec.Struct, frozen=True):
    """
    A ``result`` frame of the CLI, combined with the frames before it.

    Attributes:
        is_error: There is no answer, by the frame or its subtype.
        subtype: ``success`` even on most kinds of failure.
        text: The answer, or the CLI's own words about a failure; None: there is neither.
        stop_reason: Why the model ended its last message, in the API's words.
        structured_output: The answer that meets the task's schema, as JSON; None: there is none.
    """

    is_error: bool
    subtype: str | None
    text: str | None
    stop_reason: str | None = None
    structured_output: str | None = None


class RunStage(Enum):
    """The stage of a run."""

    RUNNING = "running"
    """The CLI works on the prompt, or on the end of a background task."""
    IN_BACKGROUND = "in_background"
    """There is a result, and background work whose end begins another turn."""
    OVER = "over"
    """There is a result, and nothing more is to come."""


class RunAnswer:
    """
    Determine the answer of a run from its frames and partial messages, which must be passed in order.

    A run has one turn for its prompt, and one more for each background task that ends, each with a ``result`` of its
    own. A resumed run may begin with a turn and a result about the tasks of its last process.

    Attributes:
        last_result: The last result that answers the prompt; without one, the last result.
        has_result: That result answers the prompt.
        stop_reason: Why the model ended its last own message, in the API's words.
        asked_model: A request was sent to the model.
        is_stopping: The child was told to end; from then on a ``result`` counts only if it has an answer.
    """

    def __init__(self) -> None:
        self.last_result: Result | None = None
        self.has_result = False
        self.stop_reason: str | None = None
        self.asked_model = False
        self.is_stopping = False
        self._last_blocks: list[ContentBlock] = []  # of the last own message with text, unless a tool call follows
        self._command_output: str | None = None
        self._message_id: str | None = None
        self._is_whole: bool | None = None  # the last own message was finished; None: not known
        self._turn_goes_on = False  # a turn has begun after the present result
        self._turn_is_to_come = False  # the CLI will begin another turn, about the end of a task

    @property
    def is_without_model(self) -> bool:
        """Whether the CLI gave an answer of its own, without asking the model."""
        return not self.asked_model and self.last_result is not None and not self.last_result.is_error

    def stage(self, *, tasks_pending: bool) -> RunStage:
        """Return the stage of the run."""
        if not self.has_result or self._turn_goes_on:
            return RunStage.RUNNING
        return RunStage.IN_BACKGROUND if tasks_pending or self._turn_is_to_come else RunStage.OVER

    def partial(self, partial: Partial | None) -> None:
        """Process a partial message; None: one that neither begins nor ends a message."""
        self.asked_model = True
        if partial is None or partial.parent_tool_use_id is not None:
            return
        if partial.event.type == "message_start":
            self._turn_goes_on = True
            self._is_whole = False
        elif partial.event.delta is not None and partial.event.delta.stop_reason is not None:
            self.stop_reason = partial.event.delta.stop_reason
            self._is_whole = True

    def begin_turn(self) -> None:
        """Record that another turn begins."""
        self._turn_goes_on = self.has_result

    def expect_turn(self) -> None:
        """Record that the CLI will report a task's end to the model, which takes a turn."""
        self._turn_is_to_come = self.has_result

    def messages(self, frames: Iterable[Frame]) -> None:
        """Process messages of the model, and blocks of them, that follow each other."""
        self.asked_model = True
        for frame in frames:
            message = frame.message
            if message is None or frame.parent_tool_use_id is not None:
                continue
            self._turn_goes_on = True
            is_same = message.id is not None and message.id == self._message_id
            if not is_same and self._is_whole:
                self._is_whole = None
            self._message_id = message.id
            blocks, has_text = message.blocks, False
            for block in blocks:
                if block.type == "tool_use":
                    self._last_blocks = []
                    break
                has_text = has_text or block.type == "text"
            else:
                if is_same:
                    self._last_blocks += blocks
                elif has_text:
                    self._last_blocks = blocks[:]
            if message.stop_reason is not None:
                self.stop_reason, self._is_whole = message.stop_reason, True

    def user(self, frame: Frame) -> None:
        """Process a ``user`` frame, a message to the model; a tool's result says nothing about the answer."""
        if frame.parent_tool_use_id is not None or any(block.type == "tool_result" for block in frame.blocks):
            return
        text = frame.text
        if text.startswith(_COMMAND_OUTPUT) and not self.asked_model:
            self._command_output = text.removeprefix(_COMMAND_OUTPUT).partition(_END_OF_COMMAND_OUTPUT)[0].strip()
        elif self._is_whole is None and not text.startswith(_INTERRUPTED):
            self._is_whole = True  # a new message follows, so the model had finished

    def add_result(self, frame: Frame) -> None:
        """Process a ``result`` frame."""
        self._turn_goes_on = self._turn_is_to_come = False
        self.asked_model |= bool(frame.duration_api_ms)
        result = self._result(frame)
        has_answer = not result.is_error and (result.text is not None or result.structured_output is not None)
        if self.is_stopping and not has_answer:
            return
        earlier = self.last_result if self.has_result else None
        if earlier is None:
            is_callers = frame.origin is None or frame.origin.kind not in _OTHERS_PROMPTS
            self.has_result = is_callers and (has_answer or result.is_error or self.asked_model)
            self.last_result = result
        elif has_answer or (result.is_error and result.text is not None):
            # The turn about a background task need not give the structured answer again.
            self.last_result = replace(result, structured_output=result.structured_output or earlier.structured_output)

    def redact(self, redact: Callable[[str], str]) -> None:
        """Apply *redact* to every text that will be shown, and drop the others; no frame may follow."""

        def clean(text: str | None) -> str | None:
            return None if text is None else redact(text)

        self._last_blocks = []  # each refers to the whole line that it was in
        self.stop_reason = clean(self.stop_reason)
        if (result := self.last_result) is not None:
            self.last_result = replace(
                result,
                text=clean(result.text),
                stop_reason=clean(result.stop_reason),
                structured_output=clean(result.structured_output),
            )

    @property
    def _text(self) -> str | None:
        """The model's last text, if no tool call follows it; else the output of a command, if there is any."""
        return text_of(self._last_blocks) or self._command_output or None

    def _result(self, frame: Frame) -> Result:
        failed = bool(frame.is_error) or (frame.subtype or "").startswith("error_")
        if frame.stop_reason is not None and not failed:
            self.stop_reason = frame.stop_reason  # in a failure it belongs to the CLI's own message
        text = frame.result if frame.result and not frame.result.isspace() else None
        if failed and not self.is_stopping and self._was_answered_before(frame):
            failed, text = False, self._text
        elif failed:
            text = frame.result_text
        elif text is None and self.stop_reason != "tool_use":
            text = self._text
        raw = bytes(frame.structured_output)
        structured = raw.decode() if raw.startswith(b"{") and not failed else None  # any program can print a frame
        return Result(
            is_error=failed,
            subtype=frame.subtype,
            text=text,
            stop_reason=self.stop_reason,
            structured_output=structured,
        )

    def _was_answered_before(self, frame: Frame) -> bool:
        """
        Whether the only fault is that the conversation continues after the model's answer.

        Source: anthropics/claude-code#82235: a notification of a task and an interruption follow the answer. An answer
        that an interruption cut in the middle differs only in the partial messages and, since 2.1.114, in the terminal
        reason.
        """
        errors = frame.errors or []
        return (
            frame.subtype == "error_during_execution"
            and (not errors or any(error.startswith(DIAGNOSTIC_MARK) for error in errors))
            and self._text is not None
            and "tool_use" not in (self.stop_reason, frame.stop_reason)
            and (self._is_whole or (self._is_whole is None and frame.terminal_reason != _ABORTED_STREAMING))
        )
