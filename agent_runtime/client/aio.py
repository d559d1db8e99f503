"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from datetime import datetime
from inspect import isawaitable
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import httpx
import msgspec

from agent_runtime.api.schema import bodies
from agent_runtime.client import answers, exchange
from agent_runtime.client.errors import ClientError, TokenFailed, Unreachable
from agent_runtime.client.sse import SILENCE_SECONDS, StreamEvent, StreamPosition, event_of, is_event_stream
from agent_runtime.client.submit import Submission, path_of
from agent_runtime.model.task import TaskFields
from agent_runtime.secret.writer import put

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")

log = logging.getLogger(__name__)

DEADLINE_SECONDS = 3600.0
PATIENCE_SECONDS = 120.0
QUICK_TRIES = 3
TERMINATE_SECONDS = 120.0
"""How long ``terminate`` may take: its answer comes only after all processes of the execution have ended."""


class AgentClient:
    """
    Have executions run by a supervisor, and never lose one because a connection breaks.

    After a broken connection the client asks again by the execution's id. Cancelling a call leaves the execution
    running; :meth:`terminate` ends it. Any number of calls may run at once.

    Args:
        base_url: ``http://HOST:PORT`` of the supervisor.
        access_key: The supervisor's access key.
        access_key_file: A file with the access key instead, read at every request.
        access_header: ``Authorization``, or the header that the supervisor is configured to read.
        patience_seconds: How long there may be no answer, or only refusals of admission (busy, draining), before a
            call gives up. A supervisor must be able to restart within it.
        max_resumes: How often :meth:`run` posts a task again after a shutdown interrupted it; 0: never.
        on_token_failed: Called with the error when a task fails because of a refused, unpaid, limited or missing token:
            once for each token ``generation``, even if many tasks fail because of it, and before the call raises the
            error. It may be a coroutine function, which is awaited. An error that it raises is logged.
        verify: Certificates to trust, as in httpx.
        transport: An httpx transport that carries the requests, instead of the network.

    Raises:
        ValueError: *base_url* cannot be the URL of a supervisor.
    """

    def __init__(
        self,
        base_url: str,
        *,
        access_key: str | None = None,
        access_key_file: str | Path | None = None,
        access_header: str = "Authorization",
        patience_seconds: float = PATIENCE_SECONDS,
        max_resumes: int = 3,
        on_token_failed: Callable[[TokenFailed], object] | None = None,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        key = exchange.AccessKeyAuth(access_key, access_key_file, access_header)
        self._http = exchange.connections(self.base_url, key, verify, transport)
        self._patience_seconds = patience_seconds
        self._max_resumes = max_resumes
        self.on_token_failed = on_token_failed
        self._reported: dict[int | None, TokenFailed] = {}

    def __repr__(self) -> str:
        return f"<AgentClient {self.base_url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def run(
        self,
        message: str,
        *,
        execution_id: str | None = None,
        deadline_seconds: float | None = None,
        **fields: Unpack[TaskFields],
    ) -> answers.Answer:
        """
        Submit a task and return its one answer, over broken connections and restarts of the supervisor.

        An execution that a shutdown interrupted is resumed by its id.

        Args:
            execution_id: The caller's own id. A call with the id of an earlier execution joins it, gets its stored
                answer, or tries again after a failure. None: a new id is made.
            deadline_seconds: The time limit of the call; None: *timeout_seconds* plus the client's patience if the task
                has that field, else one hour.

        Raises:
            ClientError: The execution failed or was turned away; its class and ``error_class`` say how.
            Unreachable: No answer came for longer than the client's patience, or (``deadline``) the call's time is
                over; the execution goes on.
            ValueError: A field cannot be written as JSON; nothing was sent.
        """
        if deadline_seconds is None:
            timeout_seconds = fields.get("timeout_seconds")
            deadline_seconds = DEADLINE_SECONDS if timeout_seconds is None else timeout_seconds + self._patience_seconds
        return await self._submit(message, execution_id, deadline_seconds, fields, waits=True)

    async def submit(self, message: str, *, execution_id: str | None = None, **fields: Unpack[TaskFields]) -> str:
        """Get a task admitted, as :meth:`run` does, and return its id without waiting for the end."""
        return (await self._submit(message, execution_id, DEADLINE_SECONDS, fields, waits=False)).execution_id

    async def result(self, execution_id: str, *, deadline_seconds: float | None = None) -> answers.Answer:
        """
        Wait for the answer of an execution, stored ones included; starts nothing.

        Raises:
            RequestRefused: (``not_found``) The execution is not known, or its answer is not stored.
            ClientError: The execution failed, or no answer came, as in :meth:`run`.
        """
        seconds = DEADLINE_SECONDS if deadline_seconds is None else deadline_seconds
        patience = exchange.Patience(self._patience_seconds, execution_id)
        return await self._outcome(Submission(self._http, patience, execution_id, None), seconds)

    def stream(self, execution_id: str, *, after: int = 0, partial: bool = False) -> AsyncGenerator[StreamEvent, None]:
        """
        Yield an execution's events from the line after *after*: each line exactly once, over reconnects, to the end.

        The last event is ``end``. To stop earlier, close the generator: :func:`contextlib.aclosing`, or
        :func:`contextlib.closing` for the blocking client.

        Args:
            partial: Also yield events ``partial``, the model's text while it is written. Text that is written while the
                connection is broken is lost.

        Raises:
            RequestRefused: (``not_found``) The execution is not known.
            Unreachable: No answer came for longer than the client's patience.
        """
        return self._listen(
            path_of(execution_id, f"/stream{'?partial=true' * partial}"), after, lambda event: event, execution_id
        )

    def events(self, *, after: int = 0) -> AsyncGenerator[answers.Event, None]:
        """
        Yield the events of the token and of all executions, each once, over reconnects and restarts.

        The events end when the client is closed. To stop earlier, close the generator, as in :meth:`stream`.

        Args:
            after: ``id`` of the last event that is known already; 0: begin with the oldest that the supervisor holds.

        Raises:
            RequestRefused: (``access``) The supervisor does not take the access key.
            Unreachable: No answer came for longer than the client's patience.
        """
        return self._listen("/api/events", after, event_of)

    async def _listen(
        self, path: str, after: int, shape: Callable[[StreamEvent], T | None], execution_id: str | None = None
    ) -> AsyncGenerator[T, None]:
        """Yield a stream's events over reconnects to its end; without *execution_id*, until the client is closed."""
        patience, position = exchange.Patience(self._patience_seconds, execution_id), StreamPosition(after)
        while not self._http.is_closed:
            trouble: ClientError = exchange.unreachable("the stream broke", self._http.base_url)
            try:
                silence = exchange.timeout(SILENCE_SECONDS)
                async with self._http.stream("GET", path, headers=position.reconnect(), timeout=silence) as response:
                    if not is_event_stream(response):
                        await response.aread()
                        exchange.content_of(response)
                    else:
                        async for chunk in response.aiter_bytes():
                            if chunk.startswith(b": keep-alive"):  # proof that the connection has lasted a while
                                patience.reset()
                            for event in position.feed(chunk):
                                if (shaped := shape(event)) is not None:
                                    patience.reset()
                                    yield shaped
                                if event.name == "end" and execution_id is not None:
                                    return
            except (httpx.RequestError, ClientError) as error:
                trouble = exchange.no_answer(error) if isinstance(error, httpx.RequestError) else error
                if not exchange.is_passing(trouble):
                    raise trouble from None
            await patience.pause(trouble)
        if execution_id is not None:
            raise exchange.closed()

    async def write_token(self, path: str | Path, token: str) -> list[str]:
        """Write the secret file as :func:`put_token` does, but also a token whose prefix is not known."""
        return await asyncio.to_thread(put, Path(path), token.encode())

    async def terminate(self, execution_id: str) -> bodies.Termination:
        """Cancel an execution, and return when all its processes have ended; repeated calls change nothing."""
        return await self._fetch(bodies.Termination, "POST", path_of(execution_id, "/terminate"), TERMINATE_SECONDS)

    async def execution(self, execution_id: str) -> answers.Execution:
        """Return the record of an execution."""
        return await self._fetch(answers.Execution, "GET", path_of(execution_id))

    async def executions(
        self,
        *,
        state: str | None = None,
        outcome: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> answers.ExecutionPage:
        """Return a page of records, newest first; *labels*: only executions that have all of these."""
        query = {"state": state, "outcome": outcome, "limit": limit, "cursor": cursor}
        query |= {f"label.{name}": value for name, value in (labels or {}).items()}
        given = {name: value for name, value in query.items() if value is not None}
        return await self._fetch(answers.ExecutionPage, "GET", "/api/executions", params=given)

    async def status(self, execution_id: str) -> bodies.ExecutionStatus:
        """Return whether an execution runs, and how it ended."""
        return await self._fetch(bodies.ExecutionStatus, "GET", path_of(execution_id, "/status"))

    async def running(self) -> bodies.RunningExecutions:
        """Return the executions that run, wait, or ended lately."""
        return await self._fetch(bodies.RunningExecutions, "GET", "/api/executions/running")

    async def usage(self, *, by: str = "subscription", since: datetime | None = None) -> bodies.UsageReport:
        """Return cost, tokens and turns of kept executions *by* ``subscription`` or ``model``; *since* needs a zone."""
        given = {"by": by} if since is None else {"by": by, "since": since.isoformat()}
        return await self._fetch(bodies.UsageReport, "GET", "/api/usage", params=given)

    async def token(self) -> bodies.TokenReport:
        """Return the token's state; never the token."""
        return await self._fetch(bodies.TokenReport, "GET", "/api/token")

    async def reload_token(self, token: str | None = None) -> bodies.Reloaded:
        """Have the supervisor write *token* to the secret file (if given), read the file, and retry a refused token."""
        body = None if token is None else {"token": token}
        return await self._fetch(bodies.Reloaded, "POST", "/api/credentials/reload-token", json=body)

    async def drain(self) -> bodies.DrainState:
        """Stop admission of new executions, and return how many are unfinished."""
        return await self._fetch(bodies.DrainState, "POST", "/api/drain")

    async def undrain(self) -> bodies.DrainState:
        """End a drain: executions are admitted again."""
        return await self._fetch(bodies.DrainState, "DELETE", "/api/drain")

    async def health(self) -> bodies.Health:
        """Return the state of the supervisor: token, slots, queue, disk and what hinders it."""
        return await self._fetch(bodies.Health, "GET", "/health")

    async def get(self, path: str, /, **params: str | int) -> dict[str, Any]:
        """Return the JSON object that a GET request is answered with, also if this version has no type for it."""
        return await self._request("GET", path, params=params)

    async def _fetch(self, kind: type[S], method: str, path: str, *given: float, **options: Any) -> S:
        """Send a request as :meth:`_request` does, and return the answer as an object of type *kind*."""
        found = answers.read(kind, await self._request(method, path, *given, **options))
        if found is None:
            raise exchange.unreachable("its answer cannot be read", self._http.base_url)
        return found

    async def _request(
        self, method: str, path: str, reply_seconds: float = exchange.REPLY_SECONDS, **options: Any
    ) -> dict[str, Any]:
        """
        Send a request that may safely arrive twice, with a few retries, and return the JSON object of the answer.

        Raises:
            ClientError: The supervisor refuses, or no answer comes.
        """
        tries = QUICK_TRIES
        while True:
            try:
                return (await exchange.send(self._http, method, path, reply_seconds, **options))[1]
            except Unreachable as error:
                tries -= 1
                if tries == 0 or not exchange.is_passing(error):
                    raise
            await asyncio.sleep(exchange.FIRST_PAUSE_SECONDS)

    async def _submit(
        self, message: str, execution_id: str | None, total_seconds: float, fields: TaskFields, *, waits: bool
    ) -> answers.Answer:
        name = str(uuid.uuid4()) if execution_id is None else execution_id
        given = {key: value for key, value in fields.items() if value is not None}
        body = _encoded({"message": message, **given, "execution_id": name})
        patience, is_known = exchange.Patience(self._patience_seconds, name), execution_id is not None
        task = Submission(self._http, patience, name, body, waits, is_known, self._max_resumes)
        return await self._outcome(task, total_seconds)

    async def _outcome(self, task: Submission, total_seconds: float) -> answers.Answer:
        try:
            answer = await task.run(total_seconds)
        except TokenFailed as error:
            await self._report(error)
            raise
        self._reported.pop(None, None)  # a later failure because there is no token is reported again
        return answer

    async def _report(self, error: TokenFailed) -> None:
        """Call ``on_token_failed``, once for each generation; an error that it raises must not hide *error*."""
        generation = error.generation
        if generation is None and error.error_class != "no_token":  # so does a supervisor 0.1.0 for queued tasks
            generation = next(reversed(self._reported), None)
        if self.on_token_failed is None or self._reported.setdefault(generation, error) is not error:
            return
        with logged():
            result = self.on_token_failed(error)
            while isawaitable(result):
                result = await result


def _encoded(task: dict[str, Any]) -> bytes:
    """
    Encode a task as JSON; path objects become text.

    Raises:
        ValueError: A field cannot be encoded; the message names it.
    """
    fields = {}
    for name, value in task.items():
        try:
            fields[name] = msgspec.Raw(msgspec.json.encode(value, enc_hook=os.fspath))
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise ValueError(f"{name}: holds a value that JSON has no form for") from None
        if bytes(fields[name]) == b"null":  # of NaN or an infinity; null would ask for the default
            raise ValueError(f"{name}: must be a number that is finite")
    return msgspec.json.encode(fields)


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """Log an error that the callback in the block raises, and go on."""
    try:
        yield
    except Exception:
        log.exception("on_token_failed raised an error")


def put_token(path: str | Path, token: str, *, force: bool = False) -> list[str]:
    """
    Write the secret file as ``agent-runtime token put`` does: a reader never sees half of it.

    Args:
        path: The secret file, which need not exist; its directory must.
        token: A bare token, or the text of a JSON object with it.
        force: Write the token even if it does not look like one.

    Returns:
        Warnings about the token.

    Raises:
        SecretUnreadable: *token* is not a token, or its prefix is not known; nothing was written.
        NotWritable: The file cannot be written.
    """
    return put(Path(path), token.encode(), strict=True, force=force)
