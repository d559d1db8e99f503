"""Read a child's request, decide if it may pass, store its body for a replay, and build its headers for the API."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import IO

import h11
import msgspec

from agent_runtime.claude.credential_env import FIRST_PARTY_URL
from agent_runtime.model.tokens import Token, TokenKind
from agent_runtime.relay.connection import MOST_HEAD_BYTES, BadMessage, Connection, PeerClosed

MESSAGES = "/v1/messages"
PASSES = frozenset(
    {
        ("POST", MESSAGES),
        ("POST", "/v1/messages/count_tokens"),
        ("GET", "/v1/models"),
        ("HEAD", "/"),
        ("HEAD", "/api/hello"),
        ("GET", "/api/hello"),
        ("GET", "/api/claude_code/settings"),
        ("GET", "/api/claude_code/policy_limits"),
    }
)
"""
The requests that the relay passes on to the API, by method and path; it answers all others with 404.

Without this list an agent could make itself an API key, by ``/api/oauth/claude_cli/create_api_key``.
"""

MOST_BODY_BYTES = 64 * 1024 * 1024
"""The longest body that the relay reads; the API itself accepts 32 MB."""

IN_MEMORY_BYTES = 8 * 1024 * 1024
ALL_IN_MEMORY_BYTES = 64 * 1024 * 1024

_CREDENTIALS = frozenset({"authorization", "x-api-key", "proxy-authorization", "cookie"})
HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "proxy-authenticate", "te", "trailer"),
        *("transfer-encoding", "upgrade", "expect", "http2-settings"),
    }
)
_OTHER_TARGETS = frozenset(
    {"x-original-url", "x-rewrite-url"} | {f"x-{m}" for m in ("http-method", "http-method-override", "method-override")}
)
"""Headers with which some gateways serve another path or method than those of the request, which were checked."""

_DROPPED = _CREDENTIALS | HOP_BY_HOP | _OTHER_TARGETS | {"host", "content-length"}


class BodyTooLarge(Exception):
    """The body of a request is longer than :data:`MOST_BODY_BYTES`."""


class MemoryBudget:
    """
    The memory that all stored bodies may use together; a body that does not fit goes into an unlinked file.

    Args:
        directory: Where the files are made; None: the system's directory for temporary files.
    """

    def __init__(self, directory: str | None = None, limit_bytes: int = ALL_IN_MEMORY_BYTES) -> None:
        self.directory = directory
        self._left = limit_bytes

    def reserve(self) -> int:
        """Reserve memory for one body, as far as there is some; return how many bytes."""
        reserved = min(IN_MEMORY_BYTES, self._left)
        self._left -= reserved
        return reserved

    def release(self, reserved: int) -> None:
        """Give back what :meth:`reserve` has returned."""
        self._left += reserved


class Body:
    """
    A request's body, stored for a replay: in memory, or in an unlinked file that no other user can open.

    Attributes:
        length: The number of bytes added so far.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self.length = 0
        self._reserved = 0
        self._budget = budget
        self._file: IO[bytes] | None = None

    def add(self, data: bytes) -> None:
        """Append the next bytes of the body."""
        self.length += len(data)
        if self._file is None:
            self._reserved = self._budget.reserve()
            most_in_memory = max(1, self._reserved)  # 0 would mean no limit
            self._file = tempfile.SpooledTemporaryFile(most_in_memory, dir=self._budget.directory)  # noqa: SIM115 - see close()
        self._file.write(data)

    def pieces(self) -> Iterable[bytes]:
        """Yield the body from its beginning."""
        if self._file is not None:
            self._file.seek(0)
            while data := self._file.read(256 * 1024):
                yield data

    def close(self) -> None:
        """Free the body's memory or file, and its share of the budget."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._budget.release(self._reserved)
        self._reserved = 0


class Request(msgspec.Struct):
    """
    One request of a child; :meth:`Body.close` must follow.

    Attributes:
        path: The path without the relay's prefix and without the query.
        target: The path with its query.
        headers: Pairs of name and value, in the order and spelling of the child.
        parser: Has read the head; reads the body next.
    """

    method: str
    path: str
    target: str
    headers: list[tuple[str, str]]
    body: Body
    parser: h11.Connection

    @property
    def credentials(self) -> list[str]:
        """The values of the request's credential headers, without the scheme of bearer tokens."""
        values = (value for name, value in self.headers if name.lower() in {"x-api-key", "authorization"})
        return [value.strip() if value[:7].lower() != "bearer " else value[7:].strip() for value in values]

    def header(self, name: str) -> str:
        """Return all values of a header, joined by commas; *name* is in lower case."""
        return ",".join(value for each, value in self.headers if each.lower() == name)

    @property
    def may_pass(self) -> bool:
        """Whether the relay passes on requests with this method and path."""
        return (self.method, self.path) in PASSES


