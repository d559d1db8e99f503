"""Send a child's request to the API with the token in use, replay it where that helps, and pass the answer on."""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from collections.abc import Callable, Mapping

import msgspec

from agent_runtime.delivery.delivery import HeldRequest, Identity
from agent_runtime.errors import ErrorClass
from agent_runtime.evidence.api_errors import STATUS_BY_TYPE, read_body
from agent_runtime.evidence.detector import Channel, Detection
from agent_runtime.evidence.matching import Rule
from agent_runtime.evidence.reset_times import HORIZON
from agent_runtime.evidence.rules import rule_for
from agent_runtime.model.tokens import OAUTH_BETA, TokenKind
from agent_runtime.relay.answers import ApiAnswer, Chunked, UntilClosed, without_chunks
from agent_runtime.relay.connection import BadMessage, Connection, PeerClosed
from agent_runtime.relay.requests import HOP_BY_HOP, MESSAGES, Request
from agent_runtime.relay.upstream import ApiUnreachable, FirstByteTimeout, Upstream
from agent_runtime.secret.file import SecretFile
from agent_runtime.secret.generations import Generation

IDLE_SECONDS = 300.0
"""How long the API may send nothing once an answer has begun; while it works, it sends pings."""

FAST_BYTES, PAUSE_SECONDS = 4096, 0.002
"""
After a read of so many bytes the answer is read again only after a pause, so that more of it comes at once.

Events of a model are a tenth of that and milliseconds apart: they are passed on at once. An answer that comes faster
would wake the relay for every few events, and that takes more processor time than the events themselves.
"""

MOST_JUDGED_BYTES = 64 * 1024
"""How much of the body of an answer is read to judge it."""

_MAY_BE_ABOUT_TOKEN = frozenset({400, 401, 402, 403, 429})
_GZIP_OR_ZLIB = 47
_UNIFIED = b"anthropic-ratelimit-unified-"
_LIMIT = Rule("limit-headers", ErrorClass.RATE_LIMIT, condemns=True)
_TYPE_BY_STATUS = {status: kind for kind, status in STATUS_BY_TYPE.items()}
_NOT_FORWARDED = frozenset(name.encode() for name in HOP_BY_HOP) | {b"set-cookie"}


class Hold(HeldRequest, kw_only=True):
    """
    A request that waits before the child gets a byte of an answer; made on the relay's loop, released from any thread.

    Attributes:
        body: The beginning of the body of the API's answer.
        released: Whether to send the request again.
    """

    released: asyncio.Future[bool] = msgspec.field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def release(self, *, replays: bool) -> None:
        """End the hold: send the request again with the token in use then, or pass the API's answer on as it was."""

        def release() -> None:
            if not self.released.done():
                self.released.set_result(replays)

        with contextlib.suppress(RuntimeError):  # the loop has closed
            self.released.get_loop().call_soon_threadsafe(release)


