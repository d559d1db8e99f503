"""
Executions' processes as anybody on the machine sees them: whether they are gone is looked up, not believed.

They are known by ``AGENT_RUNTIME_EXECUTION_ID`` in their environment and by the pid in the record.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING

import psutil

from agent_runtime.command import EXECUTION_ID_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Self


def marked(execution_ids: Iterable[str]) -> Iterator[psutil.Process]:
    """Find the living processes that carry one of these ids, by a look at every process there is."""
    wanted = frozenset(execution_ids)
    for process in psutil.process_iter():
        if _mark(process) in wanted:
            yield process


def _mark(process: psutil.Process) -> str | None:
    # A process that has ended, reaped or not, has no environment; one of another user is none of ours.
    with contextlib.suppress(psutil.Error, OSError):
        mark: str | None = process.environ().get(EXECUTION_ID_VARIABLE)
        return mark
    return None


def kill_marked(execution_ids: Iterable[str]) -> int:
    """End what is left of these executions; tells how many processes that were."""
    killed = 0
    for process in list(marked(execution_ids)):
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
            killed += 1
    return killed


class Watch:
    """Watch one execution's processes end."""

    def __init__(self, execution_id: str) -> None:
        self._execution_id = execution_id
        self._pidfds: dict[int, int] = {}
        self._seen: set[tuple[int, float]] = set()
        self._last_end_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._pidfds.values():
            os.close(descriptor)
        self._pidfds.clear()

    @property
    def count(self) -> int:
        """How many processes have been watched so far."""
        return len(self._seen)

    def add(self, pid: int) -> None:
        """Watch this process too, if it is still there and one of the execution's."""
        with contextlib.suppress(psutil.Error):
            self._take(psutil.Process(pid))

    def look(self) -> int:
        """Take in every process of the execution there is now; tells how many were found."""
        found = list(marked([self._execution_id]))
        for process in found:
            self._take(process)
        return len(found)

    def _take(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if (process.pid, process.create_time()) in self._seen:
                return
            descriptor = os.pidfd_open(process.pid)
            if _mark(process) != self._execution_id or not process.is_running():
                os.close(descriptor)
                return
            self._seen.add((process.pid, process.create_time()))
            self._pidfds[process.pid] = descriptor

    def wait_until_gone(self, timeout_seconds: float) -> float | None:
        """
        Wait until no process of the execution is left.

        Two looks in a row must find nothing: one in the middle of ``execve`` shows an empty environment.

        Returns:
            When the last of them ended, on :func:`time.monotonic`; None: they did not all end in time.
        """
        until = time.monotonic() + timeout_seconds
        empty_looks = 0
        while empty_looks < 2:
            if not self._wait_for_ends(until):
                return None
            empty_looks = 0 if self.look() else empty_looks + 1
        return self._last_end_at

    def _wait_for_ends(self, until: float) -> bool:
        while self._pidfds:
            left_seconds = until - time.monotonic()
            if left_seconds <= 0:
                return False
            poll = select.poll()
            for descriptor in self._pidfds.values():
                poll.register(descriptor, select.POLLIN)
            ended = {descriptor for descriptor, _ in poll.poll(left_seconds * 1000)}
            for pid, descriptor in list(self._pidfds.items()):
                if descriptor in ended:
                    self._last_end_at = time.monotonic()
                    os.close(self._pidfds.pop(pid))
        return time.monotonic() < until
