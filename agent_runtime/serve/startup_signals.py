"""Signals before the supervisor exists: they end the start after its present step, with the exit code of a drain."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = tuple(
    number
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
)
"""The signals that end a supervisor. SIGHUP comes when its terminal is closed; ``nohup`` has it ignored."""


class CalledOff(Exception):
    """A signal ended the start of the supervisor."""


class Start:
    """
    Record signals until the event loop handles them, so that they end the start between two of its steps.

    Without this a SIGTERM would kill the process in the middle of a step, or, for PID 1, do nothing at all; and SIGINT
    would show a traceback. The signal handler raises nothing, so a step that has begun is completed.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        for number in SIGNALS:
            signal.signal(number, self._note)

    def raise_if_called_off(self) -> None:
        """
        Raise if a signal has come; called between two steps, and when the event loop has its own signal handlers.

        Raises:
            CalledOff: A signal has come.
        """
        if self._signal is not None:
            raise CalledOff(f"called off by {signal.Signals(self._signal).name} while starting")

    def close(self) -> None:
        """Ignore signals from now on: the supervisor or its start has ended, so a signal has nothing to end."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as handlers are called
        self._signal = self._signal or number
