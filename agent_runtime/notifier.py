"""Wake any number of waiting tasks on a change."""

from __future__ import annotations

import asyncio


class Notifier:
    """Wake any number of waiting tasks at the next change; earlier changes are not stored."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def notify(self) -> None:
        """Wake all waiting tasks."""
        coming, self._next = self._next, None
        if coming is not None and not coming.done():
            coming.set_result(None)

    def next_change(self) -> asyncio.Future[None]:
        """Return a future of the next :meth:`notify`, shared by all callers: it must not be cancelled."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        return self._next

    def wait(self) -> asyncio.Future[None]:
        """Return a future of the next :meth:`notify` that belongs to the caller, who may cancel it."""
        return asyncio.shield(self.next_change())
