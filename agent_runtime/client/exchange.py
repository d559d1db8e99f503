"""Send requests to a supervisor: connections, access key, parsing of answers, pauses between tries."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import msgspec

from agent_runtime.client.answers import read
from agent_runtime.client.errors import ClientError, Problem, RequestRefused, TurnedAway, Unreachable, failure
from agent_runtime.http_client import checked_url
from agent_runtime.model.tokens import Token

CONNECT_SECONDS = 5.0
WRITE_SECONDS = 30.0
REPLY_SECONDS = 15.0
BODY_SECONDS = 120.0
"""How much longer a whole answer may take than its beginning: an endlessly slow answer counts as none."""

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
LONGEST_WAIT_SECONDS = 2.0
LONGEST_RETRY_AFTER_SECONDS = 3600.0
KEY_LIMIT_BYTES = 4096

SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)
"""A peer that has disappeared is noticed within 35 s, even while the client waits for an answer."""

LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""No limit of our own: every running task may hold a connection."""

REASONS: dict[type[httpx.RequestError], str] = {
    httpx.ConnectTimeout: "it does not accept connections",
    httpx.ReadTimeout: "it does not answer in time",
}
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that a proxy may send for a passing reason; a supervisor would send a problem document with them."""


class Patience:
    """
    Pauses between tries, and the time limit after which a call gives up.

    Pauses grow from try to try and differ between clients, so that not all clients come at once when a supervisor is
    back.

    Args:
        seconds: How long failures may last without progress in between.
        execution_id: The execution that the call is about; None: no execution.
    """

    def __init__(self, seconds: float, execution_id: str | None) -> None:
        self._seconds = seconds
        self._id = execution_id
        self._until: float | None = None
        self._tries = self._waits = 0

    def reset(self) -> None:
        """Record progress, so that the time limit for failures begins anew."""
        self._until, self._tries = None, 0

    async def pause(self, trouble: ClientError) -> None:
        """Pause after a failed try, at most until the time limit; raise *trouble* if that has passed."""
        now = asyncio.get_running_loop().time()
        self._until = now + self._seconds if self._until is None else self._until
        if now >= self._until:
            raise trouble if self._id is None else trouble.about(self._id)
        growing = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(self._tries, 16))
        self._tries += 1
        seconds = max(trouble.retry_after_seconds or 0.0, growing * (0.5 + random.random() / 2))  # noqa: S311
        await asyncio.sleep(min(self._until - now, seconds))

    async def wait(self) -> None:
        """Pause before asking again for an execution that runs; that it runs counts as progress."""
        self.reset()
        await asyncio.sleep(min(LONGEST_WAIT_SECONDS, FIRST_PAUSE_SECONDS * 1.3 ** min(self._waits, 64)))
        self._waits += 1


class AccessKeyAuth(httpx.Auth):
    """
    Send the access key in the header that the supervisor reads.

    Args:
        key: The key itself.
        path: A file with the key instead, read at every request, so that a change needs no restart.
        header: ``Authorization`` (as a bearer token) or the supervisor's own header.
    """

    def __init__(self, key: str | None, path: str | Path | None, header: str) -> None:
        self._key = None if key is None else Token(key)
        self._path = None if path is None else Path(path)
        self._header = header

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """
        Add the header to *request*.

        Raises:
            RequestRefused: The file cannot be read, or its content cannot be sent in a header.
        """
        key = self._key
        if self._path is not None:
            try:
                with self._path.open("rb") as file:
                    key = Token(file.read(KEY_LIMIT_BYTES).decode(errors="replace").strip())
            except OSError as error:
                problem = f"the access key file {self._path} cannot be read: {error.strerror}; name another"
                raise RequestRefused.because("access", problem) from None
        if key is not None:
            if not key.secret.isascii() or not key.secret.isprintable() or not key.secret:
                where = "the access key" if self._path is None else f"the access key file {self._path}"
                raise RequestRefused.because("access", f"{where} must hold a key of printable ASCII")
            is_bearer = self._header.lower() == "authorization"
            request.headers[self._header] = f"Bearer {key.secret}" if is_bearer else key.secret
        yield request


def connections(
    url: str, access_key: AccessKeyAuth, verify: ssl.SSLContext | bool, transport: httpx.AsyncBaseTransport | None
) -> httpx.AsyncClient:
    """
    Build the HTTP client for the supervisor at *url*, without proxies and other settings of the environment.

    Raises:
        ValueError: *url* cannot be the URL of a supervisor.
    """
    base = checked_url(url)
    if transport is None:
        # Reading the system's certificates takes longer than a request; no redirect is followed from http to https.
        verify = verify if base.scheme == "https" else False
        transport = httpx.AsyncHTTPTransport(verify, trust_env=False, limits=LIMITS, socket_options=SOCKET_OPTIONS)
    return httpx.AsyncClient(base_url=base, auth=access_key, trust_env=False, transport=transport)


def timeout(reply_seconds: float) -> httpx.Timeout:
    """Return the time limits of a request, with *reply_seconds* for each wait for data."""
    return httpx.Timeout(reply_seconds, connect=CONNECT_SECONDS, write=WRITE_SECONDS, pool=CONNECT_SECONDS)


async def send(
    http: httpx.AsyncClient, method: str, path: str, reply_seconds: float, **options: Any
) -> tuple[int, dict[str, Any]]:
    """
    Send a request, and return the status (200, 202) and the JSON object of the answer.

    Args:
        reply_seconds: How long to wait for each part of the answer.
        options: Further arguments of :meth:`httpx.AsyncClient.request`.

    Raises:
        ClientError: The supervisor refuses; the client is closed (``closed``); or no whole answer came, so that it is
            worth asking again (``unreachable``).
    """
    if http.is_closed:
        raise closed()
    try:
        async with asyncio.timeout(reply_seconds + BODY_SECONDS):
            return content_of(await http.request(method, path, timeout=timeout(reply_seconds), **options))
    except httpx.RequestError as error:
        raise no_answer(error) from None
    except TimeoutError:
        raise unreachable("its answer does not come to an end", http.base_url) from None


def content_of(response: httpx.Response) -> tuple[int, dict[str, Any]]:
    """
    Return the status of an answer and its JSON object.

    Raises:
        ClientError: As in :func:`send`.
    """
    content, status = json_object(response.content), response.status_code
    if status < 300 and content is not None:
        return status, content
    if status >= 400 and content is not None and isinstance(content.get("error_class"), str):
        seconds = response.headers.get("retry-after", "").strip()
        is_number = seconds.isascii() and seconds.isdigit()
        retry_after = min(float(seconds[:9]), LONGEST_RETRY_AFTER_SECONDS) if is_number else None
        raise failure(problem_of(content, status), retry_after)
    if status < 300 or status in PASSING_STATUSES:
        reason = "its answer cannot be read" if status < 300 else f"it is answered with {status}"
        raise unreachable(reason, response.url)
    detail = f"{origin(response.url)}{response.url.path} was answered with {status}, but not as a supervisor does"
    raise Unreachable.because("unexpected", detail, status=status)


def no_answer(error: httpx.RequestError) -> ClientError:
    """Build the client's error from one of httpx."""
    if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol):
        text = "the request cannot be written: look at the address and the access key"
        return RequestRefused.because("invalid_request", text)
    is_early = isinstance(error, httpx.ConnectError)
    reason = _not_connected(error) if is_early else REASONS.get(type(error), _broke(error))
    return unreachable(reason, error.request.url, code="not_sent" if isinstance(error, NEVER_SENT) else None)


