"""Tell any number of waiting tasks that something has changed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Change:
    """Let any number of tasks wait for the next change of something; holds nothing for the slow."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Wake everybody who waits."""
        self._event.set()
        self._event = asyncio.Event()

    def wait(self) -> Coroutine[Any, Any, bool]:
        """
        Wait for the next :meth:`tell` after this call, whenever the result is awaited.

        So what is looked at between the call and the await cannot change unnoticed.
        """
        return self._event.wait()
