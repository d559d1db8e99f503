"""A task as a caller posts it: its fields, their bounds, and its digest."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Annotated, Any, Literal, TypedDict
from uuid import UUID

import msgspec

from agent_runtime.model.trace_context import TraceContext, trace_context

ImageType = Literal["image/gif", "image/jpeg", "image/png", "image/webp"]
"""Source: https://docs.claude.com/en/docs/build-with-claude/vision, read 2026-11."""

ExecutionId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._:-]{0,127}$(?!\n)")]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)")]
_PART = r"(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f]{1,255}"
PathBelow = Annotated[str, msgspec.Meta(max_length=3000, pattern=rf"^{_PART}(?:/{_PART}){{0,99}}$(?!\n)")]
"""A path of a directory, relative to the workspace."""

VariableName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,255}$(?!\n)")]
ModelName = Annotated[str, msgspec.Meta(max_length=256, pattern=r"^[A-Za-z0-9][^\x00-\x20\x7f]*$(?!\n)")]
_MODEL = r"[A-Za-z0-9][^\x00-\x20\x7f,]*"
ModelNames = Annotated[str, msgspec.Meta(max_length=256, pattern=rf"^{_MODEL}(?:,{_MODEL})*$(?!\n)")]
"""The name of a model, or several separated by commas."""

Prompt = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$(?!\n)")]
ToolName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,127}$(?!\n)")]
AgentName = Annotated[str, msgspec.Meta(max_length=128, pattern=r"^[A-Za-z0-9_][^\x00-\x20\x7f,]*$(?!\n)")]
Effort = Literal["low", "medium", "high", "xhigh", "max"]
PermissionMode = Literal["acceptEdits", "auto", "bypassPermissions", "default", "dontAsk", "manual", "plan"]
SettingSource = Literal["user", "project", "local"]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=30 * 86400)]

