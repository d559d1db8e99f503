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
import functools
import itertools
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from agent_runtime.model.tokens import OAUTH_BETA, Token, TokenKind
from agent_runtime.standins.messages_api.body import (
    EVENT_STREAM,
    JSON,
    ModelAnswer,
    Pieces,
    beginning,
    error_body,
    event,
    quarters,
)
from agent_runtime.standins.messages_api.conversation import MessagesRequest, conversation_of
from agent_runtime.standins.messages_api.loopback import Connection, Request, serving
from agent_runtime.standins.messages_api.policy import MessagesApi, SeenRequest
from agent_runtime.standins.messages_api.script import (
    FAULTS,
    Cut,
    Fail,
    Hang,
    Partial,
    Raw,
    Reply,
    StreamError,
    Text,
    Tool,
)

MESSAGES = "/v1/messages"
COUNT_TOKENS = f"{MESSAGES}/count_tokens"


def serve(api: MessagesApi, port: int = 0, *, unix_socket: Path | None = None) -> AbstractContextManager[str]:
    """
    Serve *api* on loopback while the block lasts; yields the base URL, for ``ANTHROPIC_BASE_URL``.

    Args:
        unix_socket: Serve plain HTTP on this socket instead, for ``ANTHROPIC_UNIX_SOCKET``: the CLI (2.1.114 and later)
            then believes that it talks to the API itself, and does all that it does there.
    """
    return serving(_Responder(api).answer_requests, port, unix_socket)


class _Responder:
    """Turn the replies that the API decides on into HTTP answers."""

    def __init__(self, api: MessagesApi) -> None:
        self._api = api
        self._ids = itertools.count(1)

    async def answer_requests(self, connection: Connection) -> None:
        """Answer the requests of one connection until it is closed."""
        while (request := await connection.read_request()) is not None:
            seen = _seen(request)
            if request.path == "/" and request.method in {"HEAD", "GET"}:
                await self._answer(connection, seen, Raw(200))
            elif request.path in {MESSAGES, COUNT_TOKENS} and request.method == "POST":
                await self._messages(connection, request, seen)
            else:
                await self._answer(connection, seen, Fail(404, "not_found_error", "Not found"))

    async def _messages(self, connection: Connection, request: Request, seen: SeenRequest) -> None:
        try:
            wanted = msgspec.json.decode(request.body, type=MessagesRequest)
        except msgspec.DecodeError as error:
            await self._answer(connection, seen, Fail(400, "invalid_request_error", str(error)))
            return
        conversation, counts = conversation_of(wanted, seen.user_agent), request.path == COUNT_TOKENS
        seen.model = wanted.model
        if not counts:
            seen.script, seen.aside = conversation.script, conversation.aside
            seen.body = request.body if self._api.keeps_bodies else b""
        reply = _credential_fault(request) or self._api.decide(
            seen.fingerprint, conversation, wanted.model, counts_tokens=counts
        )
        position = None if isinstance(reply, Partial) else conversation.position

        def body_of(content: Text | Tool) -> bytes | Pieces:
            if counts:
                return msgspec.json.encode({"input_tokens": 1 + len(request.body) // 4})
            on_usage = functools.partial(self._api.record_usage, seen)
            message = ModelAnswer(content, wanted.model, f"{next(self._ids):08d}", position, on_usage)
            return message.stream() if wanted.stream else message.whole()

        await self._answer(connection, seen, reply, body_of)

    async def _answer(
        self,
        connection: Connection,
        seen: SeenRequest,
        reply: Reply,
        good: Callable[[Text | Tool], bytes | Pieces] = lambda _content: b"",
    ) -> None:
        """
        Record a request, and answer it with *reply*.

        Args:
            good: Makes the body, or the stream, of an answer of the model.
        """
        seen.reply = str(reply.__struct_config__.tag)
        self._api.record_arrival(seen)
        partial = reply if isinstance(reply, Partial) else None
        if partial is not None and partial.is_before_answer:
            await _break_off(connection, partial)
            return
        content = reply.of if isinstance(reply, Partial) else reply
        if isinstance(content, Text | Tool) and content.gate is not None:
            await asyncio.shield(asyncio.wrap_future(self._api.gate(content.gate)))
        request_id = f"req_standin{next(self._ids):08d}"
        headers = {"content-type": JSON} | ({} if isinstance(content, Raw) else {"request-id": request_id})
        if isinstance(content, Text | Tool):
            status, body = 200, good(content)
        else:
            status = content.status
            body = content.content if isinstance(content, Raw) else error_body(content, request_id)
            headers |= {name.lower(): value for name, value in content.headers.items()}
        if isinstance(reply, StreamError) and isinstance(body, bytes):  # no stream: the error alone
            status, body, partial = reply.status, error_body(reply, request_id), None
        self._api.record_answer(seen, status)
        if not isinstance(body, bytes):
            headers["content-type"], pieces = EVENT_STREAM, body
        elif partial is not None:
            pieces = quarters(body)
        else:
            headers["content-length"], pieces = str(len(body)), iter([(body, 0.0)])
            if isinstance(content, Text):
                await asyncio.sleep(content.over_seconds)
        await connection.begin_answer(status, headers)
        for data, pause_seconds in pieces if partial is None else beginning(pieces, partial):
            await connection.send(data)
            await asyncio.sleep(pause_seconds)
        if isinstance(partial, StreamError):
            error = {"type": partial.type, "message": partial.message}
            await connection.send(event("error", error=error, request_id=request_id))
        if isinstance(partial, Hang | Cut):
            await _break_off(connection, partial)
        else:
            await connection.end_answer()


async def _break_off(connection: Connection, partial: Partial) -> None:
    """Hang until the client leaves, or close the connection at once."""
    if isinstance(partial, Hang):
        await connection.wait_until_client_closes()
    connection.close()


def _seen(request: Request) -> SeenRequest:
    bearer, api_key = _credentials(request)
    return SeenRequest(
        at=time.monotonic(),
        method=request.method,
        path=request.path,
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


class ScriptFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    What ``--script`` reads: the arguments of the methods of :class:`MessagesApi` with these names, as JSON.

    Attributes:
        tokens: Replies by token for :meth:`MessagesApi.on`; an empty list is :meth:`MessagesApi.accept`.
        models: Replies by model for :meth:`MessagesApi.on_model`.
        count_tokens: Replies for :meth:`MessagesApi.on_count_tokens`.
    """

    scripts: dict[str, list[Reply | str]] = {}
    tokens: dict[str, list[Reply | str]] = {}
    models: dict[str, list[Reply | str]] = {}
    count_tokens: list[Reply | str] = []
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
        api.on_count_tokens(*self.count_tokens)
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
