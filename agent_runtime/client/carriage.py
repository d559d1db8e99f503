"""How both clients reach a supervisor: options of httpx, and what its exceptions mean."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import httpx

from agent_runtime.client.failures import ClientError
from agent_runtime.client.talk import NoReply

if TYPE_CHECKING:
    from collections.abc import Mapping

CONNECT_SECONDS = 5.0
WRITE_SECONDS = 30.0
BODY_SECONDS = 120.0
"""How long a whole answer may take after the wait for its beginning: one that drips for ever is none."""

SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)
"""A peer that is gone without a word is noticed within 35 s, also while an answer is waited for."""

LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""No limit of our own: every running task may hold a connection."""

REASONS: dict[type[httpx.RequestError], str] = {
    httpx.ConnectError: "nobody listens there",
    httpx.ConnectTimeout: "it does not accept connections",
    httpx.ReadTimeout: "it does not answer in time",
}

NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


def timeout(reply_seconds: float) -> httpx.Timeout:
    """Say how long each step of a request may take."""
    return httpx.Timeout(reply_seconds, connect=CONNECT_SECONDS, write=WRITE_SECONDS, pool=CONNECT_SECONDS)


def no_reply(error: httpx.RequestError) -> NoReply:
    """
    Translate what went wrong on the way.

    Raises:
        ClientError: It cannot go right: what was to be sent is no request.
    """
    if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol):
        raise ClientError("the request cannot be written: look at the address and the access key") from None
    reason = REASONS.get(type(error), f"the connection broke ({type(error).__name__})")
    return NoReply(reason, was_sent=not isinstance(error, NEVER_SENT))


def headers_of(response: httpx.Response) -> Mapping[str, str]:
    """Return the headers by lower-case name."""
    return dict(response.headers)


def transport_options(url: str, verify: Any) -> dict[str, Any]:
    """Say how connections to *url* are made; *verify* as httpx takes it."""
    # Reading the system's certificates takes longer than a request; no redirect is followed from http to https.
    return {
        "verify": verify if url.startswith("https:") else False,
        "trust_env": False,
        "limits": LIMITS,
        "socket_options": SOCKET_OPTIONS,
    }
