"""The relay itself: its sockets, its thread, and the variables that lead a child to it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agent_runtime.claude.credential_env import (
    API_HOST,
    API_URL,
    BASE_URL_VARIABLE,
    FIRST_PARTY_URL,
    SHELL_PREFIX_VARIABLE,
    SOCKET_VARIABLE,
)
from agent_runtime.delivery.delivery import RELAY, Delivered, Identity, digest_of
from agent_runtime.delivery.private_files import write_shell_prefix
from agent_runtime.delivery.reload_check import ReloadBehaviour
from agent_runtime.errors import CannotStart
from agent_runtime.files import Owner
from agent_runtime.model.tokens import API_KEY_VARIABLE, OAUTH_VARIABLE, TokenKind
from agent_runtime.process.linux.proc import connects_from
from agent_runtime.relay.connection import RECEIVE_BYTES, BadMessage, Connection, PeerClosed
from agent_runtime.relay.exchange import Exchanges, error_answer
from agent_runtime.relay.requests import BodyTooLarge, MemoryBudget, Request, read_body, read_head
from agent_runtime.relay.upstream import Upstream
from agent_runtime.secret.file import SecretFile
from agent_runtime.secret.generations import Generation
from agent_runtime.settings import PREFIX

log = logging.getLogger(__name__)

FIRST_BYTE_SECONDS = 180.0
"""How long the API may take to begin an answer."""

HEAD_SECONDS = 30.0
"""How long a connection may be open before its first request that shows an identity."""

LONG_HOLD_SECONDS, SHORT_HOLD_SECONDS = 1700.0, 150.0
"""
How long a request is held at most: for a CLI whose timeouts can be raised (each that takes a socket); for any other.

Source: measured: 1.0.128, 2.1.30 wait 301 s with any setting; 2.1.114 to 2.1.332 more than 1297 s with ``_TIMEOUTS``.
"""

LEAVE_SECONDS = 1.0
MOST_CONNECTIONS = 2048
MOST_REQUESTS = 128
"""How many requests of one attempt may be answered at the same time."""

BACKLOG = 512
START_SECONDS = 10.0
STOP_SECONDS = 5.0

_TIMEOUTS = {"API_TIMEOUT_MS": "3600000", "CLAUDE_STREAM_FIRST_BYTE_TIMEOUT_MS": "1800000"}
"""Variables that make the CLI wait for as long as a request is held; measured on 2.1.114, 2.1.197, 2.1.330, 2.1.332."""

_NO_PROXY = ("NO_PROXY", "no_proxy")


def is_first_party(environ: Mapping[str, str]) -> bool:
    """
    Whether requests are for the API itself, not for a gateway; decided as the CLI does, by host and port.

    Raises:
        ValueError: The base URL cannot be read.
    """
    return urlsplit((environ.get(BASE_URL_VARIABLE) or API_URL).strip()).netloc == API_HOST


def uses_socket(environ: Mapping[str, str], *, takes_socket: bool | None) -> bool:
    """Whether children are led to the relay's socket, not to its port; *takes_socket* as in :class:`Relay`."""
    return is_first_party(environ) and SHELL_PREFIX_VARIABLE not in environ and takes_socket is True


def way_in(environ: Mapping[str, str], *, takes_socket: bool | None) -> str:
    """Describe for people how children reach the relay, and what features of the CLI that costs."""
    if uses_socket(environ, takes_socket=takes_socket):
        return "children reach the API through the relay's socket and hold no token"
    reason = "children reach the API through the relay's port and hold no token"
    if not is_first_party(environ):
        return reason
    if takes_socket:
        known = f"takes a socket, but {SHELL_PREFIX_VARIABLE} is in use"
    else:
        known = "is not known yet to take a socket" if takes_socket is None else "takes no socket"
    return f"{reason}; this CLI {known}, and from 2.1.114 on leaves away features for a host that is not the API's"


