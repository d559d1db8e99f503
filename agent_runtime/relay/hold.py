"""A request that waits in the relay because the token in use was refused or has reached a usage limit."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.evidence.detector import Detection
    from agent_runtime.secret.generations import Generation


class Hold:
    """
    A request that waits before the child gets a byte of an answer; made on the relay's loop, released from any thread.

    Args:
        on_end: Called on the relay's loop when the request is held no longer.

    Attributes:
        detection: What the API's answer says about the token.
        body: The beginning of the body of the API's answer.
        generation: The generation that the request carried.
        limit_seconds: The CLI waits at least this long for an answer.
        is_over: Whether the request was released, or the child has hung up.
    """

    def __init__(
        self,
        detection: Detection,
        body: bytes,
        generation: Generation,
        limit_seconds: float,
        on_end: Callable[[Hold], None],
    ) -> None:
        self.detection = detection
        self.body = body
        self.generation = generation
        self.limit_seconds = limit_seconds
        self.is_over = False
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._released: asyncio.Future[bool] = self._loop.create_future()

    def release(self, *, replays: bool) -> None:
        """End the hold: send the request again with the token in use then, or pass the API's answer on as it was."""
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(self._release, replays)

    async def wait(self) -> bool:
        """Wait for the release; return whether the request is to be sent again."""
        try:
            return await self._released
        finally:
            self.is_over = True
            self._on_end(self)

    def _release(self, replays: bool) -> None:
        if not self._released.done():
            self._released.set_result(replays)
