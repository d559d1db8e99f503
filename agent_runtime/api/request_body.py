"""Read the bodies of requests up to a limit, and process them without blocking the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import ClientDisconnect

from agent_runtime.errors import InvalidRequest, TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

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
