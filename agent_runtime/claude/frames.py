"""
The CLI's stream-json frames, as far as this package reads them.

Only the fields named here are decoded; msgspec skips all others without building them, so a frame of a megabyte costs
little more than reading it. A line that some JSON parser might reject, or that has a field of an unexpected type, is
refused here and read by :mod:`agent_runtime.claude.frame_repair`.

Source: frames of Claude Code 1.0.128, 2.0.76, 2.1.30, 2.1.114, 2.1.197, 2.1.330 and 2.1.332, in part recorded under
``tests/recorded/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from agent_runtime.model.records import CompactEvent
from agent_runtime.model.usage import ModelUsage, amount, count

SYNTHETIC_MODEL = "<synthetic>"
"""The model name of assistant frames that the CLI writes itself, not the API."""

DIAGNOSTIC_MARK = "[ede_diagnostic]"
"""
The beginning of an entry of ``errors`` that the CLI itself does not show.

Source: 2.1.330; anthropics/claude-code issue 82235.
"""

PARTIAL_MESSAGE = "stream_event"
"""The type of a frame with a part of a message, see :class:`Partial`."""

_EVENT_HEAD_BYTES = 96

MOST_LEVELS = 200
"""The deepest nesting of a frame: some parsers fail at a thousand levels, and the answer around it adds some."""

MOST_DIGITS = 4300
"""The most digits of a number: Python's own parser refuses longer ones."""

