"""A task as a caller posts it: its fields, their valid values, and its digest."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import re
from typing import TYPE_CHECKING, Annotated, Any, TypedDict
from uuid import UUID  # noqa: TC003 - msgspec reads it at run time

import msgspec

from agent_runtime.errors import InvalidRequest, is_reserved
from agent_runtime.model import mcp_config
from agent_runtime.model.trace_context import TraceContext, trace_context

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ARGUMENT_LIMIT_BYTES = 120_000
"""
The system prompt, and each list of tools, is one argument of the CLI, and Linux takes 128 KiB an argument.

Source: MAX_ARG_STRLEN in https://man7.org/linux/man-pages/man2/execve.2.html
"""

RESERVED_IDS = {"running"}
"""Ids that would stand in the way of a path of the HTTP interface."""

IMAGE_TYPES = ("image/gif", "image/jpeg", "image/png", "image/webp")
"""Source: https://docs.claude.com/en/docs/build-with-claude/vision, read 2026-11."""

_FIELD_IN_MESSAGE = re.compile(r"`\$\.([A-Za-z_]{1,40})|required field `([A-Za-z_]{1,40})`")

_IN_WORDS = {
    "execution_id": "must be letters, digits and . _ : -, at most 128, and not begin with . or :",
    "model": "must begin with a letter or digit and hold no blanks",
    "system_prompt": "must hold no NUL",
    "allowed_tools": "must hold no control characters",
    "disallowed_tools": "must hold no control characters",
}
"""The patterns in words, for error texts."""

_TYPES = {"`str": "`string", "`int": "`integer", "`float": "`number", "`bool": "`boolean", " | null`": "` or null"}
"""msgspec's words for types, and those of JSON."""

ExecutionId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._:-]{0,127}$(?!\n)")]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)")]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=30 * 86400)]


class Image(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    A picture for the model.

    Attributes:
        data: Base64, without a ``data:`` prefix.
    """

    media_type: str
    data: str


class Task(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """
    The body of ``POST /api/task``.

    Attributes:
        message: The prompt.
        execution_id: The caller's own name for it, by which to ask again; None: one is made up.
        model: None: the CLI's own choice.
        system_prompt: Appended to the CLI's own.
        timeout_seconds: From admission to the answer; None: the setting's.
        resume_session_id: A session of the CLI to go on with; one execution uses a session at a time, others wait.
        fresh_session: The first attempt begins a new session, also where an earlier one could be gone on with.
        mcp_config: As the CLI's ``--mcp-config`` takes it.
        async_result: Answer 202 at once.
        park_seconds: How long it may wait for a newer token, or for the end of a usage limit; None: the setting's.
        persist_session: Accepted for old callers; sessions are always kept.
        traceparent: As the header of that name, which wins; kept with the task, so that a resumed attempt has it too.
        tracestate: Likewise.
    """

    message: Annotated[str, msgspec.Meta(min_length=1)]
    execution_id: ExecutionId | None = None
    model: Annotated[str, msgspec.Meta(max_length=256, pattern=r"^[A-Za-z0-9][^\x00-\x20\x7f]*$(?!\n)")] | None = None
    system_prompt: Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$(?!\n)")] | None = None
    allowed_tools: list[Word] | None = None
    disallowed_tools: list[Word] | None = None
    max_turns: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=30 * 86400)] | None = None
    resume_session_id: UUID | None = None
    fresh_session: bool | None = None
    persist_session: bool | None = None
    mcp_config: dict[str, Any] | None = None
    images: Annotated[list[Image], msgspec.Meta(max_length=100)] | None = None
    park_seconds: Seconds | None = None
    async_result: bool | None = None
    traceparent: str | None = None
    tracestate: str | None = None

    @functools.cached_property
    def digest(self) -> str:
        """
        Equal for tasks that ask for the same work; caller, waiting time and form of the answer do not count.

        A field that is added to this class enters it only where it is not at its default: a record of an earlier
        version matches the same body.
        """
        work = {name: getattr(self, name) for name in _DIGEST_OF_0_1_0}
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if field.name not in _NO_WORK and field.name not in work and value != field.default:
                work[field.name] = value
        return hashlib.sha256(msgspec.json.encode(work, order="sorted")).hexdigest()

    @property
    def trace(self) -> TraceContext | None:
        """The trace it belongs to; None: none, or one that is not valid."""
        return None if self.traceparent is None else trace_context([self.traceparent], [self.tracestate or ""])

    def within(self, trace: TraceContext | None) -> Task:
        """Return the same task as a part of *trace*, or itself where there is none."""
        if trace is None:
            return self
        return msgspec.structs.replace(self, traceparent=trace.traceparent, tracestate=trace.tracestate)


_INTEGERS = ("max_turns",)
"""Fields of whole numbers, which may be written with a fraction of zero: 3.0 is an integer in JSON Schema."""

CLI_FLAGS = {
    "model": "--model",
    "system_prompt": "--append-system-prompt",
    "allowed_tools": "--allowedTools",
    "disallowed_tools": "--disallowedTools",
    "max_turns": "--max-turns",
}
"""The CLI's flag for each field whose value it takes as it is; a list is joined by commas, an empty value left out."""


class TaskFields(TypedDict, total=False):
    """The optional fields as keyword arguments of a Python caller; their meanings are those of :class:`Task`."""

    model: str | None
    system_prompt: str | None
    allowed_tools: list[str] | None
    disallowed_tools: list[str] | None
    max_turns: int | None
    timeout_seconds: float | None
    resume_session_id: str | None
    fresh_session: bool | None
    persist_session: bool | None
    mcp_config: Mapping[str, Any] | None
    images: list[dict[str, str]] | None
    park_seconds: float | None
    traceparent: str | None
    tracestate: str | None


_NO_WORK = {
    *("execution_id", "async_result", "timeout_seconds", "park_seconds", "persist_session"),
    *("traceparent", "tracestate", "fresh_session"),
}
"""Fields that do not change the work: caller, waiting time, form of the answer, and session to begin in."""

_DIGEST_OF_0_1_0 = (
    *("message", "model", "system_prompt", "allowed_tools", "disallowed_tools", "max_turns", "resume_session_id"),
    *("mcp_config", "images"),
)
"""Fields that are in every digest, whatever they hold; never changed."""


def parse(body: bytes, *, strict: bool, redact: Callable[[str], str] = str) -> tuple[Task, list[str]]:
    """
    Read a task from a request's body.

    Args:
        redact: Takes tokens out of what a caller has named a field.

    Returns:
        The task, and the names of the fields that nothing reads.

    Raises:
        InvalidRequest: The body is no JSON object or a field cannot be used; the message names the field, and never
            repeats what was sent.
    """
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("the body is not JSON; send an object with a message") from None
    if not isinstance(raw, dict):
        raise InvalidRequest("the body must be a JSON object with a message")
    ignored = unread_fields(raw, Task, strict=strict, redact=redact)
    _check_lengths(raw)
    for name in _INTEGERS:
        if isinstance(number := raw.get(name), float) and number.is_integer():
            raw[name] = int(number)
    try:
        task = msgspec.convert(raw, Task)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_plain(str(error))) from None
    _check(task)
    return task, ignored


