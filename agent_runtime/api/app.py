"""The routes, as one table, and the ASGI application; the OpenAPI document comes from the table, too."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent_runtime.api import handlers
from agent_runtime.api.handlers import ApiContext
from agent_runtime.api.schema import bodies
from agent_runtime.api.schema.operations import Operation, parameter
from agent_runtime.errors import AgentRuntimeError, ErrorClass, MethodNotAllowed, NotFound
from agent_runtime.model.records import ExecutionRecord
from agent_runtime.model.task import Task
from agent_runtime.model.task_reading import unknown_names
from agent_runtime.supervisor.answers import KeptResult, Success
from agent_runtime.telemetry.events import Event
from agent_runtime.telemetry.live_text import LiveText
from agent_runtime.web.problems import problem_response
from agent_runtime.web.response_buffer import SLICE_BYTES, BufferedResponse

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
        {200: Success, 202: bodies.Accepted},
        errors=(*EXECUTION_ERRORS, ErrorClass.DRAINING, ErrorClass.CONFLICT, ErrorClass.STORAGE),
        parameters=("Prefer", "traceparent", "tracestate"),
        body=Task,
    ),
    Operation(
        "GET",
        "/api/executions",
        handlers.list_executions,
        "executions",
        {200: bodies.ExecutionPage},
        errors=(ErrorClass.STORAGE,),
        parameters=("state", "outcome", "label.NAME", "limit", "cursor"),
    ),
    Operation(
        "GET",
        "/api/usage",
        handlers.get_usage,
        "executions",
        errors=(ErrorClass.STORAGE,),
        parameters=("since", "by"),
    ),
    Operation("GET", "/api/executions/running", handlers.list_running, "executions"),
    Operation("GET", "/api/executions/{id}", handlers.get_execution, "executions", {200: ExecutionRecord}),
    Operation("GET", "/api/executions/{id}/status", handlers.get_execution_status, "executions"),
    Operation(
        "GET",
        "/api/executions/{id}/result",
        handlers.get_execution_result,
        "executions",
        {200: KeptResult, 202: bodies.Accepted},
    ),
    Operation(
        "GET",
        "/api/executions/{id}/stream",
        handlers.stream_execution,
        "executions",
        events={
            "state": bodies.StreamState,
            "message": dict,
            "partial": LiveText,
            "gap": bodies.StreamGap,
            "end": bodies.StreamEnd,
        },
        parameters=("Last-Event-ID", "last_event_id", "partial"),
    ),
    Operation("POST", "/api/executions/{id}/terminate", handlers.terminate_execution, "executions"),
    Operation(
        "GET",
        "/api/events",
        handlers.stream_events,
        "supervisor",
        events={"*": Event, "gap": bodies.StreamGap, "end": bodies.EventsEnd},
        parameters=("Last-Event-ID", "last_event_id"),
    ),
    Operation("GET", "/api/token", handlers.get_token, "token"),
    Operation(
        "POST",
        "/api/credentials/reload-token",
        handlers.reload_token,
        "token",
        errors=(ErrorClass.NOT_WRITABLE,),
        body=bodies.NewToken | None,
    ),
    Operation("POST", "/api/drain", handlers.start_drain, "supervisor"),
    Operation("DELETE", "/api/drain", handlers.call_off_drain, "supervisor"),
    Operation("GET", "/livez", handlers.is_alive, "supervisor", open=True),
    Operation(
        "GET",
        "/readyz",
        handlers.is_ready,
        "supervisor",
        {200: bodies.Ready, 503: bodies.Unready},
        parameters=("ignore",),
        open=True,
    ),
    Operation("GET", "/health", handlers.get_health, "supervisor", open=True),
    Operation("GET", "/api/health", handlers.get_api_health, "supervisor", open=True),
    Operation(
        "GET", "/metrics", handlers.get_metrics, "supervisor", text=("text/plain", "application/openmetrics-text")
    ),
    Operation(
        "GET", "/", handlers.get_page, "supervisor", text=("text/html",), errors=(ErrorClass.NOT_FOUND,), open=True
    ),
    Operation("GET", "/openapi.json", get_openapi, "supervisor", {200: dict}),
)

OPEN_PATHS = frozenset(route.path for route in ROUTES if route.open)


def build_app(context: ApiContext) -> Starlette:
    """Build the ASGI application from the routes, the access check and the error handlers."""
    by_path: dict[str, dict[str, Operation]] = {}
    for route in ROUTES:
        by_path.setdefault(route.path, {})[route.method] = route
    routes = [
        Route(path, _endpoint(context, by_method), methods=list(by_method)) for path, by_method in by_path.items()
    ]
    detail_is_object = context.settings.error_detail == "object"

    async def refuse(_request: Request, error: Exception) -> Response:
        headers = error.headers if isinstance(error, HTTPException) else None
        return problem_response(_refusal(error), headers=headers, detail_is_object=detail_is_object)

    app = Starlette(
        routes=routes,
        exception_handlers={HTTPException: refuse, AgentRuntimeError: refuse, Exception: refuse},
    )
    # A path with an additional slash is unknown: a redirect would be built from the caller's Host header.
    app.router.redirect_slashes = False
    return app


def _endpoint(context: ApiContext, by_method: dict[str, Operation]) -> Callable[[Request], Awaitable[Response]]:
    """Build the endpoint for all methods of one path."""

    async def endpoint(request: Request) -> Response:
        route = by_method["GET" if request.method == "HEAD" else request.method]
        if not route.open:
            context.access.require(request)
            if route.path.startswith("/api/"):
                _check_query(context, route, request)
        answer = await route.handler(context, request)
        response = answer if isinstance(answer, Response) else handlers.respond(answer)
        if type(response) is Response and len(response.body) > SLICE_BYTES:
            return BufferedResponse(context.buffer, len(response.body), lambda: response, in_thread=False)
        return response

    return endpoint


def _check_query(context: ApiContext, route: Operation, request: Request) -> None:
    """
    Check that the route has each parameter of the query.

    Raises:
        InvalidRequest: One is unknown, and the setting ``strict`` is on. Otherwise unknown ones are ignored.
    """
    if not request.query_params:
        return
    known = [name for name in route.parameters if parameter(name)["in"] == "query"]
    sent = [name for name in request.query_params if not ("label.NAME" in known and name.startswith(handlers.LABEL))]
    unknown_names(
        sent,
        known,
        strict=context.settings.strict,
        redact=context.redact,
        what="parameters of the query",
    )


def _refusal(error: Exception) -> AgentRuntimeError:
    """Return the error that the caller gets for *error*, which may be starlette's for an unknown path or method."""
    if isinstance(error, AgentRuntimeError):
        return error
    if not isinstance(error, HTTPException):
        return AgentRuntimeError("the supervisor failed; its log says more")
    if error.status_code == ErrorClass.METHOD.status:
        return MethodNotAllowed("this path does not take this method; the header Allow names those it takes")
    return NotFound("there is nothing at this path; /openapi.json lists all paths")