_PLAIN_BYTES = 2 * MOST_LEVELS
_STRIDE = 430
_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % (MOST_DIGITS // _STRIDE - 1))
_SMALL_STRIDE = 61
_BRACKETS = bytes(byte in b"[]{}" for byte in range(256))

_OPENING, _CLOSING = b"{}"

_ENDED = frozenset({"completed", "failed", "killed", "stopped"})


class ContentBlock(msgspec.Struct, frozen=True, gc=False):
    """
    One block of a message's content.

    Attributes:
        text: The undecoded JSON of the text, because it may be long. No union: msgspec does not allow one with Raw.
    """

    type: str = ""
    text: msgspec.Raw = msgspec.Raw()
    id: str | None = None
    tool_use_id: str | None = None


class MessageUsage(msgspec.Struct, frozen=True, gc=False):
    """Token counts of one API message or of a turn; a value that is not a count is read as 0."""

    input_tokens: Any = None
    output_tokens: Any = None
    cache_creation_input_tokens: Any = None
    cache_read_input_tokens: Any = None

    @property
    def counts(self) -> ModelUsage:
        """The counts by the package's own names."""
        return _counts(self)


class Message(msgspec.Struct, frozen=True, gc=False):
    """
    The ``message`` of an assistant or user frame.

    Attributes:
        id: The same in all frames of one message: each carries one of its blocks.
        stop_reason: Why the model ended the message; set only if a frame follows the message's end, which is rare.
    """

    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    content: list[ContentBlock] | str | None = None
    usage: MessageUsage | None = None

    @property
    def blocks(self) -> list[ContentBlock]:
        """The blocks of the content; a plain text has none."""
        return self.content if isinstance(self.content, list) else []


class ReportedUsage(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """The usage of one model, in a ``result`` frame or a session's file; a value that is not a count is read as 0."""

    input_tokens: Any = None
    output_tokens: Any = None
    cache_creation_input_tokens: Any = None
    cache_read_input_tokens: Any = None
    cost_usd: Any = msgspec.field(default=None, name="costUSD")
    context_window: Any = None

    @property
    def usage(self) -> ModelUsage:
        """The token counts and the cost by the package's own names."""
        return msgspec.structs.replace(_counts(self), cost_usd=amount(self.cost_usd))


def _counts(found: MessageUsage | ReportedUsage) -> ModelUsage:
    return ModelUsage(
        input_tokens=count(found.input_tokens),
        output_tokens=count(found.output_tokens),
        cache_creation_tokens=count(found.cache_creation_input_tokens),
        cache_read_tokens=count(found.cache_read_input_tokens),
    )


class RateLimitInfo(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """
    The body of a ``rate_limit_event`` frame.

    Attributes:
        resets_at: Epoch seconds.
    """

    status: str | None = None
    resets_at: float | None = None
    rate_limit_type: str | None = None
    is_using_overage: bool | None = None


class BackgroundTask(msgspec.Struct, frozen=True, gc=False):
    """One entry of ``system/background_tasks_changed``."""

    task_id: str = ""


class Origin(msgspec.Struct, frozen=True, gc=False):
    """The source of a turn's prompt, in the turn's ``result``; 2.1.197, not yet 2.1.114."""

    kind: str | None = None


class TaskPatch(msgspec.Struct, frozen=True, gc=False):
    """The changes in ``system/task_updated``."""

    status: str | None = None


class Frame(msgspec.Struct, frozen=True, gc=False):
    """
    Any frame: *type* and *subtype* decide which fields are set.

    There is one struct for all kinds of frame, because every version of the CLI adds fields and types.

    Attributes:
        parent_tool_use_id: The tool call a sub-agent's frame belongs to; None: the run's own frame.
        error_status: Of ``api_retry``: the HTTP status; None: there was no answer.
        error: Of ``api_retry`` and of an assistant frame that the CLI wrote itself: the CLI's word for the failure.
        api_error: Of such an assistant frame and of ``result``: a more specific word, since 2.1.3xx.
        tasks: Of ``background_tasks_changed``: all pending tasks; 2.1.330, not yet 2.1.114.
        agents: Of ``init``: the names of the available agents.
        structured_output: Of ``result``: the answer that meets the schema, as JSON; 2.0.76 and later.
        stop_reason: Of ``result``: why the model ended its last message; 2.1.114, not yet 2.1.30.
        terminal_reason: Of ``result``: why the CLI ended the run; 2.1.114, not yet 2.1.30.
        origin: Of ``result``: where the turn's prompt came from; None: from the caller.
        task_id: Of ``task_started``, ``task_updated``, ``task_notification``; since 2.1.114, not yet 2.1.30.
        ambient: Of ``task_notification``: the model does not get this notification; 2.1.332.
    """

    type: str = ""
    subtype: str | None = None
    session_id: str | None = None
    parent_tool_use_id: str | None = None
    # system/init
    model: str | None = None
    permission_mode: str | None = msgspec.field(default=None, name="permissionMode")
    claude_code_version: str | None = None
    agents: Any = None
    # system/api_retry
    error_status: int | None = None
    # api_retry, assistant, result
    error: str | None = None
    api_error: str | None = None
    api_error_status: int | None = None
    api_error_type: str | None = None
    api_error_code: str | None = None
    # assistant, user
    message: Message | None = None
    # system/hook_started, hook_progress, hook_response
    hook_id: str | None = None
    hook_name: str | None = None
    # result
    is_error: bool | None = None
    result: str | None = None
    structured_output: msgspec.Raw = msgspec.Raw()
    errors: list[str] | None = None
    num_turns: int | None = None
    duration_ms: float | None = None
    duration_api_ms: float | None = None
    stop_reason: str | None = None
    terminal_reason: str | None = None
    origin: Origin | None = None
    total_cost_usd: float | None = None
    usage: MessageUsage | None = None
    model_usage: dict[str, ReportedUsage | None] | None = msgspec.field(default=None, name="modelUsage")
    # rate_limit_event
    rate_limit_info: RateLimitInfo | None = None
    # system/background_tasks_changed
    tasks: list[BackgroundTask] | None = None
    # system/compact_boundary
    compact_metadata: CompactEvent | None = None
    # system/task_started, task_updated, task_notification
    task_id: str | None = None
    patch: TaskPatch | None = None
    ambient: bool | None = None

    @property
    def is_of_model(self) -> bool:
        """Whether this is a message of the model, or a block of one."""
        return self.type == "assistant" and self.message is not None and self.message.model != SYNTHETIC_MODEL

    @property
    def blocks(self) -> list[ContentBlock]:
        """The blocks of the message's content; a plain text has none."""
        return self.message.blocks if self.message is not None else []

    @property
    def text(self) -> str:
        """All text of the message, one block a line."""
        if self.message is not None and isinstance(self.message.content, str):
            return self.message.content
        return text_of(self.blocks)

    @property
    def result_text(self) -> str | None:
        """The answer of a ``result`` frame, or its message about a failure."""
        if self.result is not None:
            return self.result
        errors = [error for error in self.errors or () if not error.startswith(DIAGNOSTIC_MARK)]
        return "\n".join(errors) or None

    @property
    def began_task_id(self) -> str | None:
        """
        The task that has begun with this frame, in the background or not.

        2.1.114 reports background tasks only by these frames: after the first ``result`` it waits for their end, and
        prints a second one.
        """
        return self.task_id if self.type == "system" and self.subtype == "task_started" else None

    @property
    def ended_task_id(self) -> str | None:
        """The task that has ended with this frame, successfully or not."""
        if self.type != "system":
            return None
        if self.subtype == "task_notification":
            return self.task_id
        ended = self.patch is not None and self.patch.status in _ENDED
        return self.task_id if self.subtype == "task_updated" and ended else None


def text_of(blocks: Iterable[ContentBlock]) -> str:
    """Return the text of all text blocks, joined by newlines."""
    texts = (_string(block.text) for block in blocks if block.type == "text")
    return "\n".join(text for text in texts if text)


class _Delta(msgspec.Struct, gc=False):
    type: str = ""
    text: str = ""
    stop_reason: str | None = None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    index: int = 0
    delta: _Delta | None = None
    message: Message | None = None
    usage: MessageUsage | None = None


class Partial(msgspec.Struct, gc=False):
    """A partial message: an event of the API's stream, as the CLI passes it on."""

    event: _Event
    parent_tool_use_id: str | None = None


_decode = msgspec.json.Decoder(Frame).decode
_decode_partial = msgspec.json.Decoder(Partial).decode
_decode_text = msgspec.json.Decoder(str).decode
_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode(line: bytes) -> Frame | None:
    """
    Decode a line that is exactly one frame; None if it is not, or if another parser might fail on it.

    msgspec checks JSON's whole grammar, except the encoding of strings in fields that it skips: see :func:`is_utf8`.
    """
    try:
        frame = _decode(line)
    except _REFUSED:
        return None
    return None if len(line) > _PLAIN_BYTES and _is_awkward(line) else frame


def decode_lines(lines: Sequence[bytes], *, are_utf8: bool) -> list[Frame | None]:
    """
    Decode lines that came together; None for each that is not exactly one frame and a newline.

    Args:
        are_utf8: All of them are known to be UTF-8, and end with a newline.
    """
    if are_utf8:
        try:
            frames = list(map(_decode, lines))
        except _REFUSED:
            pass  # one of them: each is decoded by itself
        else:
            return [
                frame
                if line[0] == _OPENING and line[-2] == _CLOSING and (len(line) <= _PLAIN_BYTES or not _is_awkward(line))
                else None
                for line, frame in zip(lines, frames, strict=True)
            ]
    return [
        decode(line) if line[:1] == b"{" and line[-2:] == b"}\n" and (are_utf8 or is_utf8(line)) else None
        for line in lines
    ]


def is_utf8(data: bytes) -> bool:
    """Whether all of *data* is UTF-8."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def decode_partial(line: bytes) -> Partial | None:
    """Decode a partial message; None if *line* is not one."""
    try:
        return _decode_partial(line)
    except _REFUSED:
        return None


def bounds_message(line: bytes) -> bool:
    """
    Whether a partial message begins or ends a message of the model; most do neither.

    Source: ``message_start``, ``message_delta`` and ``message_stop`` are the second ``type`` of the line, 1.0.128 to
    2.1.332.
    """
    return line.find(b'"message_', 0, _EVENT_HEAD_BYTES) >= 0


def plain(data: bytes) -> str:
    """Return text as a person would read it, without colour codes, control characters and invalid UTF-8."""
    text = data.decode("utf-8", "ignore")
    if text.isprintable():
        return text
    if "\x1b" in text:
        first, *others = text.split("\x1b")
        text = first + "".join(map(_without_sequence, others))
    return "".join(character for character in text if character.isprintable() or character in "\t\n")


def _without_sequence(piece: str) -> str:
    """Remove the rest of a control sequence (ECMA-48) from the beginning of *piece*."""
    if piece.startswith("]"):  # of any length, ended by BEL, or by the escape before the next piece
        return piece.partition("\x07")[2]
    if not piece.startswith("["):
        return piece[1:]
    end = next((at for at, character in enumerate(piece[1:], 1) if "@" <= character <= "~"), len(piece))
    return piece[end + 1 :]


def _string(raw: msgspec.Raw) -> str:
    """Decode a JSON string; empty if *raw* is not one."""
    try:
        return _decode_text(raw) if raw else ""
    except _REFUSED:
        return ""


def _is_awkward(line: bytes) -> bool:
    """
    Whether valid JSON has numbers too long, or levels too many, for other parsers.

    Only samples are read, because reading each byte would take as long as decoding. Every 430th byte is enough to find
    a number that long. Every 61st is enough to find that many brackets, unless text was put between them on purpose.
    """
    if len(line) > MOST_DIGITS and _LONG_NUMBER.search(line[::_STRIDE]):
        return True
    brackets = line[::_SMALL_STRIDE].translate(_BRACKETS).count(True)
    return brackets >= MOST_LEVELS // _SMALL_STRIDE and _is_deep(msgspec.json.decode(line))


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(MOST_LEVELS):
        below = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [one for values in below for one in values if isinstance(one, dict | list)]
        if not level:
            return False
    return True