class Exchanges(msgspec.Struct, frozen=True):
    """
    Answer the requests of children from the API; runs on the relay's loop.

    Attributes:
        count: Called with the outcome of a request, such as ``replayed``.
    """

    upstream: Upstream
    secret: SecretFile
    count: Callable[[str], None]

    async def answer(self, request: Request, identity: Identity, child: Connection) -> bool:
        """
        Answer one request; return whether the child's connection can be used further.

        Raises:
            OSError, PeerClosed: The child closed its connection.
        """
        try:
            answer = await self._fetch(request, identity)
        except (ApiUnreachable, BadMessage, PeerClosed, OSError) as error:
            if isinstance(error, ApiUnreachable):
                outcome, message = "unreachable", "the relay cannot reach the API"
            elif isinstance(error, BadMessage):
                outcome, message = "garbled", f"the API's answer cannot be passed on: {error}"
            else:
                outcome, message = "broken", "the API closed the connection without an answer"
            self.count(outcome)
            await child.send(error_answer(request, 502, message))
            return True
        except FirstByteTimeout:
            self.count("silent")
            if request.path == MESSAGES:
                identity.on_silence()
            child.reset()
            return False
        try:
            is_whole = await self._forward(answer, child)
        except BaseException:
            answer.connection.reset()
            raise
        self.count(f"{answer.status // 100}xx" if is_whole else "cut")
        return is_whole

    async def _fetch(self, request: Request, identity: Identity) -> ApiAnswer:
        """Send the request, again with a newer token as long as its token is refused; return the answer to pass on."""
        while True:
            generation = identity.choose(self.secret.status.generation)
            answer = await self.upstream.send(request, generation.token)
            try:
                identity.record_answer(generation)
                if request.path == MESSAGES and answer.status // 100 == 2:
                    identity.served = generation
                detection = await self._detection_in(answer, request, generation)
                if detection is None:
                    return answer
                await asyncio.to_thread(self.secret.poll)  # a newer token may be written and not noticed yet
                if identity.choose(self.secret.status.generation) is generation:
                    hold = Hold(detection, answer.body, generation, identity.hold_seconds)
                    if not await self._is_replayed(hold, identity):
                        return answer
            except BaseException:
                answer.connection.reset()
                raise
            self.count("replayed")
            self.upstream.release(answer)

    async def _is_replayed(self, hold: Hold, identity: Identity) -> bool:
        """Hold a request because the token in use was refused or is limited; return whether to send it again."""
        if identity.on_hold is None:
            return False
        self.count("held")
        identity.on_hold(hold)
        try:
            return await hold.released
        finally:
            hold.is_over = True
            identity.on_release(hold)

    async def _detection_in(self, answer: ApiAnswer, request: Request, generation: Generation) -> Detection | None:
        """Read what an answer says about the token; None: nothing, or the CLI itself does not send such requests."""
        if answer.status not in _MAY_BE_ABOUT_TOKEN or not request.path.startswith(MESSAGES):
            return None
        if generation.token.kind is TokenKind.OAUTH and OAUTH_BETA not in request.header("anthropic-beta"):
            return None
        async with asyncio.timeout(self.upstream.first_byte_seconds):
            while len(answer.body) < MOST_JUDGED_BYTES and (data := await answer.read()):
                answer.body += data
        body = without_chunks(answer.body) if isinstance(answer.framing, Chunked) else answer.body
        return detection_in(answer.status, answer.values, body)

    async def _forward(self, answer: ApiAnswer, child: Connection) -> bool:
        """
        Pass an answer on to the child as it comes.

        Returns False if the API's connection broke in the middle of it; the child's connection is then reset, too.

        Raises:
            OSError: The child closed its connection.
        """
        in_chunks = isinstance(answer.framing, UntilClosed)
        unsent = _head_for_child(answer, in_chunks=in_chunks)
        if answer.body:
            unsent += _chunk(answer.body) if in_chunks else answer.body
        while True:
            if not answer.connection.buffer:  # else more can be sent together with it
                await child.send(unsent)
                if len(unsent) >= FAST_BYTES and not answer.framing.is_complete:
                    await answer.connection.pause_reading(PAUSE_SECONDS)
                unsent = b""
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    data = await answer.read()
            except (OSError, PeerClosed, BadMessage):
                answer.connection.reset()
                child.reset()
                return False
            if not data:
                break
            unsent += _chunk(data) if in_chunks else data
        await child.send(unsent + (b"0\r\n\r\n" if in_chunks else b""))
        self.upstream.release(answer)
        return True


def _head_for_child(answer: ApiAnswer, *, in_chunks: bool) -> bytes:
    lines = [b"HTTP/1.1 %d %s" % (answer.status, answer.reason)]
    lines += [b"%s: %s" % pair for pair in answer.headers if pair[0].lower() not in _NOT_FORWARDED]
    if in_chunks or isinstance(answer.framing, Chunked):
        lines.append(b"transfer-encoding: chunked")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


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


def detection_in(status: int, headers: Mapping[bytes, list[bytes]], body: bytes) -> Detection | None:
    """
    Return what an answer says about the token or its account; None: nothing.

    A 429 counts only with the headers of a usage limit: without them the API only throttles requests.

    Args:
        headers: Values by lower-case name.
        body: The beginning of the body, without the framing of chunks.

    Source: ``anthropic-ratelimit-unified-*`` as the stand-in's :class:`UsageLimit` sends them.
    """
    if status == 429 and headers.get(_UNIFIED + b"status") == [b"rejected"]:
        return _limit(headers)
    if b"content-encoding" in headers:
        with contextlib.suppress(zlib.error):  # of the codings the relay asks for no other than gzip
            body = zlib.decompressobj(_GZIP_OR_ZLIB).decompress(body, MOST_JUDGED_BYTES)
    error = read_body(body.decode("utf-8", "replace").strip(), status)
    if error is None or not (rule := rule_for(error)).is_evidence:
        return None
    return Detection(rule, Channel.WIRE, is_final=True, status=error.status)


def _limit(headers: Mapping[bytes, list[bytes]]) -> Detection:
    claim = b"".join(headers.get(_UNIFIED + b"representative-claim", [])).decode("ascii", "replace")
    reset = b"".join(headers.get(_UNIFIED + b"reset", []))
    resets_at = float(reset) if reset.isdigit() and len(reset) <= 12 else None
    if resets_at is not None and not 0 < resets_at - time.time() <= HORIZON.total_seconds():
        resets_at = None
    return Detection.of_limit(_LIMIT, Channel.WIRE, claim or None, resets_at, is_final=True)
