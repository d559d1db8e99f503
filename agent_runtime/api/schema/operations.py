"""
What the OpenAPI document says of each route beyond the route's own row: bodies, errors, parameters.

A test compares the keys with the routes' table, and what a real supervisor answers with the types named here.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agent_runtime.api.schema import bodies
from agent_runtime.errors import ErrorClass
from agent_runtime.model.records import ExecutionRecord
from agent_runtime.model.state import Outcome, Phase
from agent_runtime.model.task import Task
from agent_runtime.supervisor.answers import KeptResult, Success
from agent_runtime.telemetry.events import Event

LIST_DEFAULT = 50
LIST_LIMIT = 200


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """
    One route, as it is described.

    Attributes:
        answers: Types of the JSON bodies, by status; several are alternatives.
        events: Of a stream: what stands in ``data``, by the event's name; None: any JSON object.
        text: Media types of a 200 that is neither JSON nor a stream.
        errors: Beside those of every route that needs the key.
        more: Further sentences, after the handler's own.
    """

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


EXECUTION_ERRORS = tuple(error for error in ErrorClass if error.ends_execution)
"""How an execution can fail."""

TAGS = {
    "executions": "Tasks, and what became of them.",
    "token": "The credential in the secret file.",
    "supervisor": "Drain, readiness, and one page of everything.",
}

_STREAM_MORE = (
    "A comment comes at least every 15 seconds. A reader that is slow costs nothing: it is told of what it missed."
)

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/api/task"): Operation(
        id="postTask",
        tag="executions",
        answers={200: (Success,), 202: (bodies.Accepted,)},
        errors=(
            *EXECUTION_ERRORS,
            ErrorClass.BUSY,
            ErrorClass.DRAINING,
            ErrorClass.CONFLICT,
            ErrorClass.STORAGE,
            ErrorClass.TOO_LARGE,
        ),
        parameters=("Prefer", "traceparent", "tracestate"),
        body=Task,
        more=(
            "The same `execution_id` again joins while it runs, gets the kept answer after a success, and after any "
            "failure, or cancelled, begins a new attempt that goes on in its session where anything was done in it. "
            "Another body is a 409, or after a failure begins anew. An id whose record cannot be read is a 409 "
            "`storage`: the task may have run. One session is used by one execution at a time: "
            "another that names it waits. A `resume_session_id` that the CLI does not know is a 409 with `code` "
            "`session_unknown`; a session whose history the API refuses is given up for a new one "
            "(`metadata.session_restarted`). Unknown fields are an error; where `AGENT_RUNTIME_STRICT` is false they "
            "are ignored and named in `metadata.ignored_fields`."
        ),
    ),
    ("GET", "/api/executions"): Operation(
        id="listExecutions",
        tag="executions",
        answers={200: (bodies.ExecutionPage,)},
        errors=(ErrorClass.INVALID_REQUEST, ErrorClass.STORAGE),
        parameters=("state", "outcome", "limit", "cursor"),
    ),
    ("GET", "/api/executions/running"): Operation(
        id="listRunning", tag="executions", answers={200: (bodies.RunningExecutions,)}
    ),
    ("GET", "/api/executions/{id}"): Operation(
        id="getExecution",
        tag="executions",
        answers={200: (ExecutionRecord,)},
        errors=(ErrorClass.NOT_FOUND, ErrorClass.STORAGE),
        parameters=("id",),
    ),
    ("GET", "/api/executions/{id}/status"): Operation(
        id="getExecutionStatus",
        tag="executions",
        answers={200: (bodies.ExecutionStatus,)},
        errors=(ErrorClass.NOT_FOUND, ErrorClass.STORAGE),
        parameters=("id",),
    ),
    ("GET", "/api/executions/{id}/result"): Operation(
        id="getExecutionResult",
        tag="executions",
        answers={200: (KeptResult,), 202: (bodies.Accepted,)},
        errors=(ErrorClass.NOT_FOUND, ErrorClass.STORAGE),
        parameters=("id",),
        more="Where the execution is known and its answer is not kept, `code` is `no_retained_result`.",
    ),
    ("GET", "/api/executions/{id}/stream"): Operation(
        id="streamExecution",
        tag="executions",
        events={"state": bodies.StreamState, "message": None, "gap": bodies.StreamGap, "end": bodies.StreamEnd},
        errors=(ErrorClass.NOT_FOUND, ErrorClass.STORAGE, ErrorClass.INVALID_REQUEST, ErrorClass.BUSY),
        parameters=("id", "Last-Event-ID", "last_event_id"),
        more=f"`message` is one frame of the CLI; its `id` is the number of its line, from 1. {_STREAM_MORE}",
    ),
    ("POST", "/api/executions/{id}/terminate"): Operation(
        id="terminateExecution",
        tag="executions",
        answers={200: (bodies.Termination,)},
        errors=(ErrorClass.NOT_FOUND, ErrorClass.STORAGE),
        parameters=("id",),
    ),
    ("GET", "/api/events"): Operation(
        id="streamEvents",
        tag="supervisor",
        events={"*": Event, "gap": bodies.StreamGap, "end": bodies.EventsEnd},
        errors=(ErrorClass.INVALID_REQUEST, ErrorClass.BUSY),
        parameters=("Last-Event-ID", "last_event_id"),
        more=f"The name of an event is its `type`. {_STREAM_MORE}",
    ),
    ("GET", "/api/token"): Operation(id="getToken", tag="token", answers={200: (bodies.TokenReport,)}),
    ("POST", "/api/credentials/reload-token"): Operation(
        id="reloadToken",
        tag="token",
        answers={200: (bodies.Reloaded,)},
        errors=(ErrorClass.INVALID_REQUEST, ErrorClass.TOO_LARGE, ErrorClass.NOT_WRITABLE),
        body=bodies.NewToken,
        body_required=False,
        more="A refused or blocked token is tried at once; a limit, and that the account cannot pay, are forgotten.",
    ),
    ("POST", "/api/drain"): Operation(id="startDrain", tag="supervisor", answers={200: (bodies.DrainState,)}),
    ("DELETE", "/api/drain"): Operation(id="callOffDrain", tag="supervisor", answers={200: (bodies.DrainState,)}),
    ("GET", "/livez"): Operation(id="isAlive", tag="supervisor", answers={200: (bodies.Alive,)}),
    ("GET", "/readyz"): Operation(
        id="isReady", tag="supervisor", answers={200: (bodies.Ready,), 503: (bodies.Unready,)}
    ),
    **{
        ("GET", path): Operation(
            id=name,
            tag="supervisor",
            answers={200: (bodies.Health, bodies.HealthInBrief)},
            errors=(ErrorClass.INVALID_REQUEST,),
        )
        for path, name in (("/health", "getHealth"), ("/api/health", "getApiHealth"))
    },
    ("GET", "/metrics"): Operation(
        id="getMetrics", tag="supervisor", text=("text/plain", "application/openmetrics-text")
    ),
    ("GET", "/"): Operation(id="getPage", tag="supervisor", text=("text/html",), errors=(ErrorClass.NOT_FOUND,)),
    ("GET", "/openapi.json"): Operation(id="getOpenapi", tag="supervisor", answers={200: (dict,)}),
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
