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

    from agent_runtime.api.handlers import ApiContext

EXECUTION_ERRORS = tuple(error for error in ErrorClass if error.ends_execution)
"""The errors with which an execution can end."""


async def get_openapi(context: ApiContext, request: Request) -> Response:
    """Describe all of this."""
    settings = context.supervisor.settings
    text = await asyncio.to_thread(_description, settings.access_header, context.access.required, settings.strict)
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
    ),
    Operation("POST", "/api/executions/{id}/terminate", handlers.terminate_execution, "executions", bodies.Termination),
    Operation(
        "GET",
        "/api/events",
        handlers.stream_events,
        "supervisor",
        events={"*": Event, "gap": bodies.StreamGap, "end": bodies.EventsEnd},
        parameters=("Last-Event-ID", "last_event_id"),
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
