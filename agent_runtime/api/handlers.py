"""The handlers of the routes: each parses a request, calls the supervisor, and returns the answer."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from agent_runtime.api import streams
from agent_runtime.api.health import reasons_of, report
from agent_runtime.api.metrics import Metrics
from agent_runtime.api.page import load_page
from agent_runtime.api.request_body import BodyReader, token_in
from agent_runtime.api.schema import bodies
from agent_runtime.api.schema.operations import parameter
from agent_runtime.errors import (
    AgentRuntimeError,
    InvalidRequest,
    NotFound,
)
from agent_runtime.execution.execution import Execution
from agent_runtime.model.json_bounds import check_json_bounds
from agent_runtime.model.records import Answer, ExecutionRecord, epoch_seconds, instant, record_json, to_json
from agent_runtime.model.state import Outcome, Phase
from agent_runtime.model.task import LABEL_NAME, LABEL_VALUE_LENGTH, LABELS
from agent_runtime.model.task_reading import parse
from agent_runtime.model.trace_context import TraceContext, trace_context
from agent_runtime.model.usage import NOTHING, ModelUsage
from agent_runtime.settings import Settings
from agent_runtime.store.tasks import NewTask
from agent_runtime.store.usage import UsedBy
from agent_runtime.supervisor.answers import StoredResult
from agent_runtime.supervisor.supervisor import Supervisor
from agent_runtime.web.access import AccessKey, refuse_pages
from agent_runtime.web.access_log import EXECUTION_ID, TRACE_ID
from agent_runtime.web.preferences import Preferences, preferences
from agent_runtime.web.response_buffer import BufferedResponse, ResponseBuffer
from agent_runtime.web.uvicorn_protocol import OpenConnections

log = logging.getLogger(__name__)

LABEL = "label."
"""The beginning of query parameters that select by a label; the label's name follows."""

RECORD_BYTES = 4096
"""The usual size of a record in a list: so much is reserved for each before the list is built."""


class ApiContext(msgspec.Struct, frozen=True):
    """The dependencies of the handlers."""

    supervisor: Supervisor
    settings: Settings
    redact: Callable[[str], str]
    access: AccessKey
    connections: OpenConnections
    metrics: Metrics
    bodies: BodyReader
    buffer: ResponseBuffer
    streams: streams.OpenStreams


