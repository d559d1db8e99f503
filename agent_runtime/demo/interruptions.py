"""Ctrl-C and its like: they end the demo where it waits, and never in the middle of its cleaning up."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asks for the end; not an :class:`Exception`, so that nothing on the way takes it for a fault."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.number).name


class Interruptions:
    """
    Turn the first signal that asks for the end into :class:`Interrupted`; later ones change nothing.

    While the block lasts it owns the handlers of :data:`SIGNALS`, but for those that are ignored, as under ``nohup``;
    it must be entered in the main thread.
    """

    def __init__(self) -> None:
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._depth = 0
        self._waiting: int | None = None
        self._raised = False

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a signal that comes meanwhile wait until the block is left."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0 and self._waiting is not None and not self._raised:
                self._raised = True
                raise Interrupted(self._waiting)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if self._raised or self._waiting is not None:
            return
        self._waiting = number
        if self._depth == 0:
            self._raised = True
            raise Interrupted(number)
