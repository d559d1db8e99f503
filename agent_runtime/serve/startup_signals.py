"""Signals before the supervisor exists: they end the start after its present step, with the exit code of a drain."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class CalledOff(Exception):
    """A signal came while the supervisor started."""


class Start:
    """
    Record signals until the event loop handles them, and end the start between two steps.

    Without this a SIGTERM would kill us in the middle of a step, or, as PID 1, do nothing at all; and SIGINT would show
    a traceback. No exception comes out of the signal handler: a step that has begun ends as it should.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        for number in SIGNALS:
            signal.signal(number, self._note)

    def go_on(self) -> None:
        """
        Go on to the next step, or not.

        Called once more when the event loop has its handlers.

        Raises:
            CalledOff: A signal has come.
        """
        if self._signal is not None:
            raise CalledOff(f"called off by {signal.Signals(self._signal).name} while starting")

    def close(self) -> None:
        """End, also where the start did: from here on a signal changes nothing, as there is nothing left to end."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as handlers are called
        self._signal = self._signal or number