def respond(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON."""
    return Response(to_json(content), status, headers, "application/json")


# -- executions


async def post_task(context: ApiContext, request: Request) -> Response:
    """
    Admit a task and answer when it has ended; the execution does not depend on this request.

    A task with the `execution_id` of a running execution joins it. After a success it gets the kept answer; after a
    failure or a cancellation it begins a new attempt, which goes on in the session if that holds progress. With
    another body it is a 409, or after a failure begins in a new session. If the record of the id cannot be read, it
    is a 409 `storage`: the task may have run. One execution uses a session at a time: another one that names the
    session waits. A `resume_session_id` that the CLI does not know is a 409 with `code` `session_unknown`; a session
    whose history the API refuses is given up for a new one (`metadata.session_restarted`). Unknown fields are an
    error; where `AGENT_RUNTIME_STRICT` is false they are ignored and named in `metadata.ignored_fields`.
    """
    headers = request.headers
    trace = trace_context(headers.getlist("traceparent"), headers.getlist("tracestate"))
    new = await context.bodies.read(request, functools.partial(_new_task, context, trace))
    task, ignored = new.task, new.ignored_fields
    request.scope[TRACE_ID] = task.trace.trace_id if task.trace else None
    execution = await context.supervisor.admit(new)
    request.scope[EXECUTION_ID] = execution.execution_id
    if ignored:
        log.warning("unknown fields ignored: %s", ", ".join(ignored), extra={"execution_id": execution.execution_id})
    asked = preferences(headers.getlist("prefer"))
    if task.async_result or asked.is_at_once or not await _has_finished(execution, asked.wait_seconds):
        applied = {} if task.async_result else asked.applied
        location = {"location": f"/api/executions/{execution.execution_id}"}
        return respond(bodies.Accepted(execution_id=execution.execution_id), 202, {**location, **applied})
    if isinstance(execution, StoredResult):
        read = execution.answer_to_post
        return BufferedResponse(context.buffer, execution.most_bytes, lambda: _response(read(), asked))
    answer = execution.answer
    if answer is None:
        raise AgentRuntimeError("the execution ended without an answer; ask for its record")
    # Sent even if there is no room: a refusal now would look as if the task had not run.
    build = functools.partial(_response, answer, asked)
    return BufferedResponse(context.buffer, len(answer.body), build, in_thread=False, wait_seconds=0)


def _response(answer: Answer, asked: Preferences) -> Response:
    return Response(answer.body, answer.status_code, {**answer.headers, **asked.applied}, answer.media_type)


def _new_task(context: ApiContext, trace: TraceContext | None, body: bytes) -> NewTask:
    """Parse and prepare the task in a body: everything that takes the longer the longer the body is."""
    check_json_bounds(body)
    task, ignored = parse(body, strict=context.settings.strict, redact=context.redact)
    return context.supervisor.prepare(task.with_trace(trace), ignored)


async def _has_finished(execution: Execution | StoredResult, wait_seconds: int | None) -> bool:
    """Wait for the end of an execution, at most *wait_seconds* (None: no limit); return whether it has ended."""
    try:
        async with asyncio.timeout(wait_seconds):
            await execution.finished()
    except TimeoutError:
        return False
    return True


async def list_executions(context: ApiContext, request: Request) -> Response:
    """List records, newest first."""
    query = _query_of(request)
    labels = {name.removeprefix(LABEL): value for name, value in query.items() if name.startswith(LABEL)}
    if not all(re.search(LABEL_NAME, name) for name in labels):
        raise InvalidRequest("label.NAME: the name must be 1 to 63 of a-z, 0-9, _ . and -")
    if len(labels) > LABELS or any(len(value) > LABEL_VALUE_LENGTH for value in labels.values()):
        raise InvalidRequest(f"label.NAME: {LABELS} at most, with values of {LABEL_VALUE_LENGTH} characters at most")
    number = parameter("limit")["schema"]
    limit, most = query.get("limit", str(number["default"])), number["maximum"]
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= most):
        raise InvalidRequest(f"limit: must be a whole number from 1 to {most}")
    for name, choices in (("state", Phase), ("outcome", Outcome)):
        if name in query and query[name] not in {str(choice) for choice in choices}:
            raise InvalidRequest(f"{name}: must be one of {', '.join(choices)}")

    def page() -> Response:
        records, cursor = context.supervisor.records(
            query.get("state"), query.get("outcome"), int(limit), query.get("cursor"), labels
        )
        shown = [msgspec.Raw(record_json(record, prompts=context.settings.show_prompts)) for record in records]
        return respond({"executions": shown, "next_cursor": cursor})

    return BufferedResponse(context.buffer, int(limit) * RECORD_BYTES, page)


def _query_of(request: Request) -> dict[str, str]:
    """
    Return the parameters of the query.

    Raises:
        InvalidRequest: A parameter occurs twice, so that it is not known which one is meant.
    """
    pairs = request.query_params.multi_items()
    if len(query := dict(pairs)) < len(pairs):
        raise InvalidRequest("the query: each parameter may be given once")
    return query


async def get_usage(context: ApiContext, request: Request) -> bodies.UsageReport:
    """
    Add up what the kept executions have used of the models: cost, tokens and turns.

    What an attempt has used with a token counts for the subscription that the secret file named with that token.
    `AGENT_RUNTIME_RETAIN_AGE` and `AGENT_RUNTIME_RETAIN_BYTES` say for how long.
    """
    query = _query_of(request)
    by, since = query.get("by", UsedBy.SUBSCRIPTION), query.get("since")
    if by not in set(UsedBy):
        raise InvalidRequest(f"by: must be one of {', '.join(UsedBy)}")
    at = None if since is None else epoch_seconds(since)
    if since is not None and at is None:
        raise InvalidRequest("since: must be an RFC 3339 time with its offset, or seconds since the epoch")
    found = await asyncio.to_thread(context.supervisor.usage_since, at or 0.0, UsedBy(by))
    rows = [bodies.NamedUsage(name=name, **msgspec.structs.asdict(usage)) for name, usage in found.items()]
    total = functools.reduce(ModelUsage.plus, found.values(), NOTHING)
    return bodies.UsageReport(by=UsedBy(by), since=instant(at), total=total, usage=rows)


async def list_running(context: ApiContext, request: Request) -> bodies.RunningExecutions:
    """List the executions that run, wait, or ended lately."""
    state = context.supervisor.state
    running = [
        bodies.RunningExecution(
            execution_id=execution.execution_id,
            pid=execution.record.attempts[-1].pid if execution.record.attempts else None,
            started_at=instant(execution.record.started_at),
            metadata=execution.record.metadata,
            slot=execution.slot,
            usage=execution.usage,
            title=execution.record.title,
            labels=execution.record.labels,
        )
        for execution in state.executions.running
    ]
    return bodies.RunningExecutions(
        executions=running,
        pending_ids=state.executions.pending_ids,
        recently_completed_ids=state.recently_completed_ids,
    )


async def get_execution(context: ApiContext, request: Request) -> Response:
    """Show one record."""
    record = context.supervisor.record(request.path_params["id"])
    return respond(msgspec.Raw(record_json(record, prompts=context.settings.show_prompts)))


async def get_execution_status(context: ApiContext, request: Request) -> bodies.ExecutionStatus:
    """Show whether an execution runs and how it ended."""
    record = context.supervisor.record(request.path_params["id"])
    return bodies.ExecutionStatus(
        execution_id=record.execution_id,
        running=record.state in (Phase.RUNNING, Phase.STOPPING),
        returncode=_returncode(record),
        outcome=record.outcome,
        error_class=record.error_class,
        started_at=instant(record.started_at),
        metadata=record.metadata,
        title=record.title,
        labels=record.labels,
    )


async def get_execution_result(context: ApiContext, request: Request) -> Response:
    """
    Return the answer that the first caller got, or would have got; 202 while there is none yet.

    Where the execution is known and its answer is not kept, `code` is `no_retained_result`.
    """
    execution_id = request.path_params["id"]
    stored = context.supervisor.result(execution_id)
    if stored is None:
        return respond(bodies.Accepted(execution_id=execution_id), 202)
    return BufferedResponse(context.buffer, stored.most_bytes, lambda: respond(stored.result()))


async def start_drain(context: ApiContext, request: Request) -> bodies.DrainState:
    """Stop admission; running executions go on."""
    context.supervisor.admission.close()
    return _drain_state(context)


async def call_off_drain(context: ApiContext, request: Request) -> bodies.DrainState:
    """Resume admission."""
    context.supervisor.admission.open()
    return _drain_state(context)


def _drain_state(context: ApiContext) -> bodies.DrainState:
    state = context.supervisor.state
    return bodies.DrainState(
        draining=state.draining, unfinished=len(state.executions.running) + len(state.executions.pending_ids)
    )


async def terminate_execution(context: ApiContext, request: Request) -> bodies.Termination:
    """Cancel an execution; answers when nothing of it is left."""
    status, record = await context.supervisor.terminate(request.path_params["id"])
    return bodies.Termination(status=status, execution_id=record.execution_id, returncode=_returncode(record))


async def stream_execution(context: ApiContext, request: Request) -> Response:
    """
    Send the transcript as events.

    `message` is one frame of the CLI; its `id` is the number of its line, from 1. `partial` has no id: it is text
    that the model is writing, sent to the streams that are open then, and kept nowhere. A comment comes at least
    every 15 seconds. A slow reader costs nothing: a `gap` names the events it missed.
    """
    after, partial = streams.position_of(request), streams.wants_partial(request)
    view = context.supervisor.view(request.path_params["id"])
    events = functools.partial(streams.follow, view, after, context.streams.batches, partial=partial)
    return context.streams.response(request, events, context.access)


async def stream_events(context: ApiContext, request: Request) -> Response:
    """
    Send the events of the token and of executions.

    The name of an event is its `type`. A comment comes at least every 15 seconds. A slow reader costs nothing: a
    `gap` names the events it missed.
    """
    events = functools.partial(streams.follow_log, context.supervisor.events, streams.position_of(request))
    return context.streams.response(request, events, context.access)


# -- token and health


async def get_token(context: ApiContext, request: Request) -> bodies.TokenReport:
    """Show the token's state; never the token."""
    state = context.supervisor.state
    limit, secret, generation = state.limit, state.secret, state.secret.generation
    return bodies.TokenReport(
        state=state.token,
        source=secret.source,
        generation=generation.number if generation else None,
        fingerprint=generation.token.fingerprint if generation else None,
        kind=generation.token.kind if generation else None,
        loaded_at=instant(generation.loaded_at) if generation else None,
        expires_at=instant(generation.expires_at) if generation else None,
        subscription=generation.subscription if generation else None,
        error=secret.error,
        last_refused_generation=state.last_refused_generation,
        limited_until=instant(limit.until) if limit is not None and limit.has_known_end else None,
        limit_type=limit.type if limit is not None else None,
        limit_model=limit.model if limit is not None else None,
        held_by={str(number): count for number, count in state.executions.held_by.items()},
    )


async def reload_token(context: ApiContext, request: Request) -> bodies.Reloaded:
    """
    Re-read the secret file now; with a token in the body, write it there first, unless it is there already.

    A refused or blocked token is tried at once; a limit, and that the account cannot pay, are forgotten.
    """
    read = functools.partial(token_in, strict=context.settings.strict, redact=context.redact)
    reloaded = await context.supervisor.reload_token(await context.bodies.read(request, read))
    state = context.supervisor.state
    secret = state.secret
    number = secret.generation.number if secret.generation else None
    return bodies.Reloaded(
        status="success",
        reloaded=reloaded,
        generation=number,
        state=state.token,
        error=secret.error,
    )


async def is_alive(context: ApiContext, request: Request) -> bodies.Alive:
    """Answer as a sign that the process lives; checks nothing else."""
    return bodies.Alive()


async def is_ready(context: ApiContext, request: Request) -> Response:
    """Show whether a task sent now would be turned away for lack of a token or the CLI, or because of a drain."""
    ignored = request.query_params.getlist("ignore")
    if not set(ignored) <= {"token"}:
        raise InvalidRequest("ignore: must be token")
    unready = context.supervisor.unready(ignores_token=bool(ignored))
    if unready is None:
        return respond(bodies.Ready())
    return respond(bodies.Unready(unready.reason, unready.detail), 503)


async def get_health(context: ApiContext, request: Request) -> bodies.Health | bodies.HealthInBrief:
    """Show the state of the whole supervisor; without the access key only whether all is well."""
    allowed = context.access.allows(request)
    state = context.supervisor.state
    reasons = reasons_of(state, context.access)
    if not allowed:
        return bodies.HealthInBrief(status="degraded" if reasons else "ok")
    if not context.access.required:
        refuse_pages(request)
    return await report(state, reasons, context.connections, context.streams)


async def get_api_health(context: ApiContext, request: Request) -> bodies.Health | bodies.HealthInBrief:
    """Show the state of the whole supervisor, as `/health` does."""
    return await get_health(context, request)


async def get_metrics(context: ApiContext, request: Request) -> Response:
    """Write the metrics for Prometheus."""
    return context.metrics.response(request.headers.get("accept", ""))


async def get_page(context: ApiContext, request: Request) -> Response:
    """Show executions and token in a browser; the page itself holds no data and asks for the access key."""
    if not context.settings.page:
        raise NotFound("there is nothing at this path")
    body, headers = load_page()
    return Response(body, headers=headers, media_type="text/html")


def _returncode(record: ExecutionRecord) -> int | None:
    return record.attempts[-1].exit_code if record.attempts else None
