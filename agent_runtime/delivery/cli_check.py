"""
Decide whether the CLI can be started here, for ``/readyz``, by its file and by how its last starts ended.

Nothing is started for this decision. Attempts report their starts, and so does ``delivery.reload_check``, which starts
the CLI before the first task does. After the CLI's file was replaced, earlier starts no longer count.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from agent_runtime.claude.executable import Binary, launch_fault
from agent_runtime.claude.last_words import is_resource_shortage
from agent_runtime.errors import ErrorClass, SpawnFailed
from agent_runtime.evidence.verdict import Ending, Verdict
from agent_runtime.process.spawn import NotSpawned, SpawnReason

STARTS = 3
"""After this many starts in a row that ended before the ``init`` frame, the CLI counts as broken."""

FORGET_SECONDS = 600.0
"""
After this time a failed start no longer makes the CLI count as broken, so that another task may start it.

Otherwise a backend that asks ``/readyz`` first would never send the task that succeeds.
"""

_OF_THE_FILE = {SpawnReason.NOT_FOUND, SpawnReason.NOT_EXECUTABLE}
_OF_THE_CLI = {ErrorClass.SPAWN, ErrorClass.LOST_RESULT, ErrorClass.SIGNAL}
"""Classes of an end before the ``init`` frame that blame the CLI, not the request, the API or lack of memory."""


class CliCheck:
    """
    Record starts, and decide whether the CLI that is there now can start; every method may be called from any thread.

    Args:
        search_path: In the form of the variable ``PATH``.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self, command: tuple[str, ...], search_path: str | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._command = command
        self._search_path = search_path
        self._lock = threading.Lock()
        self._version: str | None = None
        self._failures = 0
        self._failed_at = 0.0
        self._words = ""

    def require(self) -> None:
        """
        Raise if the CLI that is there now is known not to start.

        Raises:
            SpawnFailed: The reason.
        """
        version = Binary.of(self._command, self._search_path).key
        with self._lock:
            is_known = version == self._version
            if is_known and self._failures >= STARTS and self._clock() - self._failed_at < FORGET_SECONDS:
                raise SpawnFailed(self._words)
            if is_known and not self._failures:
                return
        if (reason := launch_fault(self._command, self._search_path)) is not None:
            raise SpawnFailed(f"the CLI {self._command[0]} cannot start: {reason}")

    def record_start(self) -> None:
        """Record that the CLI has started."""
        if self._version is not None and not self._failures:
            return
        version = self._version_or_none()
        with self._lock:
            self._version, self._failures = version, 0

    def record_failure(self, words: str, *, is_certain: bool = False) -> None:
        """
        Record that the CLI ended before its ``init`` frame.

        Args:
            words: The reason, for a person.
            is_certain: The next start will fail as well.
        """
        version = self._version_or_none()
        with self._lock:
            failures = self._failures if version == self._version else 0
            self._version, self._failures = version, STARTS if is_certain else failures + 1
            self._failed_at, self._words = self._clock(), words

    def record_failed_spawn(self, error: SpawnFailed) -> str:
        """Record that the operating system did not start the CLI, and return the reason for a person."""
        words = str(error)
        if isinstance(error, NotSpawned) and error.reason in _OF_THE_FILE:
            try:
                reason = launch_fault(self._command, self._search_path)
            except SpawnFailed:
                reason = None
            if reason is not None:
                words = f"{words}: {reason}"
            self.record_failure(words, is_certain=True)
        return words

    def record_end(self, ending: Ending, verdict: Verdict) -> None:
        """Record how an attempt ended; one that was stopped, or does not blame the CLI, does not count."""
        if ending.began or ending.result is not None or ending.last_error is not None:
            self.record_start()
        elif (
            ending.stop_reason is None
            and verdict.error_class in _OF_THE_CLI
            and not is_resource_shortage(ending.last_words or "")
        ):
            self.record_failure(f"the CLI's last {STARTS} starts ended before it had begun: {verdict.detail}")

    def _version_or_none(self) -> str | None:
        try:
            return Binary.of(self._command, self._search_path).key
        except SpawnFailed:
            return None
