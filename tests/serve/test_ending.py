"""The end of the server: it leaves no connection open."""

from __future__ import annotations

import asyncio
import functools
import gc
import socket
from typing import Any

import pytest
import uvicorn

from agent_runtime.serve.service import Server
from agent_runtime.telemetry.counters import Counts
from agent_runtime.web.uvicorn_protocol import Connection, OpenConnections


async def no_app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError


def closed(caller: socket.socket) -> bool:
    caller.settimeout(0)
    try:
        return caller.recv(1) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


async def started() -> tuple[Server, socket.socket, OpenConnections]:
    places = OpenConnections(4, request_seconds=60, open_paths=frozenset())
    http: Any = functools.partial(Connection, places=places)
    config = uvicorn.Config(no_app, http=http, lifespan="off", log_config=None)
    server, listener = Server(config, Counts(0.0)), socket.create_server(("127.0.0.1", 0))
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    return server, listener, places


@pytest.mark.parametrize("seconds", [0, 1e-9], ids=["before its accept", "between its accept and its protocol"])
def test_a_connection_that_comes_when_the_server_ends_is_closed(seconds: float) -> None:
    async def connect_late() -> None:
        server, listener, places = await started()
        with socket.create_connection(listener.getsockname()) as caller:
            await asyncio.sleep(seconds)  # one turn of the loop, in which a timer comes after what is to be accepted
            async with asyncio.timeout(20):
                await server.shutdown([listener])
            gc.collect()  # what was lost warns
            assert (closed(caller), len(places)) == (True, 0)

    asyncio.run(connect_late())
