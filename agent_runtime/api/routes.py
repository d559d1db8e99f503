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

_STREAM_MORE = (
    "A comment comes at least every 15 seconds. A slow reader costs nothing: a `gap` names the events it missed."
)


async def get_openapi(api: Api, request: Request) -> Response:
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
        "executions",
        Success,
        {202: bodies.Accepted},
        errors=(*EXECUTION_ERRORS, ErrorClass.DRAINING, ErrorClass.CONFLICT, ErrorClass.STORAGE),
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
        "executions",
        bodies.ExecutionPage,
        errors=(ErrorClass.STORAGE,),
        parameters=("state", "outcome", "label.NAME", "limit", "cursor"),
    ),
    Operation(
        "GET",
        "/api/usage",
        handlers.get_usage,
        "executions",
        bodies.UsageReport,
        errors=(ErrorClass.STORAGE,),
        parameters=("since", "by"),
        more="What an attempt has used while it had a token counts for the subscription that came with it. "
        "`AGENT_RUNTIME_RETAIN_AGE` and `AGENT_RUNTIME_RETAIN_BYTES` say for how long.",
    ),
    Operation("GET", "/api/executions/running", handlers.list_running, "executions", bodies.RunningExecutions),
    Operation("GET", "/api/executions/{id}", handlers.get_execution, "executions", ExecutionRecord),
    Operation(
        "GET", "/api/executions/{id}/status", handlers.get_execution_status, "executions", bodies.ExecutionStatus
    ),
    Operation(
        "GET",
        "/api/executions/{id}/result",
        handlers.get_execution_result,
        "executions",
        KeptResult,
        {202: bodies.Accepted},
        more="Where the execution is known and its answer is not kept, `code` is `no_retained_result`.",
    ),
    Operation(
        "GET",
        "/api/executions/{id}/stream",
        handlers.stream_execution,
        "executions",
        events={
            "state": bodies.StreamState,
            "message": None,
            "partial": LiveText,
            "gap": bodies.StreamGap,
            "end": bodies.StreamEnd,
        },
        parameters=("Last-Event-ID", "last_event_id", "partial"),
        more=(
            "`message` is one frame of the CLI; its `id` is the number of its line, from 1. `partial` has no id: it is "
            f"text that the model is writing, sent to the streams that are open then, and kept nowhere. {_STREAM_MORE}"
        ),
    ),
    Operation("POST", "/api/executions/{id}/terminate", handlers.terminate_execution, "executions", bodies.Termination),
    Operation(
        "GET",
        "/api/events",
        handlers.stream_events,
        "supervisor",
        events={"*": Event, "gap": bodies.StreamGap, "end": bodies.EventsEnd},
        parameters=("Last-Event-ID", "last_event_id"),
        more=f"The name of an event is its `type`. {_STREAM_MORE}",
    ),
    Operation("GET", "/api/token", handlers.get_token, "token", bodies.TokenReport),
    Operation(
        "POST",
        "/api/credentials/reload-token",
        handlers.reload_token,
        "token",
        bodies.Reloaded,
        errors=(ErrorClass.NOT_WRITABLE,),
        body=bodies.NewToken,
        body_required=False,
        more="A refused or blocked token is tried at once; a limit, and that the account cannot pay, are forgotten.",
    ),
    Operation("POST", "/api/drain", handlers.start_drain, "supervisor", bodies.DrainState),
    Operation("DELETE", "/api/drain", handlers.call_off_drain, "supervisor", bodies.DrainState),
    Operation("GET", "/livez", handlers.is_alive, "supervisor", bodies.Alive, open=True),
    Operation(
        "GET",
        "/readyz",
        handlers.is_ready,
        "supervisor",
        bodies.Ready,
        {503: bodies.Unready},
        parameters=("ignore",),
        open=True,
    ),
    Operation("GET", "/health", handlers.get_health, "supervisor", bodies.Health | bodies.HealthInBrief, open=True),
    Operation(
        "GET", "/api/health", handlers.get_api_health, "supervisor", bodies.Health | bodies.HealthInBrief, open=True
    ),
    Operation(
        "GET", "/metrics", handlers.get_metrics, "supervisor", text=("text/plain", "application/openmetrics-text")
    ),
    Operation(
        "GET", "/", handlers.get_page, "supervisor", text=("text/html",), errors=(ErrorClass.NOT_FOUND,), open=True
    ),
    Operation("GET", "/openapi.json", get_openapi, "supervisor", dict),
)

OPEN_PATHS = frozenset(route.path for route in ROUTES if route.open)
