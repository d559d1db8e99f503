"""
A uvicorn server on loopback for stand-ins, whose answers can hang and whose connections can be cut.

It runs in a thread of its own, so that it answers whatever the caller's thread or event loop is doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator
    from pathlib import Path

    from starlette.types import ASGIApp, Scope

STOP_TIMEOUT_SECONDS = 5.0


class ServerEnds(Exception):
    """Raised inside a waiting answer when the server is asked to stop."""


@dataclass(frozen=True, slots=True, eq=False)
class _Connection:
    transport: asyncio.Transport
    closed: asyncio.Event = field(default_factory=asyncio.Event)


class LoopbackServer:
    """
    Serve one application on a port of 127.0.0.1 or on a Unix socket; the server ends promptly even if requests hang.

    The application may wait with :meth:`pause` and close its client's connection with :meth:`cut`.
    """

    def __init__(self, port: int = 0, unix_socket: Path | None = None) -> None:
        if unix_socket is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.bind(str(unix_socket))
            self.base_url = "http://api.anthropic.com"
        else:
            # With its protocol named: else asyncio does not set TCP_NODELAY, and each answer takes 40 ms longer.
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(("127.0.0.1", port))
            self.base_url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._socket.listen(128)
        self._connections: dict[tuple[str, int], _Connection] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_begun = threading.Event()
        self._ending = asyncio.Event()

    @contextlib.contextmanager
    def running(self, app: ASGIApp) -> Iterator[str]:
        """
        Serve *app* while the block lasts; yields the base URL.

        Raises:
            RuntimeError: The server did not start, or did not end in time.
        """
        config = uvicorn.Config(
            app, http=self._protocol(), log_config=None, access_log=False, lifespan="off", server_header=False
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=self._run, args=(server,), name="loopback-server", daemon=True)
        thread.start()
        self._has_begun.wait(STOP_TIMEOUT_SECONDS)
        if self._loop is None:
            raise RuntimeError("the stand-in server did not start")
        try:
            yield self.base_url
        finally:
            self._loop.call_soon_threadsafe(self._ending.set)
            thread.join(STOP_TIMEOUT_SECONDS)
            if thread.is_alive():
                raise RuntimeError("the stand-in server did not end in time")

    async def pause(self, seconds: float | None) -> None:
        """
        Wait inside an answer.

        Args:
            seconds: How long; None: until the server ends.

        Raises:
            ServerEnds: The server is asked to stop.
        """
        await self.until(asyncio.Event().wait() if seconds is None else asyncio.sleep(seconds))

    async def until(self, happened: Awaitable[object]) -> None:
        """
        Wait inside an answer until *happened* is done.

        Raises:
            ServerEnds: The server is asked to stop first.
        """
        ending = asyncio.ensure_future(self._ending.wait())
        event = asyncio.ensure_future(happened)
        try:
            await asyncio.wait([ending, event], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            event.cancel()
        if self._ending.is_set():
            raise ServerEnds

    async def cut(self, scope: Scope) -> None:
        """Close the connection of the request at once, whatever was still to be sent, and wait until it is closed."""
        connection = self._connections.get(tuple(scope["client"]))
        if connection is not None:
            connection.transport.abort()
            await connection.closed.wait()  # if the answer returned before, uvicorn would log an error

    def _run(self, server: uvicorn.Server) -> None:
        with self._socket:
            asyncio.run(self._serve(server))

    async def _serve(self, server: uvicorn.Server) -> None:
        """Serve until asked to stop; uvicorn's own shutdown would first wait for answers, and poll."""
        self._loop = asyncio.get_running_loop()
        self._has_begun.set()  # the socket listens already: early callers wait in its backlog
        serving = asyncio.create_task(server.serve(sockets=[self._socket]))
        ending = asyncio.create_task(self._ending.wait())
        await asyncio.wait([serving, ending], return_when=asyncio.FIRST_COMPLETED)
        for listener in server.servers if server.started else []:
            listener.close()
        for connection in list(self._connections.values()):
            connection.transport.abort()
        if server.server_state.tasks:
            await asyncio.wait(server.server_state.tasks, timeout=STOP_TIMEOUT_SECONDS / 2)
        ending.cancel()
        serving.cancel()
        await asyncio.wait([serving])

    def _protocol(self) -> type[H11Protocol]:
        connections, ending = self._connections, self._ending

        class RegisteredProtocol(H11Protocol):
            """Record each open connection for :meth:`LoopbackServer.cut`."""

            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in H11Protocol
                super().connection_made(transport)
                self.client = self.client or ("unix", id(self))  # a client of a Unix socket has no address
                if ending.is_set():
                    transport.abort()
                if self.client is not None:
                    connections[self.client] = _Connection(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                if self.client is not None:
                    connections.pop(self.client).closed.set()

        return RegisteredProtocol
