"""The access log: one line for each request, when it has been answered."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_runtime.telemetry.counters import Counts
from agent_runtime.telemetry.logs import log_fields

log = logging.getLogger(__name__)

PROBES = frozenset({"/livez", "/readyz", "/metrics"})
"""Probes, which come often: logged at level debug only."""

UNKNOWN = "unknown"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
EXECUTION_ID = "agent_runtime.execution_id"
TRACE_ID = "agent_runtime.trace_id"
"""Keys of the ASGI scope in which a handler stores the execution id and trace id of a request."""


class AccessLog:
    """
    Log and count requests: method, path of the route, status and duration.

    Text that the caller chose freely is not logged: neither the path as sent, nor query, headers or body. An
    execution's id is logged where the request is about one.

    Args:
        counts: Counts each request, also where *is_logged* is false.
    """

    def __init__(self, app: ASGIApp, counts: Counts, *, is_logged: bool) -> None:
        self._app = app
        self._counts = counts
        self._is_logged = is_logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, then log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status: int | None = None

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        begun = time.perf_counter()
        try:
            await self._app(scope, receive, sending)
        finally:
            self._answered(scope, status, time.perf_counter() - begun)

    def _answered(self, scope: Scope, status: int | None, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else UNKNOWN
        path = getattr(scope.get("route"), "path", UNKNOWN)
        self._counts.count("http_requests", method, path, None if status is None else str(status))
        if not self._is_logged:
            return
        level = logging.DEBUG if path in PROBES else logging.INFO
        extra = {"method": method, "path": path, "status": status, "seconds": round(seconds, 6)}
        with log_fields(execution_id=_execution_id(scope, status), trace_id=scope.get(TRACE_ID)):
            log.log(level, "request answered", extra=extra)


def _execution_id(scope: Scope, status: int | None) -> str | None:
    """Return the id of the execution a request was about; None: there is none, or the id is unknown."""
    known: str | None = scope.get(EXECUTION_ID)
    if known is None and status is not None and status < 400:
        known = scope.get("path_params", {}).get("id")
    return known
