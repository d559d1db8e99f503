"""
A stand-in of Anthropic's Messages API on loopback, good enough for the real Claude Code CLI.

    api = MessagesApi()
    api.on(OLD, "expired")                                         # what a token gets
    api.script("build", Tool(command="make"), Text(text="built"))  # what "[[script:build]]" in a prompt gets
    with serve(api) as base_url:                                   # ANTHROPIC_BASE_URL
        ...
        api.on(NEW, "revoked")                                     # at any time, from any thread
        api.wait_for_requests(NEW, 2)

By itself: ``python -m agent_runtime.standins.messages_api --port 0 --script FILE.json``; the file is a
:class:`ScriptFile`, for instance
``{"scripts": {"build": [{"kind": "tool", "command": "make"}]}, "default": ["hang"]}``.

What the real API checks before it looks at a token's rights is checked here too: an OAuth token needs the CLI's beta
header, and is no API key.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import signal
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from agent_runtime.standins.loopback_server import LoopbackServer, ServerEnds
from agent_runtime.standins.messages_policy import MessagesApi, SeenRequest, TokenCounts
from agent_runtime.standins.messages_script import (
    FAULTS,
    OAUTH_BETA,
    Cut,
    Fail,
    Hang,
    MessagesRequest,
    Moment,
    Reply,
    Text,
    Tool,
    UsageLimit,
    conversation_of,
    tool_use_id,
)
from agent_runtime.tokens import Token, TokenKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

__all__ = [
    "FAULTS",
    "Cut",
    "Fail",
    "Hang",
    "MessagesApi",
    "Moment",
    "ScriptFile",
    "SeenRequest",
    "Text",
    "TokenCounts",
    "Tool",
    "UsageLimit",
    "serve",
]

INPUT_TOKENS = 10
OUTPUT_TOKENS = 5

_Fields: TypeAlias = dict[str, object]


def serve(api: MessagesApi, port: int = 0) -> AbstractContextManager[str]:
    """Serve *api* on loopback while the block lasts; yields the base URL, for ``ANTHROPIC_BASE_URL``."""
    server = LoopbackServer(port)
    return server.running(_Application(api, server).asgi)


class _Application:
    """The routes, and how a reply becomes bytes."""

    def __init__(self, api: MessagesApi, server: LoopbackServer) -> None:
        self._api = api
        self._server = server
        self._ids = itertools.count(1)
        self.asgi = Starlette(
            routes=[
                Route("/", self._root, methods=["HEAD", "GET"]),
                Route("/v1/messages", self._messages, methods=["POST"]),
                Route("/v1/messages/count_tokens", self._count_tokens, methods=["POST"]),
                Route("/{path:path}", self._elsewhere, methods=["HEAD", "GET", "POST", "PUT", "PATCH", "DELETE"]),
            ],
            exception_handlers={ServerEnds: self._leave},
        )

    async def _leave(self, request: Request, _error: Exception) -> Response:
        await self._server.cut(request.scope)
        return Response()  # nobody can read it

    async def _root(self, request: Request) -> Response:
        seen = _seen(request)
        self._api.arrived(seen)
        self._api.answered(seen, 200)
        return Response()

    async def _elsewhere(self, request: Request) -> Response:
        seen = _seen(request)
        self._api.arrived(seen)
        return self._failed(seen, Fail(404, "not_found_error", "Not found"))

    async def _count_tokens(self, request: Request) -> Response:
        seen = _seen(request)
        body = await request.body()
        self._api.arrived(seen)
        reply = _credential_fault(request) or self._api.decide(seen.fingerprint, None)
        seen.reply = _kind(reply)
        if isinstance(reply, Fail | UsageLimit):
            return self._failed(seen, reply)
        if isinstance(reply, Hang | Cut):
            return _Silent(self._server, reply)
        self._api.answered(seen, 200)
        return _json({"input_tokens": 1 + len(body) // 4}, 200, {"request-id": self._request_id()})

    async def _messages(self, request: Request) -> Response:
        seen = _seen(request)
        try:
            wanted = msgspec.json.decode(await request.body(), type=MessagesRequest)
        except msgspec.DecodeError as error:
            self._api.arrived(seen)
            return self._failed(seen, Fail(400, "invalid_request_error", str(error)))
        conversation = conversation_of(wanted, seen.user_agent)
        seen.model, seen.script, seen.aside = wanted.model, conversation.script, conversation.aside
        self._api.arrived(seen)
        reply = _credential_fault(request) or self._api.decide(seen.fingerprint, conversation)
        seen.reply = _kind(reply)
        if isinstance(reply, Fail | UsageLimit):
            return self._failed(seen, reply)
        if isinstance(reply, Hang | Cut) and reply.moment is Moment.BEFORE_ANSWER:
            return _Silent(self._server, reply)
        headers = {"request-id": self._request_id()}
        if isinstance(reply, Text | Tool):
            headers |= reply.headers
            if reply.gate is not None:
                await self._gate(reply.gate)
        self._api.answered(seen, 200)
        unique = f"{next(self._ids):08d}"
        content = list(_content(reply, conversation.position, unique))
        head: _Fields = {
            "id": f"msg_standin{unique}",
            "type": "message",
            "role": "assistant",
            "model": wanted.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": 1},
        }
        if wanted.stream or isinstance(reply, Hang | Cut):
            events = self._events(request.scope, reply, head, content)
            return StreamingResponse(events, 200, headers, "text/event-stream")
        if isinstance(reply, Text):
            await self._server.pause(reply.over_seconds)
        usage = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS}
        return _json(head | {"content": content, "stop_reason": _stop_reason(reply), "usage": usage}, 200, headers)

    async def _events(
        self, scope: Scope, reply: Reply, head: _Fields, content: Sequence[_Fields]
    ) -> AsyncIterator[bytes]:
        try:
            async for event in self._all_events(scope, reply, head, content):
                yield event
        except ServerEnds:
            await self._server.cut(scope)

    async def _all_events(
        self, scope: Scope, reply: Reply, head: _Fields, content: Sequence[_Fields]
    ) -> AsyncIterator[bytes]:
        if isinstance(reply, Hang | Cut) and reply.moment is Moment.AFTER_HEADERS:
            yield b": headers leave with the first bytes\n\n"
            await self._fall_silent(scope, reply)
            return
        yield _event("message_start", message=head)
        for index, block in enumerate(content):
            if block["type"] == "tool_use":
                yield _event("content_block_start", index=index, content_block=block | {"input": {}})
                arguments = {"type": "input_json_delta", "partial_json": msgspec.json.encode(block["input"]).decode()}
                yield _event("content_block_delta", index=index, delta=arguments)
            else:
                yield _event("content_block_start", index=index, content_block=block | {"text": ""})
                async for piece in self._pieces(reply, str(block["text"])):
                    delta = {"type": "text_delta", "text": piece}
                    yield _event("content_block_delta", index=index, delta=delta) if piece else _event("ping")
            if isinstance(reply, Hang | Cut):
                await self._fall_silent(scope, reply)
                return
            yield _event("content_block_stop", index=index)
        ended = {"stop_reason": _stop_reason(reply), "stop_sequence": None}
        yield _event("message_delta", delta=ended, usage={"output_tokens": OUTPUT_TOKENS})
        yield _event("message_stop")

    async def _pieces(self, reply: Reply, text: str) -> AsyncIterator[str]:
        """Cut a text into the pieces in which it is streamed; an empty one stands for a ping."""
        if not isinstance(reply, Text) or reply.over_seconds <= 0 or not text:
            yield text
            return
        size = -(-len(text) // max(1, round(reply.over_seconds / reply.piece_seconds)))
        starts = range(0, len(text), size)
        for start in starts:
            yield text[start : start + size]
            await self._server.pause(reply.over_seconds / len(starts))
            if reply.pings:
                yield ""

    async def _gate(self, name: str) -> None:
        opened, loop = asyncio.Event(), asyncio.get_running_loop()
        self._api.when_open(name, lambda: _call_in(loop, opened))
        await self._server.until(opened.wait())

    async def _fall_silent(self, scope: Scope, reply: Hang | Cut) -> None:
        if isinstance(reply, Hang):
            await self._server.pause(None)
        await self._server.cut(scope)

    def _failed(self, seen: SeenRequest, fail: Fail | UsageLimit) -> Response:
        request_id = self._request_id()
        error = {"type": fail.type, "message": fail.message}
        self._api.answered(seen, fail.status)
        headers = fail.headers_at(time.time()) | {"request-id": request_id}
        return _json({"type": "error", "error": error, "request_id": request_id}, fail.status, headers)

    def _request_id(self) -> str:
        return f"req_standin{next(self._ids):08d}"


class _Silent(Response):
    """Answer nothing: hang until the client leaves or the server ends, or close the connection at once."""

    def __init__(self, server: LoopbackServer, reply: Hang | Cut) -> None:
        super().__init__()
        self._server = server
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 -- nothing is sent
        if isinstance(self._reply, Hang):
            with contextlib.suppress(ServerEnds):
                await self._server.until(receive())
        await self._server.cut(scope)


def _call_in(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: whoever waited went with it
        loop.call_soon_threadsafe(event.set)


def _seen(request: Request) -> SeenRequest:
    bearer, api_key = _credentials(request)
    return SeenRequest(
        at=time.monotonic(),
        method=request.method,
        path=request.url.path,
        bearer=bearer.fingerprint if bearer else None,
        api_key=api_key.fingerprint if api_key else None,
        beta=request.headers.get("anthropic-beta", ""),
        user_agent=request.headers.get("user-agent", ""),
    )


def _credentials(request: Request) -> tuple[Token | None, Token | None]:
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    api_key = request.headers.get("x-api-key", "")
    return Token(bearer) if bearer and scheme.lower() == "bearer" else None, Token(api_key) if api_key else None


def _credential_fault(request: Request) -> Reply | None:
    """
    Refuse what the API refuses by its form, whatever the token may do.

    Source: reports of OAuth tokens that look bad behind proxies which drop ``anthropic-beta``, Claude Code 1.0.83.
    """
    bearer, api_key = _credentials(request)
    if api_key is not None:
        return FAULTS["invalid_api_key"] if api_key.secret.startswith("sk-ant-oat") else None
    if bearer is None:
        return FAULTS["no_credential"]
    if bearer.kind is TokenKind.API_KEY:
        return FAULTS["invalid"]
    with_beta = OAUTH_BETA in request.headers.get("anthropic-beta", "")
    return None if with_beta else FAULTS["oauth_not_supported"]


def _kind(reply: Reply) -> str:
    return str(reply.__struct_config__.tag)


def _stop_reason(reply: Reply) -> str:
    return "tool_use" if isinstance(reply, Tool) else "end_turn"


def _content(reply: Reply, position: int, unique: str) -> Iterator[_Fields]:
    if isinstance(reply, Tool):
        if reply.text is not None:
            yield {"type": "text", "text": reply.text}
        identity = tool_use_id(position, unique)
        yield {"type": "tool_use", "id": identity, "name": reply.name, "input": reply.arguments}
    else:
        yield {"type": "text", "text": reply.text if isinstance(reply, Text) else "The beginning of a text"}


def _json(body: _Fields, status: int, headers: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def _event(kind: str, **fields: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode({"type": kind} | fields))


class ScriptFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    What ``--script`` reads: the arguments of the methods of :class:`MessagesApi` with these names, as JSON.

    Attributes:
        tokens: For :meth:`MessagesApi.on`; an empty list is :meth:`MessagesApi.accept`.
    """

    scripts: dict[str, list[Reply | str]] = {}
    tokens: dict[str, list[Reply | str]] = {}
    default: list[Reply | str] = []
    other_tokens: list[Reply | str] = []

    def tell(self, api: MessagesApi) -> None:
        """
        Tell *api* all of it.

        Raises:
            ValueError: A fault has an unknown name, or a script goes on after a text.
        """
        for name, replies in self.scripts.items():
            api.script(name, *replies)
        for token, replies in self.tokens.items():
            api.on(token, *replies) if replies else api.accept(token)
        if self.default:
            api.default(*self.default)
        api.on_other_tokens(*self.other_tokens)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m agent_runtime.standins.messages_api", description="Messages API")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--script", type=Path, help="a JSON file: see ScriptFile")
    options = parser.parse_args(arguments)
    api = MessagesApi()
    if options.script is not None:
        try:
            msgspec.json.decode(options.script.read_bytes(), type=ScriptFile).tell(api)
        except (OSError, ValueError) as error:
            parser.error(f"--script: {error}")
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with serve(api, options.port) as base_url:
        sys.stdout.write(f"listening on {base_url}\n")
        sys.stdout.flush()
        signal.sigwait(ends)
    return 0


if __name__ == "__main__":
    sys.exit(main())
