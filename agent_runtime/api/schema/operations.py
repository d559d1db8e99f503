"""A row of the routes' table, from which routing and the OpenAPI document come, and the parameters that rows name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from agent_runtime.model.records import EPOCH_SECONDS_PATTERN
from agent_runtime.model.state import Outcome, Phase
from agent_runtime.model.task import LABEL_VALUE_LENGTH, LABELS
from agent_runtime.store.records import CURSOR_PATTERN
from agent_runtime.store.usage import UsedBy

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
        errors: Beside those of every route, and of every one that needs the key.
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

_TEXT: dict[str, Any] = {"type": "string"}
_LINE: dict[str, Any] = {"type": "string", "pattern": "^[0-9]{0,18}$"}
_CURSOR: dict[str, Any] = {"type": "string", "pattern": f"^{CURSOR_PATTERN}$"}


def _parameter(name: str, place: str, description: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "in": place, "description": description, "schema": schema, **more}


_PREFER = (
    "RFC 7240. `respond-async`: answer 202 at once, as with `async_result`; `wait=N`: answer 202 after N seconds where "
    "there is no answer yet."
)
_TRACEPARENT = "W3C Trace Context, given to every attempt; it wins over the field of the body."
_LAST_EVENT = "The `id` of the last event the reader has: the stream goes on exactly after it."
_PARTIAL: dict[str, Any] = {"type": "string", "enum": ["true", "false"], "default": "false"}
_LABELS: dict[str, Any] = {
    "type": "object",
    "propertyNames": {"pattern": r"^label\.[a-z0-9_.-]{1,63}$"},
    "additionalProperties": {"type": "string", "maxLength": LABEL_VALUE_LENGTH},
    "maxProperties": LABELS,
}
_TIME: dict[str, Any] = {**_TEXT, "anyOf": [{"format": "date-time"}, {"pattern": f"^{EPOCH_SECONDS_PATTERN}$"}]}
_BY = {**_TEXT, "enum": list(map(str, UsedBy)), "default": str(UsedBy.SUBSCRIPTION)}
_SINCE = "RFC 3339, or seconds since the epoch: attempts that ended before it do not count. Without it all count."
_LIMIT: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": LIST_LIMIT, "default": LIST_DEFAULT}
_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

PARAMETERS: dict[str, dict[str, Any]] = {
    parameter["name"]: parameter
    for parameter in (
        _parameter("id", "path", "The execution's id.", {**_TEXT, "minLength": 1}, required=True, example="fix-1"),
        _parameter("Prefer", "header", _PREFER, _TEXT, example="wait=240"),
        _parameter("traceparent", "header", _TRACEPARENT, _TEXT, example=_TRACE),
        _parameter("tracestate", "header", "Likewise.", _TEXT),
        _parameter("Last-Event-ID", "header", _LAST_EVENT, _LINE, example="17"),
        _parameter("last_event_id", "query", "The same in the query; the header wins.", _LINE, example="17"),
        _parameter(
            "partial", "query", "`true`: also `partial` events, the model's text while it is written.", _PARTIAL
        ),
        _parameter("state", "query", "Only executions in this state.", {**_TEXT, "enum": list(map(str, Phase))}),
        _parameter(
            "outcome", "query", "Only executions with this outcome.", {**_TEXT, "enum": list(map(str, Outcome))}
        ),
        _parameter(
            *(
                "label.NAME",
                "query",
                "`label.NAME=VALUE`: only executions with this label; of several with all of them.",
            ),
            _LABELS,
            example={"label.team": "search"},
        ),
        _parameter("limit", "query", "How many records the page holds at most.", _LIMIT),
        _parameter(
            "ignore",
            "query",
            "`token`: ready whatever the state of the token, for rollouts.",
            {**_TEXT, "enum": ["token"]},
        ),
        _parameter("since", "query", _SINCE, _TIME, example="2026-11-30T00:00:00Z"),
        _parameter(
            "by", "query", "What to add up by.", {**_TEXT, "enum": list(map(str, UsedBy)), "default": "subscription"}
        ),
        _parameter("cursor", "query", "`next_cursor` of the page before.", _CURSOR),
    )
}
"""By name, as :attr:`Operation.parameters` lists them."""
