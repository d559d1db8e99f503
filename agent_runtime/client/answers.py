"""
A supervisor's answers as typed objects.

Instants are :class:`datetime.datetime` here. Answers of a supervisor of another version can be read, too: fields that
it does not send, or sends in another form, have their empty value; additional fields are ignored; an unknown word, of a
state for example, stays a plain string.
"""

from __future__ import annotations

from datetime import datetime
from enum import EnumType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin

import msgspec

from agent_runtime.api.schema import bodies
from agent_runtime.model import records

if TYPE_CHECKING:
    from collections.abc import Iterator

S = TypeVar("S", bound=msgspec.Struct)

Instant = Annotated[datetime, msgspec.Meta(tz=True)]
"""An instant with its time zone; a text without a zone is not read."""

_EMPTY: tuple[object, ...] = (None, False, 0, "", [], {})
"""A field that is not sent gets the first of these values that has its type."""


class _Named:
    """Fields that can also be read by their names, ``token["state"]``: earlier versions returned a dict."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        return msgspec.structs.asdict(self)[name]  # type: ignore[arg-type]  # every class with it is a structure


class Metadata(_Named, records.Metadata, kw_only=True):
    """Counts of an execution, and facts about its request and its record."""


class TokenUse(_Named, records.TokenRecord, kw_only=True):
    """A token that reached an attempt, and when."""

    delivered_at: Instant | None = None  # type: ignore[assignment]  # what is sent is text, and read as an instant


class Attempt(_Named, records.AttemptRecord, kw_only=True):
    """One attempt of an execution: one process of the CLI."""

    tokens: list[TokenUse] = msgspec.field(default_factory=list)  # type: ignore[assignment]  # as above
    started_at: Instant | None = None  # type: ignore[assignment]  # as above
    ended_at: Instant | None = None  # type: ignore[assignment]  # as above


class Execution(_Named, records.ExecutionRecord, kw_only=True):
    """The record of an execution: all that is known of it."""

    created_at: Instant | None = None  # type: ignore[assignment]  # as above
    started_at: Instant | None = None  # type: ignore[assignment]  # as above
    ended_at: Instant | None = None  # type: ignore[assignment]  # as above
    attempts: list[Attempt] = msgspec.field(default_factory=list)  # type: ignore[assignment]  # as above
    metadata: Metadata = msgspec.field(default_factory=Metadata)


class ExecutionPage(_Named, bodies.ExecutionPage, kw_only=True):
    """Records, newest first, and the cursor of the next page."""

    executions: list[Execution]  # type: ignore[assignment]  # as above


class RunningExecution(_Named, bodies.RunningExecution, kw_only=True):
    """An execution that has a slot."""

    started_at: Instant | None = None  # type: ignore[assignment]  # as above
    metadata: Metadata


class RunningExecutions(_Named, bodies.RunningExecutions, kw_only=True):
    """Executions that run, wait, or ended lately."""

    executions: list[RunningExecution]  # type: ignore[assignment]  # as above


class ExecutionStatus(_Named, bodies.ExecutionStatus, kw_only=True):
    """Whether an execution runs, and how it ended."""

    started_at: Instant | None = None  # type: ignore[assignment]  # as above
    metadata: Metadata


class UsageReport(_Named, bodies.UsageReport, kw_only=True):
    """The usage of the executions whose records are kept: cost, tokens and turns."""

    since: Instant | None = None  # type: ignore[assignment]  # as above


class Termination(_Named, bodies.Termination, kw_only=True):
    """The answer to the cancellation of an execution, after all its processes have ended."""


class DrainState(_Named, bodies.DrainState, kw_only=True):
    """Whether new executions are admitted, and how many are unfinished."""


class TokenReport(_Named, bodies.TokenReport, kw_only=True):
    """The token's state; never the token."""

    loaded_at: Instant | None = None  # type: ignore[assignment]  # as above
    expires_at: Instant | None = None  # type: ignore[assignment]  # as above
    limited_until: Instant | None = None  # type: ignore[assignment]  # as above


class Reloaded(_Named, bodies.Reloaded, kw_only=True):
    """The result of reading the secret file again."""


class Health(_Named, bodies.Health, kw_only=True):
    """The state of the supervisor: token, slots, queue, disk and what hinders it."""

    last_task_at: Instant | None = None  # type: ignore[assignment]  # as above


class Answer(_Named, msgspec.Struct, frozen=True, kw_only=True):
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


class Event(_Named, msgspec.Struct, frozen=True, kw_only=True):
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
