"""Signals before the supervisor exists: they end the start at once, with the exit code of a drain."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STEP_SECONDS = 2.0
"""How long the current step may still take; the next start removes what it leaves behind."""


class CalledOff(Exception):
    """A signal came while the supervisor started."""


class Start:
    """
    Record signals until the event loop handles them, and end the start between two steps.

    Without this a SIGTERM would kill us in the middle of a step, or, as PID 1, do nothing at all; and SIGINT would show
    a traceback. No exception comes out of the signal handler: a step that has begun ends as it should. One that hangs
    in the kernel, on a dead file system say, keeps Python from running a handler: then the process ends from a thread,
    which reads the signal from the interpreter's wake-up descriptor.

    Source: https://docs.python.org/3/library/signal.html#execution-of-python-signal-handlers
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._over = threading.Event()
        self._wakeup_reader, self._wakeup_writer = socket.socketpair()
        self._wakeup_writer.setblocking(False)
        self._watch = threading.Thread(target=self._end_by_force, name="start", daemon=True)
        for number in SIGNALS:
            signal.signal(number, self._note)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        self._watch.start()

    def go_on(self) -> None:
        """
        Go on to the next step, or not.

        Raises:
            CalledOff: A signal has come.
        """
        if self._signal is not None:
            raise CalledOff(_called_off_by(self._signal))

    def done(self) -> None:
        """
        Hand the signals over to the event loop, which must have its handlers by now.

        Raises:
            CalledOff: A signal has come before it had.
        """
        self._stop_watching()
        self.go_on()

    def close(self) -> None:
        """End, also where the start did: from here on a signal changes nothing, as there is nothing left to end."""
        if not self._over.is_set():
            signal.set_wakeup_fd(-1)
            self._stop_watching()
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _stop_watching(self) -> None:
        self._over.set()
        self._wakeup_writer.close()
        self._watch.join()
        self._wakeup_reader.close()

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as handlers are called
        self._signal = self._signal or number

    def _end_by_force(self) -> None:
        while numbers := self._wakeup_reader.recv(16):
            called_off_by = next((number for number in numbers if number in SIGNALS), None)
            if called_off_by is not None and not self._over.wait(STEP_SECONDS):
                with contextlib.suppress(OSError):
                    os.write(2, f"agent-runtime: {_called_off_by(called_off_by)}\n".encode())
                os._exit(0)


def _called_off_by(number: int) -> str:
    return f"called off by {signal.Signals(number).name} while starting"
