"""Connections to the API: with TLS, through the environment's proxy if there is one, and stored while they are idle."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote

import h11

from agent_runtime.http_client import checked_url, proxy_for, tls_context
from agent_runtime.relay.connection import READ_BYTES, BadMessage, Connection, PeerClosed

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 50.0
"""A connection that has been idle for longer is not used again: servers close theirs after about a minute."""

MOST_IDLE = 32


class Unreachable(Exception):
    """No connection to the API can be made; the text names no address."""


class Upstream:
    """
    The API, or the gateway that the environment names.

    Args:
        base_url: With a path, if the gateway has one.
        environ: The supervisor's environment: proxies and CAs.

    Attributes:
        host: The value of the ``Host`` header.

    Raises:
        ValueError: The base URL or the proxy cannot be used.
    """

    def __init__(self, base_url: str, environ: Mapping[str, str]) -> None:
        url = checked_url(base_url)
        if url.userinfo or url.query or url.fragment:
            raise ValueError("the base URL has more than a host and a path")
        self._url = url
        self._environ = environ
        proxy = proxy_for(url, environ)
        self._proxy = None if proxy is None else checked_url(proxy)
        self._is_tls = url.scheme == "https"
        self._context: ssl.SSLContext | None = None
        self._idle: list[tuple[float, Connection]] = []
        self.host = url.netloc.decode()

    def target(self, path_and_query: str) -> str:
        """Return the target for a request: its path, or the whole URL where a proxy forwards the request itself."""
        target = self._url.path.rstrip("/") + path_and_query
        return target if self._proxy is None or self._is_tls else f"http://{self.host}{target}"

    @property
    def proxy_headers(self) -> list[tuple[str, str]]:
        """Further headers for a request that a proxy forwards: the proxy's authorization, if any."""
        return [] if self._is_tls else self._proxy_authorization()

    async def acquire(self) -> Connection:
        """
        Return an idle connection, or a new one.

        Raises:
            Unreachable: No connection can be made.
        """
        while self._idle:
            since, connection = self._idle.pop()
            if connection.is_idle and time.monotonic() - since < IDLE_SECONDS:
                return connection
            connection.close()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await self._connect()
        except (OSError, ValueError, BadMessage, PeerClosed, h11.ProtocolError) as error:
            raise Unreachable(type(error).__name__) from None

    def release(self, connection: Connection) -> None:
        """Store a connection for reuse after its answer has ended; close it if it cannot be used again."""
        if not connection.is_idle or len(self._idle) >= MOST_IDLE:
            connection.close()
            return
        connection.is_used = True
        self._idle.append((time.monotonic(), connection))

    async def close(self) -> None:
        """Close the idle connections."""
        for _, connection in self._idle:
            connection.reset()
            await connection.wait_closed()
        self._idle.clear()

    async def _connect(self) -> Connection:
        url = self._proxy or self._url
        context = await self._tls_context() if self._is_tls or url.scheme == "https" else None
        reader, writer = await asyncio.open_connection(
            url.host,
            url.port or (443 if url.scheme == "https" else 80),
            ssl=context if url.scheme == "https" else None,
            limit=READ_BYTES,
        )
        connection = Connection(reader, writer)
        try:
            if self._proxy is not None and self._is_tls:
                await self._tunnel(connection)
                await writer.start_tls(await self._tls_context(), server_hostname=self._url.host)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _tunnel(self, connection: Connection) -> None:
        """Ask the proxy for a tunnel to the API."""
        place = f"{self._url.host}:{self._url.port or 443}"
        parser = h11.Connection(h11.CLIENT)
        question = h11.Request(method="CONNECT", target=place, headers=[("Host", place), *self._proxy_authorization()])
        await connection.send(parser.send(question) or b"")
        head = await connection.read_head()
        if head is None:
            raise PeerClosed
        parser.receive_data(head)
        answer = parser.next_event()
        if not isinstance(answer, h11.Response) or not 200 <= answer.status_code < 300:
            raise BadMessage("the proxy opens no tunnel")

    def _proxy_authorization(self) -> list[tuple[str, str]]:
        if self._proxy is None or not self._proxy.userinfo:
            return []
        pair = unquote(self._proxy.userinfo.decode())
        return [("Proxy-Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")]

    async def _tls_context(self) -> ssl.SSLContext:
        if self._context is None:
            # Reading some hundred certificates takes too long for the event loop.
            context = await asyncio.to_thread(tls_context, self._environ)
            with contextlib.suppress(NotImplementedError):
                context.set_alpn_protocols(["http/1.1"])
            self._context = context
        return self._context
