"""The client for threads and scripts: it runs the asyncio client in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import CancelledError
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from agent_runtime.client.aio import AgentClient, logged
from agent_runtime.client.answers import Event
from agent_runtime.client.errors import RequestRefused
from agent_runtime.client.exchange import closed
from agent_runtime.client.sse import StreamEvent

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(
    call: Callable[Concatenate[AgentClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncAgentClient, P], T]:
    """Return a blocking method for a coroutine method of the asyncio client."""

    @wraps(call)
    def blocked(client: SyncAgentClient, /, *given: P.args, **named: P.kwargs) -> T:
        return client._wait(call, client._client, *given, **named)  # noqa: SLF001 - a method of it

    return blocked


def _with_arguments_of(
    make: Callable[P, AgentClient],
) -> Callable[[Callable[[SyncAgentClient, AgentClient], None]], Callable[Concatenate[SyncAgentClient, P], None]]:
    """Give a constructor the arguments of the asyncio client, and pass that client to it."""

    def decorated(
        init: Callable[[SyncAgentClient, AgentClient], None],
    ) -> Callable[Concatenate[SyncAgentClient, P], None]:
        @wraps(AgentClient.__init__)
        def construct(self: SyncAgentClient, /, *given: P.args, **named: P.kwargs) -> None:
            init(self, make(*given, **named))

        return construct

    return decorated


class SyncAgentClient:
    """
    Have executions run by a supervisor: :class:`AgentClient` with the same arguments and blocking calls.

    Threads may share one client, also while an event loop runs. Ctrl-C ends the wait, not the execution. A process that
    forks must create its clients after the fork.
    """

    @_with_arguments_of(AgentClient)
    def __init__(self, client: AgentClient) -> None:
        self._client = client
        if (call_back := client.on_token_failed) is not None:
            # Not in the loop's thread, because it may use this client. No future can carry its StopIteration.
            client.on_token_failed = partial(asyncio.to_thread, logged()(call_back))  # type: ignore[call-arg]
        self.base_url = client.base_url
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()  # so that no call is passed to a loop that has ended
        self._thread = threading.Thread(target=_serve, args=(self._loop, client), name="agent-client", daemon=True)
        self._thread.start()
        self._stop = weakref.finalize(self, _stop, self._loop, self._lock)

    def __repr__(self) -> str:
        return f"<SyncAgentClient {self.base_url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; calls in other threads end with an error."""
        self._stop()
        self._thread.join()

    run = _blocking(AgentClient.run)
    submit = _blocking(AgentClient.submit)
    result = _blocking(AgentClient.result)
    write_token = _blocking(AgentClient.write_token)
    terminate = _blocking(AgentClient.terminate)
    execution = _blocking(AgentClient.execution)
    executions = _blocking(AgentClient.executions)
    status = _blocking(AgentClient.status)
    running = _blocking(AgentClient.running)
    usage = _blocking(AgentClient.usage)
    token = _blocking(AgentClient.token)
    reload_token = _blocking(AgentClient.reload_token)
    drain = _blocking(AgentClient.drain)
    undrain = _blocking(AgentClient.undrain)
    health = _blocking(AgentClient.health)
    get = _blocking(AgentClient.get)

    def stream(self, execution_id: str, *, after: int = 0, partial: bool = False) -> Generator[StreamEvent, None, None]:
        """Yield the events of an execution, as :meth:`AgentClient.stream` does."""
        return self._each(self._client.stream(execution_id, after=after, partial=partial))

    def events(self, *, after: int = 0) -> Generator[Event, None, None]:
        """Yield the events of the token and of all executions, as :meth:`AgentClient.events` does."""
        try:
            yield from self._each(self._client.events(after=after))
        except RequestRefused as error:
            if error.error_class != "closed":
                raise

    def _each(self, events: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        while (event := self._wait(_next, events)) is not None:  # the loop closes *events* if the caller stops early
            yield event

    def _wait(self, call: Callable[P, Coroutine[Any, Any, T]], *given: P.args, **named: P.kwargs) -> T:
        """Run a call in the client's thread, and wait for its result."""
        with self._lock:
            if not (self._stop.alive and self._thread.is_alive()):
                raise closed()
            future = asyncio.run_coroutine_threadsafe(call(*given, **named), self._loop)
        try:
            return future.result()
        except CancelledError:
            raise closed() from None
        finally:
            future.cancel()  # after Ctrl-C


def _serve(loop: asyncio.AbstractEventLoop, client: AgentClient) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.get_loop().run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        runner.run(client.aclose())


def _stop(loop: asyncio.AbstractEventLoop, lock: threading.Lock) -> None:
    with lock:
        loop.call_soon_threadsafe(loop.stop)


async def _next(events: AsyncGenerator[T, None]) -> T | None:
    return await anext(events, None)