async def read_head(connection: Connection, prefix: str, budget: MemoryBudget) -> Request | None:
    """
    Read the next request's head; None: the child has closed the connection.

    Args:
        prefix: The beginning of every path, which is removed. A request without it gets an empty path and no headers.

    Raises:
        BadMessage: The bytes are no HTTP/1.1 request that can be passed on.
        PeerClosed: The child closed the connection in the middle of the head.
    """
    head = await connection.read_head()
    if head is None:
        return None
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEAD_BYTES)
    try:
        parser.receive_data(head)
        event = parser.next_event()
    except h11.RemoteProtocolError:
        raise BadMessage("the head cannot be read") from None
    if not isinstance(event, h11.Request) or event.http_version != b"1.1":
        raise BadMessage("the head is none of HTTP/1.1")
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers.raw_items()]
    names = {name.lower() for name, _ in headers}
    if {"content-length", "transfer-encoding"} <= names or "upgrade" in names:
        raise BadMessage("the request has two lengths, or asks for another protocol")
    target = event.target.decode("latin-1")
    if connection.peer is not None:  # with HTTP_PROXY set, CLI 2.1.114 and 2.1.197 send a whole URL even to a socket
        target = target.removeprefix(FIRST_PARTY_URL).removeprefix(":80")
    if not target.startswith("/"):
        raise BadMessage("the target is no path")
    if prefix:  # without the prefix no path may pass, and no identity is found
        is_below = target.startswith(f"{prefix}/")
        target = target.removeprefix(prefix) if is_below else ""
        headers = headers if is_below else []
    path = target.partition("?")[0]
    return Request(event.method.decode("latin-1"), path, target, headers, Body(budget), parser)


async def read_body(connection: Connection, request: Request, *, is_stored: bool) -> None:
    """
    Read a request's body; bytes that follow the body stay in the connection's buffer.

    Args:
        is_stored: Store the body in the request; else it is read and dropped.

    Raises:
        BadMessage: The body's framing is not valid.
        BodyTooLarge: The body is longer than :data:`MOST_BODY_BYTES`.
        PeerClosed: The child closed the connection in the middle of the body.
    """
    if int(request.header("content-length") or 0) > MOST_BODY_BYTES:
        raise BodyTooLarge
    parser = request.parser
    if parser.they_are_waiting_for_100_continue:
        informed = parser.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        await connection.send(informed or b"")
    length = 0
    try:
        while not isinstance(event := parser.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                if not (data := await connection.read()):
                    raise PeerClosed
                parser.receive_data(data)
            elif isinstance(event, h11.Data):
                length += len(event.data)
                if length > MOST_BODY_BYTES:
                    raise BodyTooLarge
                if is_stored:
                    request.body.add(bytes(event.data))
    except h11.RemoteProtocolError:
        raise BadMessage("the body cannot be read") from None
    connection.buffer = parser.trailing_data[0] + connection.buffer


def headers_to_send(request: Request, host: str, token: Token) -> list[tuple[str, str]]:
    """
    Return the headers for the API: the child's without credentials and hop-by-hop headers, and *token* as credential.

    ``Accept-Encoding`` becomes ``gzip`` or ``identity``, because the relay must be able to read a refusal.

    Args:
        host: The value of the ``Host`` header.
    """
    dropped = _DROPPED.union(word.strip().lower() for word in request.header("connection").split(","))
    headers = [("Host", host)]
    for name, value in request.headers:
        plain = name.lower().replace("_", "-")
        if plain == "accept-encoding":
            accepted = {word.partition(";")[0].strip().lower() for word in value.split(",")}
            headers.append((name, "gzip" if "gzip" in accepted else "identity"))
        elif plain not in dropped:
            headers.append((name, value))
    if token.kind is TokenKind.API_KEY:
        headers.append(("x-api-key", token.secret))
    else:
        headers.append(("Authorization", f"Bearer {token.secret}"))
    if request.body.length or request.method == "POST":
        headers.append(("Content-Length", str(request.body.length)))
    return headers