@dataclass(eq=False, repr=False)
class Relay:
    """
    A proxy on loopback that adds the token in use to the requests of children; every method is for any thread.

    Children reach it in one of two ways. If the requests are for the API itself, and this CLI was shown to send its
    requests to a Unix socket, they come as plain HTTP on a socket, and the CLI believes that it talks to the API. Else
    they come to a port of 127.0.0.1, below a path that cannot be guessed; from 2.1.114 on the CLI then leaves out some
    features.

    Attributes:
        environ: The supervisor's environment: base URL, proxies and CAs.
        directory: An existing directory for the socket, to which only the supervisor's user may write.
        owner: The user that children run as; None: the supervisor's.
        takes_socket: Returns whether this CLI sends its requests to a Unix socket and its tools learn nothing of the
            socket; None: not known.
        first_byte_seconds: How long the API may take to begin an answer.
        count: As in :class:`agent_runtime.relay.exchange.Exchanges`.
        observe_first_byte: As in :class:`agent_runtime.relay.upstream.Upstream`.

    Raises:
        CannotStart: The environment's base URL or proxy cannot be used.
    """

    environ: Mapping[str, str]
    secret: SecretFile
    _: KW_ONLY
    directory: Path
    owner: Owner = None
    takes_socket: Callable[[], bool | None] = lambda: None
    first_byte_seconds: float = FIRST_BYTE_SECONDS
    count: Callable[[str], None] = lambda _outcome: None
    observe_first_byte: Callable[[float], None] = lambda _seconds: None

    def __post_init__(self) -> None:
        try:
            self._is_first_party = is_first_party(self.environ)
            base_url = API_URL if self._is_first_party else self.environ[BASE_URL_VARIABLE]
            self._upstream = Upstream(base_url, self.environ, self.first_byte_seconds, self.observe_first_byte)
        except ValueError as error:
            raise CannotStart(f"{PREFIX}TOKEN_DELIVERY: relay is not possible here: {error}") from None
        self._exchanges = Exchanges(self._upstream, self.secret, self.count)
        self._prefix = f"/{secrets.token_hex(16)}"
        self._identities: dict[bytes, Identity] = {}
        self._budget = MemoryBudget()
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()
        self._port = 0
        self._socket = self.directory / "relay.sock"
        self._shell_prefix = self.directory / "shell"

    # -- start and end

    def start(self) -> None:
        """
        Open the sockets and accept connections, in a thread of the relay's own.

        Raises:
            CannotStart: A socket cannot be opened.
        """
        listening: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listening)), name="relay", daemon=True)
        self._thread.start()
        try:
            listening.result(START_SECONDS)
        except OSError as error:
            raise CannotStart(f"{PREFIX}TOKEN_DELIVERY: the relay cannot listen: {error.strerror or error}") from None

    def close(self) -> None:
        """End every connection, and the thread."""
        if self._thread is None or self._loop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(STOP_SECONDS)

    # -- for deliveries

    @property
    def reason(self) -> str:
        """How the next child will reach the relay, and what features of the CLI that costs; for people."""
        return way_in(self.environ, takes_socket=self.takes_socket())

    def deliver(self, generation: Generation) -> Delivered:
        """Make the identity of one child; return what it gets in place of a token. :meth:`release` must follow."""
        takes_socket = self.takes_socket()
        identity = Identity(generation, LONG_HOLD_SECONDS if takes_socket else SHORT_HOLD_SECONDS)
        self._identities[digest_of(identity.placeholder)] = identity
        variable = OAUTH_VARIABLE if identity.kind is TokenKind.OAUTH else API_KEY_VARIABLE
        shown = _TIMEOUTS | {variable: identity.placeholder}
        by_socket = {
            SOCKET_VARIABLE: str(self._socket),
            BASE_URL_VARIABLE: FIRST_PARTY_URL,
            SHELL_PREFIX_VARIABLE: str(self._shell_prefix),
        }
        base_url = f"http://127.0.0.1:{self._port}{self._prefix}"
        by_port = shown | {"API_FORCE_IDLE_TIMEOUT": "0", BASE_URL_VARIABLE: base_url}
        for name in _NO_PROXY:
            by_port[name] = ",".join(filter(None, [self.environ.get(name), "127.0.0.1"]))
        takes_it = uses_socket(self.environ, takes_socket=takes_socket)
        return Delivered(
            generation,
            RELAY,
            shown | by_socket if takes_it else by_port,
            lambda: ReloadBehaviour.ON_REQUEST,
            holds=lambda _newer: True,
            relayed=identity,
            by_port=by_port if takes_it else None,
        )

    def release(self, delivered: Delivered) -> None:
        """End the identity of a child that has ended, and close all its connections."""
        identity = delivered.relayed
        if identity is None:
            return
        self._identities.pop(digest_of(identity.placeholder), None)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._end_connections, identity)

    # -- the relay's thread

    async def _serve(self, listening: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        accepted = functools.partial(Connection, bytearray(RECEIVE_BYTES), self._accept)
        servers: list[asyncio.Server] = []
        try:
            servers.append(await self._loop.create_server(accepted, "127.0.0.1", 0, backlog=BACKLOG))
            self._port = servers[0].sockets[0].getsockname()[1]
            if self._is_first_party:
                path = str(self._socket)
                server = await self._loop.create_unix_server(accepted, path, backlog=BACKLOG, start_serving=False)
                servers.append(server)
                self._socket.chmod(0o600)
                if self.owner is not None:
                    os.chown(self._socket, *self.owner)
                await server.start_serving()
                self._shell_prefix = write_shell_prefix(self.directory)
        except OSError as error:
            listening.set_exception(error)
        else:
            listening.set_result(None)
            await self._ending.wait()
        for server in servers:
            server.close()
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=LEAVE_SECONDS)
        self._upstream.close()

    def _accept(self, connection: Connection) -> None:
        if len(self._connections) >= MOST_CONNECTIONS:
            connection.reset()
            return
        task = asyncio.ensure_future(self._serve_connection(connection))
        self._connections[task] = connection
        task.add_done_callback(self._connection_ended)

    def _connection_ended(self, task: asyncio.Task[None]) -> None:
        self._connections.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a fault of the relay", exc_info=error)

    def _end_connections(self, identity: Identity) -> None:
        for task, connection in list(self._connections.items()):
            if connection.owner is identity:
                task.cancel()

    async def _serve_connection(self, connection: Connection) -> None:
        """Answer the requests of one connection until either side ends it."""
        try:
            peer = connection.peer
            if peer is not None and peer[1] not in {os.geteuid(), self.owner[0] if self.owner else os.geteuid()}:
                self.count("stranger")
                return
            while await self._serve_request(connection):
                pass
        except (OSError, PeerClosed):
            self.count("left")
        finally:
            connection.close()

    async def _serve_request(self, connection: Connection) -> bool:
        """Answer one request; return whether another may follow."""
        request = None
        try:
            async with asyncio.timeout(HEAD_SECONDS if connection.owner is None else None):
                request = await read_head(connection, self._prefix if connection.peer is None else "", self._budget)
            if request is None:
                return False
            found = (self._identities.get(digest_of(text)) for text in request.credentials)
            identity = next(filter(None, found), None)
            if identity is None or connection.owner not in {None, identity}:
                self.count("unknown")
                return await _refuse(connection, request, 404, "the relay does not know the sender")
            connection.owner = identity
            await self._check_sender(identity, connection)
            await read_body(connection, request, is_stored=request.may_pass)
            if not request.may_pass:
                self.count("not_passed")
                await connection.send(error_answer(request, 404, "the relay does not pass this on"))
                return True
            return await self._answer_while_connected(request, identity, connection)
        except BodyTooLarge:
            return await _refuse(connection, request, 413, "the request is too large for the relay")
        except BadMessage as error:
            self.count("malformed")
            return await _refuse(connection, request, 400, f"the relay cannot read this: {error}")
        except TimeoutError:
            return False
        finally:
            if request is not None:
                request.body.close()

    async def _check_sender(self, identity: Identity, connection: Connection) -> None:
        """Count a request that a tool has sent, not the CLI itself; each connection's sender is determined once."""
        if connection.is_of_cli is None and identity.pid is not None:
            if connection.peer is not None:
                connection.is_of_cli = connection.peer[0] == identity.pid
            else:
                connection.is_of_cli = await asyncio.to_thread(connects_from, identity.pid, connection.peer_port)
        if connection.is_of_cli is False:
            self.count("other_process")

    async def _answer_while_connected(self, request: Request, identity: Identity, connection: Connection) -> bool:
        """Answer a request unless the child hangs up before; return whether another request may follow."""
        if identity.open_requests >= MOST_REQUESTS:
            await connection.send(error_answer(request, 529, "too many requests at once"))
            return True
        identity.open_requests += 1
        work = asyncio.ensure_future(self._exchanges.answer(request, identity, connection))
        connection.on_end = work.cancel
        try:
            if connection.has_ended:
                work.cancel()
            return await work
        except asyncio.CancelledError:
            if not connection.has_ended:
                raise
            self.count("hung_up")
            return False
        finally:
            identity.open_requests -= 1


async def _refuse(connection: Connection, request: Request | None, status: int, message: str) -> bool:
    """Answer with an error and end the connection, so that nothing behind the request is read; return False."""
    await connection.send(error_answer(request, status, message, is_last=True))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LEAVE_SECONDS):
            await connection.close_after_peer()
    return False
