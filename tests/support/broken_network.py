"""Faults between a client and a supervisor: a proxy that cuts connections, and a server that is no supervisor."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESET = struct.pack("ii", 1, 0)
"""Value of SO_LINGER with which closing sends a reset, so that bytes under way are lost."""


@dataclass(frozen=True)
class Cut:
    """After how many bytes of the request, or of the answer, a connection is reset."""

    request_bytes: int | None = None
    reply_bytes: int | None = None


@dataclass
class Gate:
    """A TCP proxy in front of a supervisor; it cuts the first connections as planned and lets later ones pass."""

    url: str
    target: tuple[str, int]
    plan: list[Cut] = field(default_factory=list)
    connections: int = 0
    _open: list[socket.socket] = field(default_factory=list, repr=False)

    @property
    def open_connections(self) -> int:
        """How many connections of clients are still open."""
        return sum(connection.fileno() >= 0 for connection in self._open) // 2

    def cut_all(self) -> None:
        """Reset every connection that is open now."""
        for connection in self._open:
            reset(connection)
        self._open.clear()

    def handle(self, client: socket.socket) -> None:
        cut = self.plan.pop(0) if self.plan else Cut()
        self.connections += 1
        try:
            server = socket.create_connection(self.target)
        except OSError:
            reset(client)
            return
        self._open += [client, server]
        forth = threading.Thread(target=pump, args=(client, server, cut.request_bytes), daemon=True)
        forth.start()
        pump(server, client, cut.reply_bytes)
        forth.join()
        for connection in (client, server):
            connection.close()


def pump(source: socket.socket, sink: socket.socket, limit_bytes: int | None) -> None:
    """Carry bytes from *source* to *sink* until the end; after *limit_bytes* reset both connections."""
    left = limit_bytes
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            if left is not None and len(chunk) >= left:
                sink.sendall(chunk[:left])
                reset(source)
                reset(sink)
                return
            left = None if left is None else left - len(chunk)
            sink.sendall(chunk)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def reset(connection: socket.socket) -> None:
    """Close a connection with a reset, also when another thread reads from it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@dataclass
class Stranger:
    """A server that does the next of its acts on each connection, and repeats the last one."""

    url: str
    acts: list[Callable[[socket.socket], None]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)

    def handle(self, connection: socket.socket) -> None:
        self.requests.append(request_of(connection))
        act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
        with contextlib.suppress(OSError):
            act(connection)
        connection.close()

    @property
    def lines(self) -> list[str]:
        """The first line of every request."""
        return [request.split(b" HTTP", 1)[0].decode() for request in self.requests]


def request_of(connection: socket.socket) -> bytes:
    """Read one request, body included."""
    data = b""
    while b"\r\n\r\n" not in data and (chunk := connection.recv(65536)):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
    )
    while len(body) < length and (chunk := connection.recv(65536)):
        body += chunk
    return head + b"\r\n\r\n" + body


def says(data: bytes, *, then_resets: bool = False) -> Callable[[socket.socket], None]:
    """Return an act that sends bytes and closes the connection, with a reset if *then_resets*."""

    def act(connection: socket.socket) -> None:
        connection.sendall(data)
        if then_resets:
            reset(connection)

    return act


def waits_for_the_client_to_go(connection: socket.socket) -> None:
    """Act that never answers."""
    connection.recv(1)


def http(status: int, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """Return an HTTP answer; *length* is the Content-Length that it claims, right or wrong."""
    lines = [f"HTTP/1.1 {status} X", "connection: close", *headers]
    lines.append(f"content-length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextlib.contextmanager
def listening(
    handle: Callable[[socket.socket], None], family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0)
) -> Iterator[str]:
    """Call *handle* with each connection, in a thread of its own; yield the server's URL."""
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    threading.Thread(target=handle, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            host = "[::1]" if family == socket.AF_INET6 else "127.0.0.1"
            yield f"http://{host}:{listener.getsockname()[1]}" if family != socket.AF_UNIX else "http://localhost"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextlib.contextmanager
def gate(url: str, *plan: Cut) -> Iterator[Gate]:
    """Put a gate in front of the supervisor at *url*."""
    host, port = url.removeprefix("http://").split(":")
    made = Gate("", (host, int(port)), list(plan))
    with listening(made.handle) as made.url:
        yield made
        made.cut_all()


@contextlib.contextmanager
def stranger(*acts: Callable[[socket.socket], None], **where: Any) -> Iterator[Stranger]:
    """Run a server that is no supervisor and does *acts*; *where* are arguments of :func:`listening`."""
    made = Stranger("", list(acts))
    with listening(made.handle, **where) as made.url:
        yield made
