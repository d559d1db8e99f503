"""The end of the server: it leaves no connection open."""

from __future__ import annotations

import asyncio
import functools
import socket
from typing import TYPE_CHECKING, Any

import uvicorn

from agent_runtime.serve.service import Server
from agent_runtime.telemetry.counters import Counts
from agent_runtime.web.uvicorn_protocol import Connection, OpenConnections

if TYPE_CHECKING:
    from collections.abc import Callable


async def no_app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)


def test_a_connection_that_is_accepted_while_the_others_are_being_closed_is_closed_too() -> None:
    async def accept_late() -> None:
        places = OpenConnections(4, request_seconds=60, open_paths=frozenset())
        http: Any = functools.partial(Connection, places=places)
        config = uvicorn.Config(no_app, http=http, lifespan="off", log_config=None)
        server, listener = Server(config, Counts(0.0)), socket.create_server(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        server.leave()
        await until(lambda: not server.servers[0].is_serving())
        # What asyncio does with a connection that it had accepted when the listener was closed.
        theirs = socket.create_server(("127.0.0.1", 0))
        caller = socket.create_connection(theirs.getsockname())
        with theirs, caller:
            make = functools.partial(http, config=config, server_state=server.server_state, app_state={})
            await asyncio.get_running_loop().connect_accepted_socket(make, theirs.accept()[0])
            await serving
            assert (caller.recv(1), len(places)) == (b"", 0)

    asyncio.run(accept_late())
