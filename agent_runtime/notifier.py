"""Tell any number of waiting tasks that something has changed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Notifier:
    """Let any number of tasks wait for the next change of something; holds nothing for the slow."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._coming: asyncio.Future[None] | None = None

    def notify(self) -> None:
        """Wake everybody who waits."""
        self._event.set()
        self._event = asyncio.Event()
        coming, self._coming = self._coming, None
        if coming is not None and not coming.done():
            coming.set_result(None)

    def coming(self) -> asyncio.Future[None]:
        """Return the next :meth:`tell` after this call: one for all, not to be cancelled, and cheap to wait for."""
        if self._coming is None:
            self._coming = asyncio.get_running_loop().create_future()
        return self._coming

    def wait(self) -> Coroutine[Any, Any, bool]:
        """
        Wait for the next :meth:`tell` after this call, whenever the result is awaited.

        So what is looked at between the call and the await cannot change unnoticed.
        """
        return self._event.wait()
