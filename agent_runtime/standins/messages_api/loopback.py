"""
An HTTP server on loopback whose answers can hang or break off anywhere.

It runs in a thread of its own, so that it answers whatever the caller's thread or event loop is doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import h11

STOP_TIMEOUT_SECONDS = 5.0
READ_BYTES = 64 * 1024
_WITHOUT_BODY = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Request:
    """
    A request, read to its end.

    Attributes:
        path: Without the query; of a whole URL, as clients of a proxy send it, its path.
        headers: Values by lower-case name; of repeated headers the last one.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """A client's connection: read a request, send the whole of its answer or a part, read the next one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER)
        self._sends_body = True

    async def read_request(self) -> Request | None:
        """
        Read the next request; None: no other one can come.

        Raises:
            h11.RemoteProtocolError: The client sends something else, or leaves in the middle of the request.
        """
        if self._http.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
            self._http.start_next_cycle()
        if self._http.our_state is not h11.IDLE:
            return None
        head, body = await self._next_event(), b""
        if not isinstance(head, h11.Request):
            return None
        while isinstance(event := await self._next_event(), h11.Data):
            body += event.data
        self._sends_body = head.method != b"HEAD"
        target = head.target.decode("latin-1")
        if "://" in target:  # with a proxy set, 2.1.197 sends the whole URL even to a socket
            target = "/" + target.split("/", 3)[-1]
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in head.headers}
        return Request(head.method.decode("latin-1"), target.partition("?")[0], headers, body)

    async def begin_answer(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the head of an answer; without a length its body is sent in chunks."""
        self._sends_body &= status not in _WITHOUT_BODY
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send(h11.Response(status_code=status, headers=pairs))

    async def send(self, data: bytes) -> None:
        """Send a piece of the answer's body, unless the answer has none."""
        if self._sends_body:
            await self._send(h11.Data(data))

    async def end_answer(self) -> None:
        """Send the end of the answer."""
        await self._send(h11.EndOfMessage())

    async def wait_until_client_closes(self) -> None:
        """Wait until the client closes the connection."""
        with contextlib.suppress(OSError):
            while await self._reader.read(READ_BYTES):
                pass

    def close(self) -> None:
        """Close the connection at once, in the middle of an answer or not."""
        self._writer.transport.abort()

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(await self._reader.read(READ_BYTES))
        return event

    async def _send(self, event: h11.Event) -> None:
        self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()


Handler: TypeAlias = Callable[[Connection], Awaitable[None]]


@contextlib.contextmanager
def serving(handler: Handler, port: int = 0, unix_socket: Path | None = None) -> Iterator[str]:
    """
    Call *handler* with each connection to a port of 127.0.0.1, or to a Unix socket, while the block lasts.

    A connection is closed when its handler returns; at the end the handlers are cancelled. Yields the base URL.

    Raises:
        OSError: The port or the socket cannot be opened.
        RuntimeError: The server did not end in time.
    """

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        try:
            await handler(connection)
        except (OSError, h11.RemoteProtocolError):
            pass  # the client has left
        finally:
            connection.close()

    tasks: set[asyncio.Task[None]] = set()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # No coroutine: of that asyncio reports the cancellation as an error (Python 3.11, asyncio/streams.py).
        task = asyncio.ensure_future(connected(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    ending = asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(accepted, sock=listener)
        await ending.wait()
        server.close()

    with (
        socket.create_server(("127.0.0.1", port)) if unix_socket is None else socket.socket(socket.AF_UNIX) as listener
    ):
        base_url = "http://api.anthropic.com"
        if unix_socket is None:
            base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            # asyncio sets it for sockets of protocol TCP alone; without it each streamed answer is 40 ms late.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            listener.bind(str(unix_socket))
            listener.listen()
        loop = asyncio.new_event_loop()

        def run() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(serve())

        thread = threading.Thread(target=run, name="loopback-server", daemon=True)
        thread.start()
        try:
            yield base_url
        finally:
            loop.call_soon_threadsafe(ending.set)
            thread.join(STOP_TIMEOUT_SECONDS)
            if thread.is_alive():
                raise RuntimeError("the stand-in server did not end in time")
