"""Send requests to the API: with TLS, through the environment's proxy if there is one, on reused connections."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

import h11

from agent_runtime.http_client import checked_url, proxy_for, tls_context
from agent_runtime.model.tokens import Token
from agent_runtime.relay.answers import ApiAnswer, read_answer
from agent_runtime.relay.connection import MOST_HEAD_BYTES, RECEIVE_BYTES, BadMessage, Connection, PeerClosed
from agent_runtime.relay.requests import Request, headers_to_send

CONNECT_SECONDS = 10.0
CONNECT_PATIENCE_SECONDS = 2.0
CONNECT_PAUSE_SECONDS = 0.2
"""For how long, and after what pause, a connection that cannot be made is tried again."""

IDLE_SECONDS = 50.0
"""A connection that has been idle for longer is not used again: servers close theirs after about a minute."""

MOST_IDLE = 32

_PORTS = {"http": 80, "https": 443}


class ApiUnreachable(Exception):
    """No connection to the API can be made; the text names no address."""


class FirstByteTimeout(Exception):
    """The API accepted a request and did not begin to answer in time."""


@dataclass(eq=False, repr=False)
class Upstream:
    """
    The API, or the gateway that the environment names; used on the relay's loop.

    Attributes:
        base_url: With a path, if the gateway has one.
        environ: The supervisor's environment: proxies and CAs.
        first_byte_seconds: How long the API may take to begin an answer.
        observe_first_byte: Called with the seconds that the API took to begin an answer.

    Raises:
        ValueError: The base URL or the proxy cannot be used.
    """

    base_url: str
    environ: Mapping[str, str]
    first_byte_seconds: float
    observe_first_byte: Callable[[float], None]

    def __post_init__(self) -> None:
        self._url = checked_url(self.base_url)
        if self._url.userinfo or self._url.query or self._url.fragment:
            raise ValueError("the base URL has more than a host and a path")
        proxy = proxy_for(self._url, self.environ)
        self._proxy = None if proxy is None else checked_url(proxy)
        self._proxy_headers: list[tuple[str, str]] = []
        if self._proxy is not None and self._proxy.userinfo:
            pair = base64.b64encode(unquote(self._proxy.userinfo.decode()).encode())
            self._proxy_headers.append(("Proxy-Authorization", f"Basic {pair.decode()}"))
        self._is_tls = self._url.scheme == "https"
        self._context: ssl.SSLContext | None = None
        self._received = bytearray(RECEIVE_BYTES)
        self._idle: list[tuple[float, Connection]] = []
        self._host = self._url.netloc.decode()

    async def send(self, request: Request, token: Token) -> ApiAnswer:
        """
        Send a request with *token* as its credential, and read the head of the answer.

        Raises:
            ApiUnreachable: No connection can be made.
            BadMessage: The answer is no HTTP/1.1 message that can be passed on.
            OSError, PeerClosed: The API closed the connection without an answer.
            FirstByteTimeout: The API did not begin to answer in time.
        """
        give_up_at = time.monotonic() + CONNECT_PATIENCE_SECONDS
        while True:
            try:
                connection = self._idle_connection() or await self._connect()
            except ApiUnreachable:
                if time.monotonic() >= give_up_at:
                    raise
                await asyncio.sleep(CONNECT_PAUSE_SECONDS)
                continue
            try:
                return await self._send(connection, request, token)
            except (OSError, PeerClosed):
                connection.reset()
                if not connection.is_used:  # else the API may have closed a stored connection just then: try another
                    raise
            except BaseException:
                connection.reset()
                raise

    async def _send(self, connection: Connection, request: Request, token: Token) -> ApiAnswer:
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEAD_BYTES)
        headers = headers_to_send(request, self._host, token)
        target = self._url.path.rstrip("/") + request.target
        if self._proxy is not None and not self._is_tls:  # the proxy forwards the request itself
            headers += self._proxy_headers
            target = f"http://{self._host}{target}"
        question = h11.Request(method=request.method, target=target, headers=headers)
        sending = asyncio.ensure_future(_send_all(connection, parser.send(question) or b"", request))
        asked_at = time.monotonic()
        try:
            async with asyncio.timeout(self.first_byte_seconds):
                answer = await read_answer(connection, parser, is_head=request.method == "HEAD")
        except TimeoutError:
            raise FirstByteTimeout from None
        finally:
            was_sent = sending.done()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        answer.is_last |= not was_sent  # the API answered before it had the whole request
        self.observe_first_byte(time.monotonic() - asked_at)
        return answer

    def release(self, answer: ApiAnswer) -> None:
        """Store the connection for reuse if its answer has ended, else close it."""
        connection = answer.connection
        if not answer.framing.is_complete or answer.is_last:
            connection.reset()
        elif not connection.is_idle or len(self._idle) >= MOST_IDLE:
            connection.close()
        else:
            connection.is_used = True
            self._idle.append((time.monotonic(), connection))

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop()[1].reset()

    def _idle_connection(self) -> Connection | None:
        while self._idle:
            since, connection = self._idle.pop()
            if connection.is_idle and time.monotonic() - since < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        """
        Make a new connection.

        Raises:
            ApiUnreachable: None can be made.
        """
        url = self._proxy or self._url
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if self._context is None and "https" in {url.scheme, self._url.scheme}:
                    # In a thread: it reads some hundred certificates.
                    self._context = await asyncio.to_thread(tls_context, self.environ)
                    self._context.set_alpn_protocols(["http/1.1"])
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self._received),
                    url.host,
                    url.port or _PORTS[url.scheme],
                    ssl=self._context if url.scheme == "https" else None,
                )
                try:
                    if self._proxy is not None and self._is_tls:
                        await self._tunnel(connection)
                except BaseException:
                    connection.close()
                    raise
                return connection
        except (OSError, ValueError, BadMessage, PeerClosed, h11.ProtocolError) as error:
            raise ApiUnreachable(type(error).__name__) from None

    async def _tunnel(self, connection: Connection) -> None:
        """Ask the proxy for a tunnel to the API, and begin TLS in it."""
        place = f"{self._url.host}:{self._url.port or 443}"
        parser = h11.Connection(h11.CLIENT)
        question = h11.Request(method="CONNECT", target=place, headers=[("Host", place), *self._proxy_headers])
        await connection.send(parser.send(question) or b"")
        answer = await read_answer(connection, parser, is_head=True)
        if not 200 <= answer.status < 300 or self._context is None:
            raise BadMessage("the proxy opens no tunnel")
        if connection.buffer:  # it would be read as the API's answer, although no TLS protected it
            raise BadMessage("the proxy sends more than its answer")
        await connection.start_tls(self._context, self._url.host)


async def _send_all(connection: Connection, head: bytes, request: Request) -> None:
    unsent = head
    for piece in request.body.pieces():  # the first together with the head
        await connection.send(unsent + piece)
        unsent = b""
    if unsent:
        await connection.send(unsent)
