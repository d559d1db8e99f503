"""A request that waits in the relay because its token, the one in use, was refused or met a limit."""

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
    A request that is held before its first byte; made on the relay's loop, decided from any thread.

    Attributes:
        detection: What the API said.
        body: The beginning of the API's answer.
        generation: The one that the request carried.
        limit_seconds: How long the CLI waits for an answer, at least.
        is_over: It was released, or the child has hung up.
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
        """End it: the request is sent again with the token in use then, or the answer is passed on as it was."""
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(self._release, replays)

    async def wait(self) -> bool:
        """Wait for the release; return whether the request is sent again."""
        try:
            return await self._released
        finally:
            self.is_over = True
            self._on_end(self)

    def _release(self, replays: bool) -> None:
        if not self._released.done():
            self._released.set_result(replays)
