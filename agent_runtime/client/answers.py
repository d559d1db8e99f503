"""
A supervisor's answers as typed objects.

Instants are :class:`datetime.datetime` here. Answers of a supervisor of another version can be read, too: fields that
it does not send, or sends in another form, have their empty value; additional fields are ignored; an unknown word, of a
state for example, stays a plain string.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import EnumType
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from agent_runtime.api.schema import bodies
from agent_runtime.model import records
from agent_runtime.model.records import Instant, Metadata, Subscriptable

S = TypeVar("S", bound=msgspec.Struct)

_EMPTY: tuple[object, ...] = (None, False, 0, "", [], {})
"""A field that is not sent gets the first of these values that has its type."""


class TokenUse(records.TokenRecord, kw_only=True):
    """A token that reached an attempt, and when."""

    delivered_at: Instant | None = None  # type: ignore[assignment]  # a record is stored with numbers


class Attempt(records.AttemptRecord, kw_only=True):
    """One attempt of an execution: one process of the CLI."""

    tokens: list[TokenUse] = msgspec.field(default_factory=list)  # type: ignore[assignment]  # as above
    started_at: Instant | None = None  # type: ignore[assignment]  # as above
    ended_at: Instant | None = None  # type: ignore[assignment]  # as above


class Execution(records.ExecutionRecord, kw_only=True):
    """The record of an execution: all that is known of it."""

    created_at: Instant | None = None  # type: ignore[assignment]  # as above
    started_at: Instant | None = None  # type: ignore[assignment]  # as above
    ended_at: Instant | None = None  # type: ignore[assignment]  # as above
    attempts: list[Attempt] = msgspec.field(default_factory=list)  # type: ignore[assignment]  # as above


class ExecutionPage(bodies.ExecutionPage, kw_only=True):
    """Records, newest first, and the cursor of the next page."""

    executions: list[Execution]  # type: ignore[assignment]  # as above


class Answer(Subscriptable, msgspec.Struct, frozen=True, kw_only=True):
    """
    The answer of an execution that succeeded or was cancelled.

    Attributes:
        status: ``success`` or ``cancelled``.
        response: The CLI's final text.
        structured_output: The answer that meets the task's ``json_schema``; None: there is none.
        execution_log: Frames of the transcript.
        truncated_log: Some frames in the middle of *execution_log* were left out.
    """

    execution_id: str
    status: str
    response: str | None = None
    structured_output: Any = None
    session_id: str | None = None
    execution_log: list[dict[str, Any]] = msgspec.field(default_factory=list)
    truncated_log: bool = False
    metadata: Metadata = msgspec.field(default_factory=Metadata)
    timestamp: str | None = None

    def __repr__(self) -> str:
        # Without the log, which may be too long for a traceback.
        return f"<Answer {self.execution_id} {self.status} {(self.response or '')[:80]!r}>"

    @property
    def is_cancelled(self) -> bool:
        """Whether the execution was cancelled."""
        return self.status == "cancelled"


class Event(Subscriptable, msgspec.Struct, frozen=True, kw_only=True):
    """
    An event of the token or of an execution.

    Attributes:
        id: Its number, which rises; ``events(after=id)`` continues after it.
        type: As docs/switching-tokens-for-a-fleet.md lists them; ``gap``: the events with the numbers ``first`` to
            ``last`` in *data* are missing.
        data: The event's facts, by name.
    """

    id: int
    type: str
    time: Instant | None = None
    data: dict[str, Any] = msgspec.field(default_factory=dict)


def read(kind: type[S], content: dict[str, Any]) -> S | None:
    """Build a *kind* from the fields that fit; None: the first field is missing, so *content* is something else."""
    found: S | None = None if content.get(kind.__struct_fields__[0]) is None else _read(kind, content)
    return found


def _read(kind: Any, content: Any) -> Any:
    """Convert *content* without the parts that do not fit; UNSET: nothing fits."""
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError:
        choices = get_args(kind) or (kind,)
    for choice in choices:
        if isinstance(content, dict) and isinstance(choice, type) and issubclass(choice, msgspec.Struct):
            return choice(**dict(_fields(choice, content)))
        if isinstance(content, str) and isinstance(choice, str | EnumType):
            return content
    if isinstance(content, list) and get_origin(kind) is list:
        return [found for one in content if (found := _read(choices[0], one)) is not msgspec.UNSET]
    return msgspec.UNSET


def _fields(kind: type[msgspec.Struct], content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for field in msgspec.structs.fields(kind):
        given = [content[field.name]] if field.name in content else []
        for value in (*given, *(_EMPTY if field.required else ())):
            if (found := _read(field.type, value)) is not msgspec.UNSET:
                yield field.name, found
                break