TITLE_LENGTH = 120
LABELS = 16
LABEL_NAME = r"^[a-z0-9_.-]{1,63}$(?!\n)"
LABEL_VALUE_LENGTH = 256
Title = Annotated[str, msgspec.Meta(max_length=TITLE_LENGTH, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$(?!\n)")]
LabelName = Annotated[str, msgspec.Meta(pattern=LABEL_NAME)]
LabelValue = Annotated[str, msgspec.Meta(max_length=LABEL_VALUE_LENGTH)]


class Image(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    A picture for the model.

    Attributes:
        data: Base64, without a ``data:`` prefix.
    """

    media_type: ImageType
    data: str


class Task(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """
    The body of ``POST /api/task``.

    Attributes:
        message: The prompt.
        execution_id: The caller's own name for it, by which to ask again; None: one is made up.
        title: For people: what the task is about.
        labels: For the caller's own order, such as a project; records can be listed by them.
        model: None: the CLI's own choice.
        fallback_model: Asked where the model is overloaded or not available; later versions take several, by commas.
        effort: How much the model thinks.
        system_prompt: The earlier name of *append_system_prompt*.
        append_system_prompt: Added to the CLI's own.
        replace_system_prompt: In place of the CLI's own.
        permission_mode: None: ``bypassPermissions``; ``manual`` is another name of ``default``. What a mode would ask a
            person for is denied.
        tools: The built-in tools that there are, ``default`` for all; empty: none.
        max_budget_usd: Of all attempts together, as far as the CLI has told their cost.
        json_schema: The answer's ``structured_output`` meets it; a schema of an object, at most 120,000 bytes.
        agents: Sub-agents by name, each with ``description`` and ``prompt``; at most 120,000 bytes.
        agent: The agent that the session runs as.
        timeout_seconds: From admission to the answer; None: the setting's.
        resume_session_id: A session of the CLI to go on with; one execution uses a session at a time, others wait.
        fork_session: Go on in a copy of that session; it stays as it is, so nothing waits for it.
        fresh_session: The first attempt begins a new session, even if an earlier one could be continued.
        mcp_config: As the CLI's ``--mcp-config`` takes it.
        strict_mcp_config: No other MCP servers than these.
        setting_sources: The settings files that the CLI reads; empty: none.
        async_result: Answer 202 at once.
        park_seconds: How long it may wait for a newer token, or for the end of a usage limit; None: the setting's.
        persist_session: Accepted for old callers; sessions are always kept.
        cwd: The directory to work in, relative to the workspace; None: the session's, else what the setting says.
        create_cwd: Make *cwd* where it is missing.
        add_dirs: Further directories for the CLI's tools, likewise relative.
        env: Variables of the CLI and its tools; the names are in the record, the values are not.
        traceparent: As the header of that name, which wins; kept with the task, so that a resumed attempt has it too.
        tracestate: Likewise.
    """

    message: Annotated[str, msgspec.Meta(min_length=1)]
    execution_id: ExecutionId | None = None
    title: Title | None = None
    labels: Annotated[dict[LabelName, LabelValue], msgspec.Meta(max_length=LABELS)] | None = None
    model: ModelName | None = None
    fallback_model: ModelNames | None = None
    effort: Effort | None = None
    system_prompt: Prompt | None = None
    append_system_prompt: Prompt | None = None
    replace_system_prompt: Annotated[Prompt, msgspec.Meta(min_length=1)] | None = None
    permission_mode: PermissionMode | None = None
    tools: Annotated[list[ToolName], msgspec.Meta(max_length=256)] | None = None
    allowed_tools: list[Word] | None = None
    disallowed_tools: list[Word] | None = None
    max_turns: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    max_budget_usd: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] | None = None
    json_schema: dict[str, Any] | None = None
    agents: Annotated[dict[AgentName, dict[str, Any]], msgspec.Meta(max_length=64)] | None = None
    agent: AgentName | None = None
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=30 * 86400)] | None = None
    resume_session_id: UUID | None = None
    fork_session: bool | None = None
    fresh_session: bool | None = None
    persist_session: bool | None = None
    mcp_config: dict[str, Any] | None = None
    strict_mcp_config: bool | None = None
    setting_sources: Annotated[list[SettingSource], msgspec.Meta(max_length=3)] | None = None
    images: Annotated[list[Image], msgspec.Meta(max_length=100)] | None = None
    park_seconds: Seconds | None = None
    async_result: bool | None = None
    cwd: PathBelow | None = None
    create_cwd: bool | None = None
    add_dirs: Annotated[list[PathBelow], msgspec.Meta(max_length=32)] | None = None
    env: (
        Annotated[
            dict[VariableName, Annotated[str, msgspec.Meta(max_length=120_000, pattern=r"^[^\x00]*$(?!\n)")]],
            msgspec.Meta(max_length=256),
        ]
        | None
    ) = None
    traceparent: str | None = None
    tracestate: str | None = None

    @functools.cached_property
    def digest(self) -> str:
        """
        A hash that is equal for tasks that ask for the same work; see ``_NO_WORK`` for fields that do not count.

        A field that is added to this class enters the digest only if it is not at its default, so that a record of an
        earlier version matches the same body.
        """
        work = {name: getattr(self, name) for name in _DIGEST_OF_0_1_0}
        for name in self.__struct_fields__:  # msgspec.structs.fields takes milliseconds: it evaluates the annotations
            value = getattr(self, name)
            is_default = value in (None, False, "") or value == _DEFAULTS.get(name)
            if name not in _NO_WORK and name not in work and not is_default:
                work[name] = value
        return hashlib.sha256(msgspec.json.encode(work, order="sorted")).hexdigest()

    @property
    def trace(self) -> TraceContext | None:
        """The trace that the task belongs to; None: it names none, or an invalid one."""
        return None if self.traceparent is None else trace_context([self.traceparent], [self.tracestate or ""])

    def with_trace(self, trace: TraceContext | None) -> Task:
        """Return the same task as a part of *trace*; if that is None, the task itself."""
        if trace is None:
            return self
        return msgspec.structs.replace(self, traceparent=trace.traceparent, tracestate=trace.tracestate)


DEFAULT_PERMISSION_MODE: PermissionMode = "bypassPermissions"

_DEFAULTS: dict[str, Any] = {"permission_mode": DEFAULT_PERMISSION_MODE, "agents": {}, "env": {}, "add_dirs": []}
"""Values that mean the same as an absent field, besides null, false and an empty string."""

CLI_FLAGS = {
    "model": "--model",
    "system_prompt": "--append-system-prompt",
    "append_system_prompt": "--append-system-prompt",
    "allowed_tools": "--allowedTools",
    "disallowed_tools": "--disallowedTools",
    "max_turns": "--max-turns",
    "add_dirs": "--add-dir",
    "replace_system_prompt": "--system-prompt",
    "fallback_model": "--fallback-model",
    "effort": "--effort",
    "permission_mode": "--permission-mode",
    "tools": "--tools",
    "max_budget_usd": "--max-budget-usd",
    "json_schema": "--json-schema",
    "agents": "--agents",
    "agent": "--agent",
    "fork_session": "--fork-session",
    "strict_mcp_config": "--strict-mcp-config",
    "setting_sources": "--setting-sources",
}
"""The CLI's flag for each field that the CLI takes as it is."""


class TaskFields(TypedDict, total=False):
    """The optional fields as keyword arguments of a Python caller; their meanings are those of :class:`Task`."""

    title: str | None
    labels: Mapping[str, str] | None
    model: str | None
    fallback_model: str | None
    effort: str | None
    system_prompt: str | None
    append_system_prompt: str | None
    replace_system_prompt: str | None
    permission_mode: str | None
    tools: list[str] | None
    allowed_tools: list[str] | None
    disallowed_tools: list[str] | None
    max_turns: int | None
    max_budget_usd: float | None
    json_schema: Mapping[str, Any] | None
    agents: Mapping[str, Mapping[str, Any]] | None
    agent: str | None
    timeout_seconds: float | None
    resume_session_id: str | None
    fork_session: bool | None
    fresh_session: bool | None
    persist_session: bool | None
    mcp_config: Mapping[str, Any] | None
    strict_mcp_config: bool | None
    setting_sources: list[str] | None
    images: list[dict[str, str]] | None
    park_seconds: float | None
    cwd: str | PathLike[str] | None
    create_cwd: bool | None
    add_dirs: Sequence[str | PathLike[str]] | None
    env: Mapping[str, str] | None
    traceparent: str | None
    tracestate: str | None


_NO_WORK = {
    *("execution_id", "async_result", "timeout_seconds", "park_seconds", "persist_session"),
    *("traceparent", "tracestate", "fresh_session", "title", "labels", "create_cwd"),
}
"""Fields that do not change the work: they are about the caller, waiting, the answer, a new session, and names."""

_DIGEST_OF_0_1_0 = (
    *("message", "model", "system_prompt", "allowed_tools", "disallowed_tools", "max_turns", "resume_session_id"),
    *("mcp_config", "images"),
)
"""Fields that enter every digest, even at their default; must not be changed, as digests are stored."""
