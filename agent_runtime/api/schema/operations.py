"""A row of the routes' table, from which routing and the OpenAPI document come, and the parameters that rows name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from agent_runtime.model.state import Outcome, Phase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent_runtime.errors import ErrorClass

LIST_DEFAULT = 50
LIST_LIMIT = 200


class Operation(msgspec.Struct, frozen=True):
    """
    One route.

    Attributes:
        handler: Its docstring becomes the summary and the description.
        id: ``operationId``.
        open: It needs no access key.
        answers: Types of the JSON bodies, by status; several are alternatives.
        events: Of a stream: type of ``data`` by the event's name; None: any JSON object.
        text: Media types of a 200 that is neither JSON nor a stream.
        errors: Beside those of every route that needs the key.
        more: Further sentences, after the handler's own.
    """

    method: str
    path: str
    handler: Callable[..., Awaitable[Any]]
    id: str
    tag: str
    answers: dict[int, tuple[type, ...]] = msgspec.field(default_factory=dict)
    events: dict[str, type | None] = msgspec.field(default_factory=dict)
    text: tuple[str, ...] = ()
    errors: tuple[ErrorClass, ...] = ()
    parameters: tuple[str, ...] = ()
    body: type | None = None
    body_required: bool = True
    more: str = ""
    open: bool = False


TAGS = {
    "executions": "Tasks, and what became of them.",
    "token": "The credential in the secret file.",
    "supervisor": "Drain, readiness, and one page of everything.",
}

PARAMETERS: dict[str, dict[str, Any]] = {
    "id": {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "The execution's id.",
        "schema": {"type": "string", "minLength": 1},
        "example": "fix-1",
    },
    "Prefer": {
        "name": "Prefer",
        "in": "header",
        "description": (
            "RFC 7240. `respond-async`: answer 202 at once, as with `async_result`; `wait=N`: answer 202 after N "
            "seconds where there is no answer yet."
        ),
        "schema": {"type": "string"},
        "example": "wait=240",
    },
    "traceparent": {
        "name": "traceparent",
        "in": "header",
        "description": "W3C Trace Context, given to every attempt; it wins over the field of the body.",
        "schema": {"type": "string"},
        "example": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    },
    "tracestate": {
        "name": "tracestate",
        "in": "header",
        "description": "Likewise.",
        "schema": {"type": "string"},
    },
    "Last-Event-ID": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "The `id` of the last event the reader has: the stream goes on exactly after it.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
        "example": "17",
    },
    "last_event_id": {
        "name": "last_event_id",
        "in": "query",
        "description": "The same, for those who cannot send the header; the header wins.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
        "example": "17",
    },
    "state": {
        "name": "state",
        "in": "query",
        "description": "Only those that are in this state.",
        "schema": {"type": "string", "enum": [str(phase) for phase in Phase]},
    },
    "outcome": {
        "name": "outcome",
        "in": "query",
        "description": "Only those that ended so.",
        "schema": {"type": "string", "enum": [str(outcome) for outcome in Outcome]},
    },
    "limit": {
        "name": "limit",
        "in": "query",
        "description": "How many records the page holds at most.",
        "schema": {"type": "integer", "minimum": 1, "maximum": LIST_LIMIT, "default": LIST_DEFAULT},
    },
    "cursor": {
        "name": "cursor",
        "in": "query",
        "description": "`next_cursor` of the page before.",
        "schema": {"type": "string"},
    },
}
"""The keys are those in :attr:`Operation.parameters`."""