def _broke(error: httpx.RequestError) -> str:
    return f"the connection broke ({type(error).__name__})"


def _not_connected(error: httpx.RequestError) -> str:
    """Return why no connection was made, from the error's causes, but without their texts, which may hold addresses."""
    causes: list[BaseException] = [error]
    for one in causes:
        if isinstance(one, ssl.SSLCertVerificationError):
            return f"its TLS certificate is not accepted ({one.verify_message})"
        if isinstance(one, ssl.SSLError):
            reason = getattr(one, "reason", None) or "it ended"  # None where OpenSSL gives no reason
            return f"TLS cannot be begun there ({reason.replace('_', ' ').lower()})"
        if isinstance(one, socket.gaierror):
            return "its name cannot be resolved"
        if isinstance(one, ConnectionRefusedError):
            return "nothing listens there"
        if isinstance(one, OSError) and one.errno:
            return os.strerror(one.errno)
        causes += one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        if (cause := one.__cause__ or one.__context__) is not None:
            causes.append(cause)
    return _broke(error)


def unreachable(reason: str, url: httpx.URL, code: str | None = None) -> Unreachable:
    """Build the error of a request that got no answer, after which it is worth asking again."""
    return Unreachable.because("unreachable", f"the supervisor at {origin(url)} cannot be reached: {reason}", code=code)


def origin(url: httpx.URL) -> str:
    """Return scheme, host and port of a URL, without a user name and password."""
    return f"{url.scheme}://{url.netloc.decode()}"


def is_passing(error: ClientError) -> bool:
    """Whether the same request may succeed later, without anything to be done."""
    return isinstance(error, TurnedAway) or error.error_class == "unreachable"


def problem_of(content: dict[str, Any], status: int) -> Problem:
    """Read a problem document, as far as it can be read."""
    if isinstance(detail := content.get("detail"), dict):  # AGENT_RUNTIME_ERROR_DETAIL=object
        content = {**content, "detail": detail.get("message")}
    return read(Problem, {"error_class": "error", **content, "status": status}) or Problem(status=status)


def closed() -> RequestRefused:
    """Build the error of a call on a client that was closed."""
    return RequestRefused.because("closed", "the client is closed, or was made before a fork: make another")


def json_object(body: bytes) -> dict[str, Any] | None:
    """Parse a JSON object; None: *body* is not one."""
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