def unread_fields(
    sent: dict[str, Any], body: type[msgspec.Struct], *, strict: bool, redact: Callable[[str], str]
) -> list[str]:
    """
    Return the names of the fields of a request that its *body* does not have.

    Raises:
        InvalidRequest: There are some, and requests are read strictly.
    """
    unread = sorted(name for name in sent if name not in body.__struct_fields__)
    ignored = [_shown(redact(name)) for name in unread[:20]]
    if ignored and strict:
        raise InvalidRequest(f"unknown fields: {', '.join(ignored[:10])}; leave them out")
    return ignored


def _check_lengths(raw: dict[str, Any]) -> None:
    """Check what becomes one argument of the CLI, before patterns are applied in a call that holds the interpreter."""
    for name in ("system_prompt", "allowed_tools", "disallowed_tools"):
        given = raw.get(name)
        words = given if isinstance(given, list) else [given]
        text = ",".join(word for word in words if isinstance(word, str))
        if len(text.encode(errors="replace")) > ARGUMENT_LIMIT_BYTES:
            raise InvalidRequest(f"{name}: must not be longer than {ARGUMENT_LIMIT_BYTES} bytes altogether")


def _check(task: Task) -> None:
    if task.execution_id in RESERVED_IDS:
        raise InvalidRequest(f"execution_id: must not be one of {', '.join(sorted(RESERVED_IDS))}")
    if task.fresh_session and task.resume_session_id is not None:
        raise InvalidRequest("fresh_session: must not be true where resume_session_id names a session")
    if not task.message.strip():
        raise InvalidRequest("message: must hold more than blanks")  # which the CLI refuses, too
    for text, name in ((task.message, "message"), (task.system_prompt or "", "system_prompt")):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"{name}: holds a lone surrogate, which is no Unicode text") from None
    if task.mcp_config is not None and (reason := mcp_config.refused_by_all(task.mcp_config)) is not None:
        raise InvalidRequest(f"mcp_config: {reason}")
    for image in task.images or ():
        if image.media_type not in IMAGE_TYPES:
            raise InvalidRequest(f"images: media_type must be one of {', '.join(IMAGE_TYPES)}")
        try:
            base64.b64decode(image.data, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest("images: data must be base64") from None


def _plain(message: str) -> str:
    """Put the field's name in front of msgspec's message, which names types and rules but never values."""
    found = _FIELD_IN_MESSAGE.search(message)
    name = found[1] or found[2] if found else None
    reason = message.split(" - at ", 1)[0]
    if "matching regex" in reason and name in _IN_WORDS:
        reason = _IN_WORDS[name]
    if "unknown field" in reason:
        reason = "holds a field that is not known"  # whose name is the caller's, and not for an error text
    if "missing required field" in reason:
        reason = "is missing"
    for python, words in _TYPES.items():
        reason = reason.replace(python, words)
    return f"{name}: {reason[:1].lower()}{reason[1:]}" if name else reason


def _shown(name: str) -> str:
    """Quote a caller's field name, unless it holds a reserved word."""
    is_fit = name.isprintable() and not is_reserved(name)
    return name[:64] if is_fit else "(not shown)"
