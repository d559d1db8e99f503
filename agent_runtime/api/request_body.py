"""
The bodies of requests: read up to a limit, and processed without blocking the event loop.

The body of a task is parsed by ``model.task_reading``, that of ``POST /api/credentials/reload-token`` here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from agent_runtime.api.schema.bodies import NewToken
from agent_runtime.errors import InvalidRequest, TooLarge
from agent_runtime.model.json_bounds import check_json_bounds
from agent_runtime.model.task_reading import unknown_names
from agent_runtime.model.tokens import Token
from agent_runtime.secret import content as secret_content
from agent_runtime.secret.content import SecretContent

log = logging.getLogger(__name__)

INLINE_BYTES = 64 * 1024
"""A body up to this size takes less time to process than to pass to a thread."""

AT_ONCE = 2
"""How many long bodies are processed at once; each takes several times its size, and a thread that others wait for."""

T = TypeVar("T")


class BodyReader:
    """
    Read bodies, and process the long ones in a thread.

    Args:
        limit_bytes: The longest body that is accepted.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def read(self, request: Request, work: Callable[[bytes], T]) -> T:
        """
        Read the body and return the result of *work* on it.

        Raises:
            TooLarge: The body is longer than the limit.
            InvalidRequest: The body was cut off.
        """
        body = await self._body(request)
        if len(body) <= INLINE_BYTES:
            return work(body)
        async with self._turns:
            return await asyncio.to_thread(work, body)

    async def _body(self, request: Request) -> bytes:
        limit = self._limit_bytes
        too_large = TooLarge(f"the body is longer than {limit} bytes; send less, or raise AGENT_RUNTIME_BODY_LIMIT")
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise too_large
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
        except ClientDisconnect:
            raise InvalidRequest("the body was cut off; send it again") from None
        return bytes(body)


def token_in(body: bytes, *, strict: bool, redact: Callable[[str], str]) -> Token | None:
    """
    Read the token from a request's body; None: the body has none, so the secret file is only to be read again.

    Args:
        strict: Unknown fields are an error; otherwise they are logged and ignored.
        redact: Removes tokens from the names of unknown fields.

    Raises:
        InvalidRequest: The body is not usable. The message names the field, and never repeats its value.
    """
    if not body.strip():
        return None
    check_json_bounds(body)
    try:
        sent: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        sent = None
    if not isinstance(sent, dict) or not isinstance(sent.get("token", ""), str):
        raise InvalidRequest("token: must be a string in a JSON object; send it, or an empty body to read the file")
    if not isinstance(sent.get("remove_api_key"), bool | None):
        raise InvalidRequest("remove_api_key: must be true or false; leave it out, it changes nothing here")
    if "token" not in sent and not sent.keys() <= set(NewToken.__struct_fields__):
        raise InvalidRequest("token: is missing; send it, or an empty body to read the file again")
    if ignored := unknown_names(sent, NewToken.__struct_fields__, strict=strict, redact=redact):
        log.warning("unknown fields ignored: %s", ", ".join(ignored))
    return _usable(sent["token"]) if "token" in sent else None


def _usable(text: str) -> Token:
    content = secret_content.parse(text.encode(errors="replace"))
    if not isinstance(content, SecretContent):
        raise InvalidRequest(f"token: {content.reason}; send the token alone, as it was given out")
    for warning in content.warnings:
        log.warning("reload-token: %s", warning)
    return content.token
