"""The bare server: starlette and uvicorn that answer ``/livez``, send a file, run a command, and nothing else."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

CHUNK_BYTES = 64 << 10


async def livez(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


def stream(request: Request) -> StreamingResponse:
    """Send a file unchanged, piece by piece."""
    data = Path(request.query_params["file"]).read_bytes()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]

    return StreamingResponse(pieces(), media_type="text/event-stream")


class Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)


async def run(request: Request) -> Response:
    """Run the command that is posted, and answer with the last line it prints."""
    command = (await request.body()).decode()

    def printed() -> bytes:
        with subprocess.Popen([command], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            return process.communicate(b"x")[0]

    return Response((await asyncio.to_thread(printed)).splitlines()[-1], media_type="application/json")


def main() -> None:
    # The protocol is given, as by asyncio for a host and port: without it asyncio would not set TCP_NODELAY.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    app = Starlette(routes=[Route("/livez", livez), Route("/stream", stream), Route("/run", run, methods=["POST"])])
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", server_header=False)
    asyncio.run(Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
