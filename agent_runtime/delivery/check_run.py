"""A process of the CLI that is run to check how the CLI behaves, and the errors of such a check."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from agent_runtime.claude.last_words import LastWords
from agent_runtime.claude.log_entries import LogEntry
from agent_runtime.errors import AgentRuntimeError, ErrorClass
from agent_runtime.evidence.detector import Channel
from agent_runtime.evidence.verdict import Ending, verdict
from agent_runtime.process.child import Child
from agent_runtime.process.framing import Lines
from agent_runtime.process.pipes import Pipes

TIMEOUT_SECONDS = 30.0
"""The limit for each process; a current CLI needs one to two seconds."""

TURN_SECONDS = 0.005
CATCH_UP_SECONDS = 0.25
SWEEP_SECONDS = 5.0
LINE_LIMIT_BYTES = 64 * 1024


class ReloadCheckFailed(AgentRuntimeError):
    """The check has no result; that says nothing about the CLI."""


class DoesNotRun(ReloadCheckFailed):
    """The CLI ended by itself, with an error, each time it was started; the message quotes it."""


class EndedEarly(ReloadCheckFailed):
    """The CLI ended before it had made a request."""


class CheckRun:
    """
    A process of the CLI, whose output is read until a condition holds.

    Args:
        on_stdout: Called with each line of stdout, without its newline.
        cancelled: Ends the check when it is set.
    """

    def __init__(
        self,
        child: Child,
        stdin_bytes: bytes,
        on_stdout: Callable[[bytes], None],
        cancelled: threading.Event,
    ) -> None:
        self._on_stdout = on_stdout
        self._cancelled = cancelled
        self._give_up_at = time.monotonic() + TIMEOUT_SECONDS
        self._child = child
        self._last_words = LastWords()
        try:
            self._pipes = Pipes(
                child,
                stdin_bytes=stdin_bytes,
                frame_limit_bytes=LINE_LIMIT_BYTES,
                on_lines=self._lines,
                on_quiet=lambda *_: None,
            )
        except BaseException:
            self.close()
            raise

    def read_until(self, condition: Callable[[], bool]) -> bool:
        """
        Read output until *condition* holds; return False if the process ends before.

        Raises:
            ReloadCheckFailed: The process took too long, or the check was cancelled.
        """
        while not condition():
            if self._cancelled.is_set():
                raise ReloadCheckFailed("the check was cancelled")
            if time.monotonic() >= self._give_up_at:
                raise ReloadCheckFailed("the CLI took too long")
            if self._pipes.leader_gone:
                self._pipes.catch_up(CATCH_UP_SECONDS)
                return condition()
            self._pipes.turn(TURN_SECONDS)
        return True

    @property
    def fault(self) -> str | None:
        """The error that the CLI ended with; None: it still runs, succeeded, was killed, or lacked memory."""
        ended = self._child.poll()
        if ended is None or ended.code == 0:
            return None
        reached = verdict(Ending(ended.code, began=False, last_words=self._last_words.most_informative or None))
        return reached.detail if reached.error_class in (ErrorClass.SPAWN, ErrorClass.LOST_RESULT) else None

    def require(self, condition: Callable[[], bool]) -> None:
        """
        Read output until *condition* holds.

        Raises:
            ReloadCheckFailed: The process took too long, or the check was cancelled.
            EndedEarly: The process ended before the condition held.
        """
        if not self.read_until(condition):
            raise EndedEarly("the CLI ended before it had made a request" + (f": {self.fault}" if self.fault else ""))

    def close(self) -> None:
        """End the process and those that it has started."""
        self._child.kill()
        self._child.sweep(time.monotonic() + SWEEP_SECONDS)
        self._child.close()

    def _lines(self, channel: Channel, lines: Lines, _read_at: float) -> None:
        for line in lines:
            data = line.removesuffix(b"\n")
            if channel is Channel.STDOUT:
                self._on_stdout(data)
            else:
                self._last_words.add(LogEntry.of(data))
