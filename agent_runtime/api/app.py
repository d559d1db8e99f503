"""The ASGI application, built from the routes, the access check and the error handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from agent_runtime.api.handlers import LABEL, ApiContext, respond
from agent_runtime.api.routes import OPEN_PATHS, ROUTES
from agent_runtime.api.schema.operations import parameter
from agent_runtime.errors import AgentRuntimeError, ErrorClass, MethodNotAllowed, NotFound
from agent_runtime.model.task_reading import unknown_names
from agent_runtime.web.problems import problem_response
from agent_runtime.web.response_buffer import SLICE_BYTES, BufferedResponse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from agent_runtime.api.schema.operations import Operation

__all__ = ["OPEN_PATHS", "ROUTES", "ApiContext", "build_app"]


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
        response = answer if isinstance(answer, Response) else respond(answer)
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
    sent = [name for name in request.query_params if not ("label.NAME" in known and name.startswith(LABEL))]
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
