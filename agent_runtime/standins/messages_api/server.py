"""
A stand-in of Anthropic's Messages API on loopback, good enough for the real Claude Code CLI.

    api = MessagesApi()
    api.on(OLD, "expired")                                         # what a token gets
    api.script("build", Tool(command="make"), Text(text="built"))  # what "[[script:build]]" in a prompt gets
    with serve(api) as base_url:                                   # ANTHROPIC_BASE_URL
        ...
        api.on(NEW, "revoked")                                     # at any time, from any thread
        api.on_model("haiku", Raw(401, {"error": {"type": "key_model_access_denied"}}))  # a gateway's word on a model
        api.wait_for_requests(NEW, 2)

By itself: ``python -m agent_runtime.standins.messages_api --port 0 --script FILE.json``; the file is a
:class:`ScriptFile`, for instance
``{"scripts": {"build": [{"kind": "tool", "command": "make"}]}, "default": ["hang"]}``.

Before it looks at a token, it checks the credential's form as the real API does: an OAuth token needs the CLI's beta
header, and is no API key.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import signal
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from agent_runtime.model.tokens import Token, TokenKind
from agent_runtime.standins.messages_api.body import EVENT_STREAM, JSON, Message, beginning, error_body, event, quarters
from agent_runtime.standins.messages_api.conversation import MessagesRequest, conversation_of, model_of
from agent_runtime.standins.messages_api.loopback import LoopbackServer, ServerEnds
from agent_runtime.standins.messages_api.policy import MessagesApi, SeenRequest
from agent_runtime.standins.messages_api.script import (
    FAULTS,
    OAUTH_BETA,
    Cut,
    Fail,
    Hang,
    Raw,
    Reply,
    StreamError,
    Text,
    Tool,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from agent_runtime.standins.messages_api.body import Pieces


def serve(api: MessagesApi, port: int = 0, *, unix_socket: Path | None = None) -> AbstractContextManager[str]:
    """
    Serve *api* on loopback while the block lasts; yields the base URL, for ``ANTHROPIC_BASE_URL``.

    Args:
        unix_socket: Serve plain HTTP on this socket instead, for ``ANTHROPIC_UNIX_SOCKET``: the CLI (2.1.114 and later)
            then believes that it talks to the API itself, and does all that it does there.
    """
    server = LoopbackServer(port, unix_socket)
    app = _Application(api, server).asgi

    async def with_path(scope: Scope, receive: Receive, send: Send) -> None:
        # If a proxy is set, 2.1.197 sends the host in the path, even on a socket.
        if "://" in scope["path"]:
            scope["path"] = "/" + scope["path"].split("/", 3)[3]
        await app(scope, receive, send)

    return server.running(with_path)


class _Application:
    """The routes of the stand-in, which turn replies into HTTP answers."""

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
            exception_handlers={ServerEnds: self._leave, ClientDisconnect: self._leave},
        )

    async def _leave(self, request: Request, _error: Exception) -> Response:
        await self._server.cut(request.scope)
        return Response()  # the connection is closed

    async def _root(self, request: Request) -> Response:
        seen = _seen(request)
        self._api.record_arrival(seen)
        self._api.record_answer(seen, 200)
        return Response()

    async def _elsewhere(self, request: Request) -> Response:
        seen = _seen(request)
        self._api.record_arrival(seen)
        return await self._answer(request, seen, Fail(404, "not_found_error", "Not found"))

    async def _count_tokens(self, request: Request) -> Response:
        seen = _seen(request)
        asked = await request.body()
        seen.model = model_of(asked)
        self._api.record_arrival(seen)
        reply = _credential_fault(request) or self._api.decide_count(seen.fingerprint, seen.model)
        count = msgspec.json.encode({"input_tokens": 1 + len(asked) // 4})
        return await self._answer(request, seen, reply, lambda _content: count)

    async def _messages(self, request: Request) -> Response:
        seen = _seen(request)
        body = await request.body()
        seen.body = body if self._api.keeps_bodies else b""
        try:
            wanted = msgspec.json.decode(body, type=MessagesRequest)
        except msgspec.DecodeError as error:
            self._api.record_arrival(seen)
            return await self._answer(request, seen, Fail(400, "invalid_request_error", str(error)))
        conversation = conversation_of(wanted, seen.user_agent)
        seen.model, seen.script, seen.aside = wanted.model, conversation.script, conversation.aside
        self._api.record_arrival(seen)
        reply = _credential_fault(request) or self._api.decide(seen.fingerprint, conversation, wanted.model)
        position = None if isinstance(reply, Hang | Cut | StreamError) else conversation.position

        def body_of(content: Text | Tool) -> bytes | Pieces:
            on_usage = functools.partial(self._api.record_usage, seen)
            message = Message(content, wanted.model, f"{next(self._ids):08d}", position, on_usage)
            return message.stream() if wanted.stream else message.whole()

        return await self._answer(request, seen, reply, body_of)

    async def _answer(
        self,
        request: Request,
        seen: SeenRequest,
        reply: Reply,
        good: Callable[[Text | Tool], bytes | Pieces] = lambda _content: b"",
    ) -> Response:
        """
        Answer with *reply*.

        Args:
            good: Makes the body, or the stream, of an answer of the model.
        """
        seen.reply = _kind(reply)
        if isinstance(reply, Hang | Cut) and reply.is_before_answer:
            return _Silent(self._server, reply)
        content = reply.of if isinstance(reply, Hang | Cut | StreamError) else reply
        if isinstance(content, Text | Tool) and content.gate is not None:
            await self._gate(content.gate)
        request_id = f"req_standin{next(self._ids):08d}"
        headers = {} if isinstance(content, Raw) else {"request-id": request_id}
        if isinstance(content, Text | Tool):
            status, body = 200, good(content)
            headers |= content.headers
        elif isinstance(content, Raw):
            status, body = content.status, content.content
            headers |= content.headers
        else:
            status, body = content.status, error_body(content.type, content.message, request_id)
            headers |= content.headers_at(time.time())
        if isinstance(reply, StreamError) and isinstance(body, bytes):  # no stream: the error alone
            status, body, reply = reply.status, error_body(reply.type, reply.message, request_id), content
        self._api.record_answer(seen, status)
        if isinstance(body, bytes) and not isinstance(reply, Hang | Cut):
            if isinstance(content, Text):
                await self._server.pause(content.over_seconds)
            return Response(body, status, headers, JSON)
        media_type = JSON if isinstance(body, bytes) else EVENT_STREAM
        pieces = quarters(body) if isinstance(body, bytes) else body
        return StreamingResponse(self._sent(request.scope, reply, pieces, request_id), status, headers, media_type)

    async def _sent(self, scope: Scope, reply: Reply, pieces: Pieces, request_id: str) -> AsyncIterator[bytes]:
        try:
            for data, pause_seconds in (
                beginning(pieces, reply) if isinstance(reply, Hang | Cut | StreamError) else pieces
            ):
                yield data
                if pause_seconds:
                    await self._server.pause(pause_seconds)
            if isinstance(reply, StreamError):
                yield event("error", error={"type": reply.type, "message": reply.message}, request_id=request_id)
            elif isinstance(reply, Hang):
                await self._server.pause(None)
            elif isinstance(reply, Cut) and not reply.quietly:
                await self._server.cut(scope)
        except ServerEnds:
            await self._server.cut(scope)

    async def _gate(self, name: str) -> None:
        opened, loop = asyncio.Event(), asyncio.get_running_loop()
        self._api.when_open(name, lambda: _call_in(loop, opened))
        await self._server.until(opened.wait())


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
    with contextlib.suppress(RuntimeError):  # the loop is closed
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
    Return the API's refusal of a credential whose form is wrong, whatever the token; None: the form is right.

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


class ScriptFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    What ``--script`` reads: the arguments of the methods of :class:`MessagesApi` with these names, as JSON.

    Attributes:
        tokens: Replies by token for :meth:`MessagesApi.on`; an empty list is :meth:`MessagesApi.accept`.
        models: Replies by model for :meth:`MessagesApi.on_model`.
        count_tokens: Replies by token for :meth:`MessagesApi.on_count_tokens`; "*" stands for any other token.
    """

    scripts: dict[str, list[Reply | str]] = {}
    tokens: dict[str, list[Reply | str]] = {}
    models: dict[str, list[Reply | str]] = {}
    count_tokens: dict[str, list[Reply | str]] = {}
    default: list[Reply | str] = []
    other_tokens: list[Reply | str] = []

    def apply_to(self, api: MessagesApi) -> None:
        """
        Configure *api* as the file says.

        Raises:
            ValueError: A fault has an unknown name, or a script goes on after a text.
        """
        for name, replies in self.scripts.items():
            api.script(name, *replies)
        for token, replies in self.tokens.items():
            api.on(token, *replies) if replies else api.accept(token)
        for model, replies in self.models.items():
            api.on_model(model, *replies)
        for token, replies in self.count_tokens.items():
            api.on_count_tokens(*replies, token=None if token == "*" else token)  # noqa: S105 -- no token
        if self.default:
            api.default(*self.default)
        api.on_other_tokens(*self.other_tokens)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m agent_runtime.standins.messages_api", description="Messages API")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--script", type=Path, help="a JSON file of tokens, scripts and models: see docs/testing.md")
    options = parser.parse_args(arguments)
    api = MessagesApi()
    if options.script is not None:
        try:
            msgspec.json.decode(options.script.read_bytes(), type=ScriptFile).apply_to(api)
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
