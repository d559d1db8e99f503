"""A relay between an API and a child that use raw sockets, so that each of them can send any bytes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent_runtime.model.tokens import OAUTH_VARIABLE, Token
from agent_runtime.relay.relay import Relay
from agent_runtime.secret.file import SecretState, SecretStatus
from agent_runtime.secret.generations import Generation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent_runtime.delivery.delivery import Delivered

OLD = "sk-ant-oat01-the-old-token-of-the-relay-tests-0001"
NEW = "sk-ant-oat01-the-new-token-of-the-relay-tests-0002"
API_KEY = "sk-ant-api03-the-api-key-of-the-relay-tests-0003"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BETA = "anthropic-beta: oauth-2025-04-20\r\n"
DEADLINE_SECONDS = 10.0


def refusal(message: str = "OAuth token has expired.", status: int = 401) -> bytes:
    kind = "authentication_error" if status == 401 else "permission_error"
    body = b'{"type":"error","error":{"type":"%s","message":"%s"}}' % (kind.encode(), message.encode())
    return (
        b"HTTP/1.1 %d No\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body
    )


class Secret:
    """A secret file in memory, with the part of its interface that the relay uses."""

    def __init__(self, token: str = OLD) -> None:
        self.unread: str | None = None
        self.number = 0
        self.write(token)

    def write(self, token: str) -> Generation:
        self.number += 1
        generation = Generation(self.number, Token(token), time.time())
        self.status = SecretStatus(SecretState.READY, generation, None)
        return generation

    def poll(self) -> SecretStatus:
        if self.unread is not None:
            token, self.unread = self.unread, None
            self.write(token)
        return self.status

    @property
    def generation(self) -> Generation:
        assert self.status.generation is not None
        return self.status.generation


class Talk:
    """A connection to the raw API, as the API sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._buffer = b""

    def request(self) -> bytes | None:
        """Read one request that has a Content-Length; None: the connection has ended."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                return None
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
        )
        while len(rest) < length:
            if not self._more():
                return None
            rest = self._buffer.partition(b"\r\n\r\n")[2]
        self._buffer = rest[length:]
        return head + b"\r\n\r\n" + rest[:length]

    def _more(self) -> bool:
        data = self.connection.recv(65536)
        self._buffer += data
        return bool(data)

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def close_after(self, data: bytes) -> bool:
        """Send *data* and close the connection."""
        self.send(data)
        return False

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()


@dataclass
class RawApi:
    """An API that calls *answer* with each request and its connection, and stores the requests."""

    answer: Callable[[Talk, bytes], object]
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections += 1
                threading.Thread(target=self._talk, args=(Talk(connection),), daemon=True).start()

    def _talk(self, talk: Talk) -> None:
        with contextlib.suppress(OSError), talk.connection:
            while (request := talk.request()) is not None:
                self.requests.append(request)
                if self.answer(talk, request) is False:
                    return


def tokens_in(request: bytes) -> list[str]:
    """Return the credentials in a request."""
    found = []
    for line in request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.lower() in {"authorization", "x-api-key", "cookie", "proxy-authorization"}:
            found.append(value.strip().removeprefix("Bearer "))
    return found


@dataclass
class Relayed:
    """A relay with one child."""

    relay: Relay
    secret: Secret
    delivered: Delivered
    notes: Counter[str]

    @property
    def placeholder(self) -> str:
        return next(value for value in self.delivered.variables.values() if value.startswith("relay-"))

    @property
    def place(self) -> tuple[int, str]:
        _, _, rest = self.delivered.variables["ANTHROPIC_BASE_URL"].partition("127.0.0.1:")
        port, _, prefix = rest.partition("/")
        return int(port), f"/{prefix}"

    def connect(self) -> socket.socket:
        child = socket.create_connection(("127.0.0.1", self.place[0]), timeout=DEADLINE_SECONDS)
        child.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return child

    def head(
        self, method: str = "POST", path: str = "/v1/messages", more: str = BETA, token: str | None = None
    ) -> bytes:
        shown = self.placeholder if token is None else token
        return (
            f"{method} {self.place[1]}{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {shown}\r\n{more}"
        ).encode()

    def message(self, body: bytes = b"{}", more: str = BETA) -> bytes:
        return self.head(more=more) + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def ask(self, request: bytes | None = None) -> bytes:
        """Send a request, and read until the answer is complete or the connection ends."""
        with self.connect() as child:
            child.sendall(self.message() if request is None else request)
            return read_answer(child)


def read_answer(child: socket.socket) -> bytes:
    """Read one answer, with a length, in chunks or up to the end; after a reset, ``RESET`` is appended to it."""
    data = bytearray()
    with contextlib.suppress(TimeoutError):
        while not _is_whole(data):
            try:
                piece = child.recv(65536)
            except ConnectionResetError:
                return bytes(data + b"RESET")
            if not piece:
                return bytes(data + b"END")
            data += piece
    return bytes(data)


def _is_whole(data: bytearray) -> bool:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    lowered = data[:end].lower()
    if b"transfer-encoding: chunked" in lowered:
        return len(data) > end + 4 and data.endswith(b"0\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in lowered.split(b"\r\n") if line.startswith(b"content-length")), 0
    )
    return len(data) - end - 4 >= length


@contextlib.contextmanager
def relayed(
    directory: Path,
    api_url: str,
    *,
    secret: Secret | None = None,
    environ: dict[str, str] | None = None,
    **words: float,
) -> Iterator[Relayed]:
    """Run a relay before the API at *api_url* and let one child in."""
    secret = secret or Secret()
    notes: Counter[str] = Counter()

    def count(outcome: str) -> None:
        notes[outcome] += 1

    relay = Relay({"ANTHROPIC_BASE_URL": api_url} | (environ or {}), secret, directory=directory, count=count, **words)  # type: ignore[arg-type]  # it stands in for the file
    relay.start()
    try:
        yield Relayed(relay, secret, relay.deliver(secret.generation), notes)
    finally:
        relay.close()


__all__ = ["OAUTH_VARIABLE"]
