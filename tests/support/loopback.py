"""A uvicorn server on loopback, in a thread of its own, that ends promptly even if requests hang."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp

STOP_TIMEOUT_SECONDS = 5.0


@contextlib.contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """
    Serve *app* on a port of 127.0.0.1 while the block lasts; yields the base URL.

    Raises:
        RuntimeError: The server did not end in time.
    """
    # With its protocol named: else asyncio does not set TCP_NODELAY, and each answer takes 40 ms longer.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)  # early callers wait in its backlog
        loop = asyncio.new_event_loop()
        ending = asyncio.Event()
        thread = threading.Thread(target=_run, args=(loop, app, listener, ending), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            loop.call_soon_threadsafe(ending.set)
            thread.join(STOP_TIMEOUT_SECONDS)
            if thread.is_alive():
                raise RuntimeError("the server did not end in time")


def _run(loop: asyncio.AbstractEventLoop, app: ASGIApp, listener: socket.socket, ending: asyncio.Event) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(_serve(app, listener, ending))


async def _serve(app: ASGIApp, listener: socket.socket, ending: asyncio.Event) -> None:
    """Serve until *ending*; uvicorn's own shutdown would first wait for answers, and poll."""
    transports: set[asyncio.Transport] = set()

    class RegisteredProtocol(H11Protocol):
        """Record each open connection."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in H11Protocol
            super().connection_made(transport)
            transports.add(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            transports.discard(self.transport)

    config = uvicorn.Config(app, http=RegisteredProtocol, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(ending.wait())
    await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
    for transport in list(transports):
        transport.abort()
    if server.server_state.tasks:
        await asyncio.wait(server.server_state.tasks, timeout=STOP_TIMEOUT_SECONDS / 2)
    task.cancel()
    stopping.cancel()
    await asyncio.wait([task, stopping])
