"""The client for asyncio."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import httpx
import msgspec

from agent_runtime.client import exchange
from agent_runtime.client.errors import ClientError, Unreachable
from agent_runtime.client.sse import SILENCE_SECONDS, Following
from agent_runtime.client.submit import Submission, path_of
from agent_runtime.secret.writer import put

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Mapping

    from agent_runtime.client.sse import StreamEvent
    from agent_runtime.client.submit import Answer
    from agent_runtime.model.task import TaskFields

DEADLINE_SECONDS = 3600.0
PATIENCE_SECONDS = 120.0
QUICK_TRIES = 3
TERMINATE_SECONDS = 120.0
"""An answer to ``terminate`` comes when nothing of the execution is left."""


class AgentClient:
    """
    Have executions run by a supervisor, and never lose one to a connection.

    A dropped connection is no failed execution: the client asks again by the execution's id. Cancelling a call
    leaves the execution as it is; :meth:`terminate` ends it. Any number of calls may be under way at once.

    Args:
        base_url: ``http://HOST:PORT`` of the supervisor.
        access_key: The supervisor's access key; or *access_key_file*, read at every request.
        access_header: ``Authorization``, or the header that the supervisor is configured to read.
        patience_seconds: How long there may be no answer, or only refusals of admission (busy, draining), before a
            call gives up. A supervisor must be able to restart within it.
        max_resumes: How often :meth:`run` posts a task again after a shutdown interrupted it; 0: never.
        verify: Certificates to trust, as httpx takes it.
        transport: How requests are carried, instead of the network.

    Raises:
        ValueError: *base_url* is no address of a supervisor.
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
        verify: ssl.SSLContext | bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        key = exchange.AccessKey(access_key, access_key_file, access_header)
        self._http = exchange.connections(self.base_url, key, verify, transport)
        self._patience_seconds = patience_seconds
        self._max_resumes = max_resumes

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
    ) -> Answer:
        """
        Submit a task and return its one answer, over broken connections and restarts of the supervisor.

        An execution that a shutdown interrupted is resumed by its id.

        Args:
            execution_id: The caller's own id; the same one again joins, gets the stored answer, or tries again after a
                failure. None: a new one is made.
            deadline_seconds: For the call; None: *timeout_seconds* and the client's patience, else one hour.

        Raises:
            ClientError: The execution failed or was turned away; its class and ``error_class`` say how.
            Unreachable: No answer came for longer than the client's patience, or (``deadline``) the call's time is
                over; the execution goes on.
        """
        if deadline_seconds is None:
            timeout_seconds = fields.get("timeout_seconds")
            deadline_seconds = DEADLINE_SECONDS if timeout_seconds is None else timeout_seconds + self._patience_seconds
        _, answer = await self._submit(message, execution_id, deadline_seconds, fields, waits=True)
        assert answer is not None, "a task that is waited for has an answer"  # noqa: S101 - so is it built
        return answer

    async def submit(self, message: str, *, execution_id: str | None = None, **fields: Unpack[TaskFields]) -> str:
        """Get a task admitted, as :meth:`run` does, and return its id without waiting for the end."""
        return (await self._submit(message, execution_id, DEADLINE_SECONDS, fields, waits=False))[0]

    async def result(self, execution_id: str, *, deadline_seconds: float | None = None) -> Answer:
        """
        Wait for the answer of an execution, stored ones included; starts nothing.

        Raises:
            RequestRefused: (``not_found``) It is not known, or its answer is not stored.
            ClientError: It failed, or no answer came, as in :meth:`run`.
        """
        seconds = DEADLINE_SECONDS if deadline_seconds is None else deadline_seconds
        patience = exchange.Patience(self._patience_seconds, execution_id)
        answer = await Submission(self._http, patience, execution_id, None).run(seconds)
        assert answer is not None, "as above"  # noqa: S101
        return answer

    async def stream(self, execution_id: str, *, after: int = 0) -> AsyncGenerator[StreamEvent, None]:
        """
        Yield an execution's events from the line after *after*: each line exactly once, over reconnects, to the end.

        The last event is ``end``. To leave it early, close it: :func:`contextlib.aclosing`, :func:`contextlib.closing`.

        Raises:
            RequestRefused: (``not_found``) It is not known.
            Unreachable: No answer came for longer than the client's patience.
        """
        patience, following = exchange.Patience(self._patience_seconds, execution_id), Following(after)
        path, silence = path_of(execution_id, "/stream"), exchange.timeout(SILENCE_SECONDS)
        while True:
            trouble: ClientError = exchange.unreachable("the stream broke")
            try:
                async with self._http.stream("GET", path, headers=following.connect(), timeout=silence) as response:
                    if not following.is_in(response):
                        await response.aread()
                        exchange.content_of(response)
                    else:
                        async for chunk in response.aiter_bytes():
                            if chunk.startswith(b":"):  # a sign of life that comes only after a while
                                patience.reset()
                            for event in following.feed(chunk):
                                patience.reset()
                                yield event
                                if event.name == "end":
                                    return
            except (httpx.RequestError, ClientError) as error:
                trouble = exchange.no_answer(error) if isinstance(error, httpx.RequestError) else error
                if not exchange.is_passing(trouble):
                    raise trouble from None
            await patience.pause(trouble)

    async def write_token(self, path: str | Path, token: str) -> list[str]:
        """
        Write the secret file, so that a reader never sees half of it; return warnings about the token.

        Raises:
            SecretUnreadable: No supervisor would take it; nothing was written.
            NotWritable: The file cannot be written.
        """
        return await asyncio.to_thread(put, Path(path), token.encode())

    async def terminate(self, execution_id: str) -> dict[str, Any]:
        """Cancel an execution; returns when nothing of it is left. Once is as good as twice."""
        return await self._call("POST", path_of(execution_id, "/terminate"), TERMINATE_SECONDS)

    async def execution(self, execution_id: str) -> dict[str, Any]:
        """Return the record of an execution."""
        return await self._call("GET", path_of(execution_id))

    async def executions(
        self,
        *,
        state: str | None = None,
        outcome: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """Return records, newest first, and the cursor of the next page; *labels*: of executions that have them all."""
        query = {"state": state, "outcome": outcome, "limit": limit, "cursor": cursor}
        query |= {f"label.{name}": value for name, value in (labels or {}).items()}
        given = {name: value for name, value in query.items() if value is not None}
        return await self._call("GET", "/api/executions", params=given)

    async def status(self, execution_id: str) -> dict[str, Any]:
        """Return whether an execution runs, and how it ended."""
        return await self._call("GET", path_of(execution_id, "/status"))

    async def running(self) -> dict[str, Any]:
        """Return the executions that run, wait, or ended lately."""
        return await self._call("GET", "/api/executions/running")

    async def token(self) -> dict[str, Any]:
        """Return the token's state; never the token."""
        return await self._call("GET", "/api/token")

    async def reload_token(self, token: str | None = None) -> dict[str, Any]:
        """Make the supervisor read the secret file now, and try a refused token again; with *token*, write it first."""
        body = None if token is None else {"token": token}
        return await self._call("POST", "/api/credentials/reload-token", json=body)

    async def drain(self) -> dict[str, Any]:
        """Stop admission; return how many executions are unfinished."""
        return await self._call("POST", "/api/drain")

    async def undrain(self) -> dict[str, Any]:
        """Call a drain off."""
        return await self._call("DELETE", "/api/drain")

    async def health(self) -> dict[str, Any]:
        """Return one page of everything."""
        return await self._call("GET", "/health")

    async def _call(
        self, method: str, path: str, reply_seconds: float = exchange.REPLY_SECONDS, **options: Any
    ) -> dict[str, Any]:
        """
        Ask something that may be asked twice, a few times if need be, and return the JSON object it is answered with.

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
    ) -> tuple[str, Answer | None]:
        name = str(uuid.uuid4()) if execution_id is None else execution_id
        given = {key: value for key, value in fields.items() if value is not None}
        body = msgspec.json.encode({"message": message, **given, "execution_id": name})
        submission = Submission(self._http, exchange.Patience(self._patience_seconds, name), name, body, waits=waits)
        known = execution_id is not None
        return name, await submission.run(total_seconds, is_known=known, max_resumes=self._max_resumes)
