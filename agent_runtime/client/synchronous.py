"""The client for threads and scripts: as the one for asyncio, with calls that block."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import httpx

from agent_runtime.client import carriage
from agent_runtime.client.calls import PATIENCE_SECONDS, AccessKey, Calls, checked_url
from agent_runtime.client.talk import NoReply, Pause, Reply
from agent_runtime.secret_writer import put

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

    from agent_runtime.client.calls import TaskFields
    from agent_runtime.client.following import StreamEvent
    from agent_runtime.client.submission import Answer
    from agent_runtime.client.talk import Ask, Talk

T = TypeVar("T")


class SyncAgentClient:
    """
    Have executions run by a supervisor, and never lose one to a connection.

    A dropped connection is no failed execution: what is not known is asked for again by its id. A call that is broken
    off leaves the execution as it is; :meth:`terminate` ends it. Threads may share one client.

    Args:
        base_url: ``http://HOST:PORT`` of the supervisor.
        access_key: What to show to be let in; or *access_key_file*, read at every request.
        access_header: ``Authorization``, or the header the supervisor was told to read.
        patience_seconds: How long nobody may answer, or the supervisor turn a task away (busy, draining), before a
            call gives up. A supervisor must be able to restart within it.
        max_resumes: How often :meth:`run` posts a task again after a shutdown interrupted it; 0: never.
        verify: Certificates to trust, as httpx takes it.
        transport: How requests are carried, instead of the network.
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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = checked_url(base_url)
        self._access = AccessKey(access_key, access_key_file, access_header)
        self._calls = Calls(patience_seconds, max_resumes)
        self._http = httpx.Client(
            trust_env=False,
            transport=transport or httpx.HTTPTransport(**carriage.transport_options(self.base_url, verify)),
        )

    def __repr__(self) -> str:
        return f"<SyncAgentClient {self.base_url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def run(
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
            execution_id: The caller's own id; the same one again joins, gets the kept answer, or tries again after a
                failure. None: a new one is made.
            deadline_seconds: For the call; None: *timeout_seconds* and the client's patience, else one hour.

        Raises:
            ProblemError: The execution failed or was turned away; its class says how.
            Unreachable: Nobody answered for longer than the client's patience.
            DeadlineExceeded: The call's time is over; the execution goes on.
        """
        return self._drive(self._calls.run(message, execution_id, deadline_seconds, fields))

    def submit(self, message: str, *, execution_id: str | None = None, **fields: Unpack[TaskFields]) -> str:
        """Get a task admitted, as :meth:`run` does, and return its id without waiting for the end."""
        return self._drive(self._calls.submit(message, execution_id, fields))

    def result(self, execution_id: str, *, deadline_seconds: float | None = None) -> Answer:
        """
        Wait for the answer of an execution, kept ones included; starts nothing.

        Raises:
            NotFound: It is not known, or (ResultNotKept) its answer is not kept.
            ProblemError: It failed.
        """
        return self._drive(self._calls.result(execution_id, deadline_seconds))

    def stream(self, execution_id: str, *, after: int = 0) -> Iterator[StreamEvent]:
        """
        Yield an execution's events from the line after *after*: each line exactly once, over reconnects, to the end.

        The last event is ``end``. Leave it early inside :func:`contextlib.closing`.

        Raises:
            NotFound: It is not known.
            Unreachable: Nobody answered for longer than the client's patience.
        """
        following = self._calls.follow(execution_id, after)
        while True:
            request, reason = following.connect(), "the stream broke"
            try:
                with self._open(request) as response:
                    if following.accepts(response.status_code, response.headers.get("content-type", "")):
                        for chunk in response.iter_bytes():
                            yield from following.received(chunk)
                            if following.ended:
                                return
                    else:
                        body = response.read()
                        following.refused(Reply(response.status_code, body, carriage.headers_of(response)))
            except httpx.RequestError as error:
                reason = carriage.no_reply(error).reason
            if following.ended:
                return
            time.sleep(following.pause_seconds(reason))

    def write_token(self, path: str | Path, token: str) -> list[str]:
        """
        Write the secret file, so that a reader never sees half of it; return what is to be said about the token.

        Raises:
            SecretUnreadable: No supervisor would take it; nothing was written.
            NotWritable: The file cannot be written.
        """
        return put(Path(path), token.encode())

    def terminate(self, execution_id: str) -> dict[str, Any]:
        """Cancel an execution; returns when nothing of it is left. Once is as good as twice."""
        return self._drive(self._calls.terminate(execution_id))

    def execution(self, execution_id: str) -> dict[str, Any]:
        """Return the record of an execution."""
        return self._drive(self._calls.of_execution(execution_id))

    def executions(
        self, *, state: str | None = None, outcome: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> dict[str, Any]:
        """Return records, newest first, and the cursor of the next page."""
        return self._drive(self._calls.get("/api/executions", state=state, outcome=outcome, limit=limit, cursor=cursor))

    def status(self, execution_id: str) -> dict[str, Any]:
        """Tell whether an execution runs, and how it ended."""
        return self._drive(self._calls.of_execution(execution_id, "/status"))

    def running(self) -> dict[str, Any]:
        """Tell what runs, what waits, and what ended lately: the proof of life."""
        return self._drive(self._calls.get("/api/executions/running"))

    def token(self) -> dict[str, Any]:
        """Tell the token's state; never the token."""
        return self._drive(self._calls.get("/api/token"))

    def reload_token(self, token: str | None = None) -> dict[str, Any]:
        """Have the secret file read now, and a refused token tried again; with *token*, have it written first."""
        return self._drive(self._calls.reload_token(token))

    def drain(self) -> dict[str, Any]:
        """Let nobody in any more; returns how many are unfinished."""
        return self._drive(self._calls.drain("POST"))

    def undrain(self) -> dict[str, Any]:
        """Call a drain off."""
        return self._drive(self._calls.drain("DELETE"))

    def health(self) -> dict[str, Any]:
        """Return one page of everything."""
        return self._drive(self._calls.get("/health"))

    def _drive(self, talk: Talk[T]) -> T:
        """Carry a call: send what it asks, pause when it says so, until it has its result."""
        heard: Reply | NoReply | None = None
        while True:
            try:
                step = talk.send(heard)
            except StopIteration as end:
                result: T = end.value
                return result
            heard = None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
            else:
                heard = self._send(step)

    def _send(self, request: Ask) -> Reply | NoReply:
        until = time.monotonic() + request.reply_seconds + carriage.BODY_SECONDS
        body = bytearray()
        try:
            with self._open(request) as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if time.monotonic() > until:
                        return NoReply("its answer does not come to an end")
        except httpx.RequestError as error:
            return carriage.no_reply(error)
        return Reply(response.status_code, bytes(body), carriage.headers_of(response))

    def _open(self, request: Ask) -> AbstractContextManager[httpx.Response]:
        return self._http.stream(
            request.method,
            self.base_url + request.path,
            content=request.content,
            headers={**request.headers, **self._access.headers()},
            timeout=carriage.timeout(request.reply_seconds),
        )
