"""Send a child's request to the API with the token in use, replay it where that helps, and pass the answer on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import h11
import msgspec

from agent_runtime.evidence.error_bodies import STATUS_BY_TYPE
from agent_runtime.model.tokens import TokenKind
from agent_runtime.relay.connection import MOST_HEAD_BYTES, READ_BYTES, BadMessage, PeerClosed
from agent_runtime.relay.framing import Chunked, Framing, UntilClosed, framing_of
from agent_runtime.relay.hold import Hold
from agent_runtime.relay.refusals import MOST_BODY_BYTES, detection_in, may_be_refusal
from agent_runtime.relay.requests import HOP_BY_HOP, MESSAGES, headers_to_send
from agent_runtime.relay.upstream import Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.evidence.detector import Detection
    from agent_runtime.relay.connection import Connection
    from agent_runtime.relay.identities import Identity
    from agent_runtime.relay.requests import Request
    from agent_runtime.relay.upstream import Upstream
    from agent_runtime.secret.file import SecretFile
    from agent_runtime.secret.generations import Generation

CONNECT_PATIENCE_SECONDS = 2.0
CONNECT_PAUSE_SECONDS = 0.2
IDLE_SECONDS = 300.0
"""How long the API may send nothing once an answer has begun; while it works, it sends pings."""

OAUTH_BETA = "oauth-2025-04-20"
"""The beta that OAuth needs: without it even a good token is refused, so the refusal says nothing about the token."""

_TYPE_BY_STATUS = {status: kind for kind, status in STATUS_BY_TYPE.items()}
_NOT_FORWARDED = frozenset(name.encode() for name in HOP_BY_HOP) | {b"set-cookie"}


class FirstByteTimeout(Exception):
    """The API accepted a request and did not begin to answer in time."""


class Answer(msgspec.Struct):
    """
    The head of an answer of the API, and the connection that its body comes on.

    Attributes:
        body: The bytes of the body that were read so far, with the framing of chunks.
        is_last: Whether the connection cannot be used after this answer.
    """

    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]
    framing: Framing
    connection: Connection
    is_last: bool
    body: bytes = b""

    @property
    def values(self) -> dict[bytes, list[bytes]]:
        """The values of the headers by lower-case name."""
        return _values(self.headers)


class Exchanges:
    """
    Answer the requests of children from the API; runs on the relay's loop.

    Args:
        first_byte_seconds: How long the API may take to begin an answer.
        count: Called with the outcome of a request, such as ``replayed``.
        observe_first_byte: Called with the seconds that the API took to begin an answer.
    """

    def __init__(
        self,
        upstream: Upstream,
        secret: SecretFile,
        *,
        first_byte_seconds: float,
        count: Callable[[str], None],
        observe_first_byte: Callable[[float], None],
    ) -> None:
        self._upstream = upstream
        self._secret = secret
        self._first_byte_seconds = first_byte_seconds
        self._count = count
        self._observe_first_byte = observe_first_byte

    async def answer(self, request: Request, identity: Identity, child: Connection) -> bool:
        """
        Answer one request; return whether the child's connection can be used further.

        Raises:
            OSError, PeerClosed: The child is gone.
        """
        try:
            answer = await self._fetch(request, identity)
        except (Unreachable, BadMessage, PeerClosed, OSError) as error:
            if isinstance(error, Unreachable):
                outcome, message = "unreachable", "the relay cannot reach the API"
            elif isinstance(error, BadMessage):
                outcome, message = "garbled", f"the API's answer cannot be passed on: {error}"
            else:
                outcome, message = "broken", "the API closed the connection without an answer"
            self._count(outcome)
            await child.send(error_answer(request, 502, message))
            return True
        except FirstByteTimeout:
            self._count("silent")
            if request.path == MESSAGES:
                identity.on_silence()
            child.reset()
            return False
        try:
            is_whole = await self._forward(answer, child)
        except BaseException:
            answer.connection.reset()
            raise
        self._count(f"{answer.status // 100}xx" if is_whole else "cut")
        return is_whole

    async def _fetch(self, request: Request, identity: Identity) -> Answer:
        """Send the request, again with a newer token as long as its token is refused; return the answer to pass on."""
        while True:
            generation = identity.choose(self._secret.status.generation)
            answer = await self._send_on_any_connection(request, generation)
            try:
                identity.record_answer(generation)
                if request.path == MESSAGES and answer.status // 100 == 2:
                    identity.served = generation
                detection = await self._detection_in(answer, request, generation)
                if detection is None:
                    return answer
                await asyncio.to_thread(self._secret.poll)  # a newer token may be written and not noticed yet
                if identity.choose(self._secret.status.generation) is generation and not await self._hold(
                    identity, detection, answer, generation
                ):
                    return answer
            except BaseException:
                answer.connection.reset()
                raise
            self._count("replayed")
            self._release(answer)

    async def _hold(self, identity: Identity, detection: Detection, answer: Answer, generation: Generation) -> bool:
        """Hold a request because the token in use was refused or is limited; return whether to send it again."""
        if identity.on_hold is None:
            return False
        hold = Hold(detection, answer.body, generation, identity.hold_seconds, identity.on_release)
        self._count("held")
        identity.on_hold(hold)
        return await hold.wait()

    async def _detection_in(self, answer: Answer, request: Request, generation: Generation) -> Detection | None:
        """Read what an answer says about the token; None: nothing, or the CLI itself does not send such requests."""
        if not may_be_refusal(answer.status) or not request.path.startswith(MESSAGES):
            return None
        if generation.token.kind is TokenKind.OAUTH and OAUTH_BETA not in request.header("anthropic-beta"):
            return None
        async with asyncio.timeout(self._first_byte_seconds):
            while not answer.framing.is_complete and len(answer.body) < MOST_BODY_BYTES:
                if not (data := await answer.connection.read()):
                    if isinstance(answer.framing, UntilClosed):
                        break
                    raise PeerClosed
                used = answer.framing.feed(data)
                answer.body += data[:used]
                answer.connection.buffer = data[used:]
        body = answer.body
        if isinstance(answer.framing, Chunked):
            body = _without_chunks(body)
        return detection_in(answer.status, answer.values, body)

    # -- the API

    async def _send_on_any_connection(self, request: Request, generation: Generation) -> Answer:
        """
        Send the request with a token, and read the head of the answer.

        Raises:
            Unreachable: No connection can be made.
            BadMessage: The answer is no HTTP/1.1 message that can be passed on.
            OSError, PeerClosed: The API closed the connection without an answer.
            FirstByteTimeout: The API did not begin to answer in time.
        """
        give_up_at = time.monotonic() + CONNECT_PATIENCE_SECONDS
        while True:
            try:
                connection = await self._upstream.acquire()
            except Unreachable:
                if time.monotonic() >= give_up_at:
                    raise
                await asyncio.sleep(CONNECT_PAUSE_SECONDS)
                continue
            try:
                return await self._send(connection, request, generation)
            except (OSError, PeerClosed):
                connection.reset()
                if not connection.is_used:  # else the API may have closed a stored connection just then: try another
                    raise
            except BaseException:
                connection.reset()
                raise

    async def _send(self, connection: Connection, request: Request, generation: Generation) -> Answer:
        upstream, parser = self._upstream, h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEAD_BYTES)
        headers = [*headers_to_send(request, upstream.host, generation.token), *upstream.proxy_headers]
        question = h11.Request(method=request.method, target=upstream.target(request.target), headers=headers)
        sending = asyncio.ensure_future(_send_all(connection, parser.send(question) or b"", request))
        asked_at = time.monotonic()
        try:
            async with asyncio.timeout(self._first_byte_seconds):
                answer = await self._read_head(connection, parser, is_head=request.method == "HEAD")
        except TimeoutError:
            raise FirstByteTimeout from None
        finally:
            was_sent = sending.done()
            sending.cancel()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await sending
        answer.is_last |= not was_sent  # the API answered before it had the whole request
        self._observe_first_byte(time.monotonic() - asked_at)
        return answer

    @staticmethod
    async def _read_head(connection: Connection, parser: h11.Connection, *, is_head: bool) -> Answer:
        while True:
            head = await connection.read_head()
            if head is None:
                raise PeerClosed
            try:
                parser.receive_data(head)
                event = parser.next_event()
            except h11.RemoteProtocolError:
                raise BadMessage("its head cannot be read") from None
            if isinstance(event, h11.Response):
                break
            if not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                raise BadMessage("its head is none of an answer")
        headers = [(bytes(name), bytes(value)) for name, value in event.headers.raw_items()]
        values = _values(headers)
        options = b",".join(values.get(b"connection", [])).lower()
        is_last = b"close" in options or event.http_version != b"1.1"
        framing = framing_of(event.status_code, values, is_head=is_head)
        return Answer(event.status_code, bytes(event.reason), headers, framing, connection, is_last)

    def _release(self, answer: Answer) -> None:
        """Store the connection for reuse if the answer has ended, else cut it."""
        if answer.framing.is_complete and not answer.is_last:
            self._upstream.release(answer.connection)
        else:
            answer.connection.reset()

    # -- the child

    async def _forward(self, answer: Answer, child: Connection) -> bool:
        """
        Pass an answer on to the child as it comes.

        Returns False if the API's connection broke in the middle of it; the child's connection is then cut, too.

        Raises:
            OSError: The child is gone.
        """
        framing, connection = answer.framing, answer.connection
        in_chunks = isinstance(framing, UntilClosed)
        unsent = _head_for_child(answer, in_chunks=in_chunks)
        if answer.body:
            unsent += _chunk(answer.body) if in_chunks else answer.body
        while not framing.is_complete:
            if unsent and not connection.buffer:
                await child.send(unsent)
                unsent = b""
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    data = await connection.read()
                if not data and not in_chunks:
                    raise PeerClosed
                used = framing.feed(data)
            except (OSError, PeerClosed, BadMessage, TimeoutError):
                connection.reset()
                child.reset()
                return False
            if not data:
                unsent = b"0\r\n\r\n"
                break
            if used < len(data):
                connection.buffer, data = data[used:], data[:used]
            await child.send(unsent + (_chunk(data) if in_chunks else data))
            unsent = b""
        if unsent:
            await child.send(unsent)
        self._release(answer)
        return True


async def _send_all(connection: Connection, head: bytes, request: Request) -> None:
    if request.body.length <= READ_BYTES:
        await connection.send(head + b"".join(request.body.pieces()))
        return
    await connection.send(head)
    for piece in request.body.pieces():
        await connection.send(piece)


def _values(headers: list[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    return found


def _head_for_child(answer: Answer, *, in_chunks: bool) -> bytes:
    lines = [b"HTTP/1.1 %d %s" % (answer.status, answer.reason)]
    lines += [b"%s: %s" % pair for pair in answer.headers if pair[0].lower() not in _NOT_FORWARDED]
    if in_chunks or isinstance(answer.framing, Chunked):
        lines.append(b"transfer-encoding: chunked")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _without_chunks(body: bytes) -> bytes:
    """Return the content of the whole chunks of a body whose framing was checked before."""
    found, at = b"", 0
    while (end := body.find(b"\r\n", at)) >= 0 and (size := int(body[at:end].partition(b";")[0], 16)):
        found += body[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    return found


def error_answer(request: Request | None, status: int, message: str, *, is_last: bool = False) -> bytes:
    """
    Build an error answer of the relay itself, in the API's form; without a body to HEAD.

    Args:
        request: The request that is answered; None: its head could not be read.
        is_last: The connection ends with this answer.
    """
    kind = _TYPE_BY_STATUS.get(status, "api_error")
    body = msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})
    connection = b"connection: close\r\n" if is_last else b""
    head = b"HTTP/1.1 %d Relay\r\ncontent-type: application/json\r\n%scontent-length: %d\r\n\r\n"
    is_head = request is not None and request.method == "HEAD"
    return head % (status, connection, len(body)) + (b"" if is_head else body)
