"""
What a supervisor answers, as objects whose fields have types.

Instants are :class:`datetime.datetime` here. A supervisor of another version costs nothing but the difference: fields
that it does not send, or sends in another form, have their empty value; fields that it sends in addition are left out;
a word that is not yet known here, of a state for example, stays a plain string.
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
"""With its time zone; a text without one is not read."""

_EMPTY: tuple[object, ...] = (None, False, 0, "", [], {})
"""The first of these that fits is the value of a field that is not sent."""


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
    """One CLI process."""

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
    """What the executions have used whose records are kept."""

    since: Instant | None = None  # type: ignore[assignment]  # as above


class Termination(_Named, bodies.Termination, kw_only=True):
    """The end of an execution; nothing of it is left."""


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
    What an execution that succeeded or was cancelled is answered with.

    Attributes:
        status: ``success`` or ``cancelled``.
        response: The CLI's final text.
        structured_output: What meets the task's ``json_schema``; None: nothing does.
        execution_log: Frames of the transcript; with *truncated_log* some in between were left out.
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
        """Whether it was cancelled."""
        return self.status == "cancelled"


class Event(_Named, msgspec.Struct, frozen=True, kw_only=True):
    """
    One thing that happened to the token or to an execution.

    Attributes:
        id: Rises; ``events(after=id)`` goes on behind it.
        type: As the fleet page lists them; ``gap`` where events are missing: *data* has the *first* and *last* number.
        data: The facts, by name.
    """

    id: int
    type: str
    time: Instant | None = None
    data: dict[str, Any] = msgspec.field(default_factory=dict)


def read(kind: type[S], content: dict[str, Any]) -> S | None:
    """Read an object as far as it can be read; None: it lacks its first field, so it is something else."""
    found: S | None = None if content.get(kind.__struct_fields__[0]) is None else _read(kind, content)
    return found


def _read(kind: Any, content: Any) -> Any:
    """Convert *content*, of which what does not fit costs only itself; UNSET: nothing of it fits."""
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
