"""The routes, as one table: routing and the OpenAPI document come from it."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

import msgspec
from starlette.responses import Response

from agent_runtime.api import handlers
from agent_runtime.api.schema import bodies
from agent_runtime.api.schema.operations import Operation
from agent_runtime.errors import ErrorClass
from agent_runtime.model.records import ExecutionRecord
from agent_runtime.model.task import Task
from agent_runtime.supervisor.answers import KeptResult, Success
from agent_runtime.telemetry.events import Event
from agent_runtime.telemetry.live_text import LiveText

if TYPE_CHECKING:
    from starlette.requests import Request

    from agent_runtime.api.handlers import Api

EXECUTION_ERRORS = tuple(error for error in ErrorClass if error.ends_execution)
"""How an execution can fail."""

_OF_A_RECORD = (ErrorClass.NOT_FOUND, ErrorClass.STORAGE)
_STREAM_MORE = (
    "A comment comes at least every 15 seconds. A slow reader costs nothing: a `gap` names the events it missed."
)


async def openapi(api: Api, request: Request) -> Response:
    """Describe all of this."""
    settings = api.supervisor.settings
    text = await asyncio.to_thread(_description, settings.access_header, api.access.required, settings.strict)
    return Response(text, media_type="application/json")


@functools.lru_cache(maxsize=4)
def _description(access_header: str, is_required: bool, is_strict: bool) -> bytes:
    from agent_runtime.api.schema.openapi import build

    return msgspec.json.encode(build(ROUTES, access_header=access_header, key_required=is_required, strict=is_strict))


ROUTES: tuple[Operation, ...] = (
    Operation(
        "POST",
        "/api/task",
        handlers.post_task,
        "postTask",
        "executions",
        answers={200: (Success,), 202: (bodies.Accepted,)},
        errors=(
            *EXECUTION_ERRORS,
            ErrorClass.DRAINING,
            ErrorClass.CONFLICT,
            ErrorClass.STORAGE,
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
    Operation(
        "GET",
        "/api/executions",
        handlers.list_executions,
        "listExecutions",
        "executions",
        answers={200: (bodies.ExecutionPage,)},
        errors=(ErrorClass.STORAGE,),
        parameters=("state", "outcome", "label.NAME", "limit", "cursor"),
    ),
    Operation(
        "GET",
        "/api/usage",
        handlers.get_usage,
        "getUsage",
        "executions",
        answers={200: (bodies.UsageReport,)},
        errors=(ErrorClass.STORAGE,),
        parameters=("since", "by"),
        more="What an attempt has used while it had a token counts for the subscription that came with it. "
        "`AGENT_RUNTIME_RETAIN_AGE` and `AGENT_RUNTIME_RETAIN_BYTES` say for how long.",
    ),
    Operation(
        "GET",
        "/api/executions/running",
        handlers.list_running,
        "listRunning",
        "executions",
        answers={200: (bodies.RunningExecutions,)},
    ),
    Operation(
        "GET",
        "/api/executions/{id}",
        handlers.get_execution,
        "getExecution",
        "executions",
        answers={200: (ExecutionRecord,)},
        errors=_OF_A_RECORD,
        parameters=("id",),
    ),
    Operation(
        "GET",
        "/api/executions/{id}/status",
        handlers.get_status,
        "getExecutionStatus",
        "executions",
        answers={200: (bodies.ExecutionStatus,)},
        errors=_OF_A_RECORD,
        parameters=("id",),
    ),
    Operation(
        "GET",
        "/api/executions/{id}/result",
        handlers.get_result,
        "getExecutionResult",
        "executions",
        answers={200: (KeptResult,), 202: (bodies.Accepted,)},
        errors=_OF_A_RECORD,
        parameters=("id",),
        more="Where the execution is known and its answer is not kept, `code` is `no_retained_result`.",
    ),
    Operation(
        "GET",
        "/api/executions/{id}/stream",
        handlers.stream,
        "streamExecution",
        "executions",
        events={
            "state": bodies.StreamState,
            "message": None,
            "partial": LiveText,
            "gap": bodies.StreamGap,
            "end": bodies.StreamEnd,
        },
        errors=_OF_A_RECORD,
        parameters=("id", "Last-Event-ID", "last_event_id", "partial"),
        more=(
            "`message` is one frame of the CLI; its `id` is the number of its line, from 1. `partial` has no id: it is "
            f"text that the model is writing, sent to the streams that are open then, and kept nowhere. {_STREAM_MORE}"
        ),
    ),
    Operation(
        "POST",
        "/api/executions/{id}/terminate",
        handlers.terminate,
        "terminateExecution",
        "executions",
        answers={200: (bodies.Termination,)},
        errors=_OF_A_RECORD,
        parameters=("id",),
    ),
    Operation(
        "GET",
        "/api/events",
        handlers.events,
        "streamEvents",
        "supervisor",
        events={"*": Event, "gap": bodies.StreamGap, "end": bodies.EventsEnd},
        parameters=("Last-Event-ID", "last_event_id"),
        more=f"The name of an event is its `type`. {_STREAM_MORE}",
    ),
    Operation("GET", "/api/token", handlers.get_token, "getToken", "token", answers={200: (bodies.TokenReport,)}),
    Operation(
        "POST",
        "/api/credentials/reload-token",
        handlers.reload_token,
        "reloadToken",
        "token",
        answers={200: (bodies.Reloaded,)},
        errors=(ErrorClass.NOT_WRITABLE,),
        body=bodies.NewToken,
        body_required=False,
        more="A refused or blocked token is tried at once; a limit, and that the account cannot pay, are forgotten.",
    ),
    Operation(
        "POST", "/api/drain", handlers.start_drain, "startDrain", "supervisor", answers={200: (bodies.DrainState,)}
    ),
    Operation(
        "DELETE",
        "/api/drain",
        handlers.call_off_drain,
        "callOffDrain",
        "supervisor",
        answers={200: (bodies.DrainState,)},
    ),
    Operation("GET", "/livez", handlers.livez, "isAlive", "supervisor", open=True, answers={200: (bodies.Alive,)}),
    Operation(
        "GET",
        "/readyz",
        handlers.readyz,
        "isReady",
        "supervisor",
        open=True,
        parameters=("ignore",),
        answers={200: (bodies.Ready,), 503: (bodies.Unready,)},
    ),
    Operation(
        "GET",
        "/health",
        handlers.health,
        "getHealth",
        "supervisor",
        open=True,
        answers={200: (bodies.Health, bodies.HealthInBrief)},
    ),
    Operation(
        "GET",
        "/api/health",
        handlers.health,
        "getApiHealth",
        "supervisor",
        open=True,
        answers={200: (bodies.Health, bodies.HealthInBrief)},
    ),
    Operation(
        "GET",
        "/metrics",
        handlers.metrics,
        "getMetrics",
        "supervisor",
        text=("text/plain", "application/openmetrics-text"),
    ),
    Operation(
        "GET",
        "/",
        handlers.page,
        "getPage",
        "supervisor",
        open=True,
        text=("text/html",),
        errors=(ErrorClass.NOT_FOUND,),
    ),
    Operation("GET", "/openapi.json", openapi, "getOpenapi", "supervisor", answers={200: (dict,)}),
)

OPEN_PATHS = frozenset(route.path for route in ROUTES if route.open)
