"""
A running child: signal it, and end everything it has started.

Every function may be called from any thread and needs no event loop. Ending a child takes neither a fork nor a thread.
Processes are signalled through pidfds only.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable

import msgspec

from agent_runtime.process.containment import sweep as containment
from agent_runtime.process.containment.registry import AttemptProcesses, AttemptRegistry
from agent_runtime.process.containment.sweep import Layer, SweepReport
from agent_runtime.process.forkserver.server import ShimHandle
from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.linux import syscalls as linux
from agent_runtime.process.linux.cgroup import Group


class Exit(msgspec.Struct, frozen=True):
    """
    How the leader, which is the CLI's own process, has ended.

    Attributes:
        code: As :attr:`subprocess.Popen.returncode`; negative: killed by that signal; None: unknown.
    """

    code: int | None


class Child:
    """
    A running CLI and everything it starts. Made by :class:`agent_runtime.process.spawn.Spawner` only.

    Every method may be called from any thread, at any time and repeatedly; after :meth:`close` they do nothing.

    Attributes:
        started_at: Seconds since the epoch.
        pidfd: Readable as soon as the leader has ended.
        stdin: Non-blocking descriptor of the pipe, like ``stdout`` and ``stderr``; only this class closes them.
        oom_in_container: Returns whether the kernel has killed a process in the container for lack of memory, since
            before the child began.
    """

    def __init__(
        self,
        handle: ShimHandle,
        pipes: tuple[int, int, int],
        attempt: AttemptProcesses,
        registry: AttemptRegistry,
        *,
        layers: tuple[Layer, ...],
        group: Group | None,
    ) -> None:
        self.pid = handle.pid
        self.started_at = handle.started_at
        self.pidfd = handle.pidfd
        self.stdin, self.stdout, self.stderr = pipes
        self._handle = handle
        self._attempt = attempt
        self._registry = registry
        self._layers = layers
        self._group = group
        self._lock = threading.Lock()
        self._open: set[int] = set(pipes)
        self._is_open = True
        self._exit: Exit | None = None
        self.oom_in_container: Callable[[], bool] = lambda: False

    def __repr__(self) -> str:
        state = "running" if self._exit is None else f"exit {self._exit.code}"
        return f"<Child {self.pid} {state}{'' if self._is_open else ', closed'}>"

    @property
    def mark(self) -> str:
        """The value that every descendant carries in its environment."""
        return self._attempt.mark

    @property
    def oom_kills(self) -> tuple[bool, bool]:
        """
        Whether the kernel has killed, for lack of memory, a process of the attempt, and one of an unknown attempt.

        If the attempt has no counter of its own, a kill in the container while no other attempt ran counts as its own.
        """
        if self._group is not None and self._group.counts_memory:
            return self._group.oom_kills() > 0, False
        if not self.oom_in_container():
            return False, False
        is_shared = self._attempt.ran_beside_another
        return not is_shared, is_shared

    @property
    def shim_pid(self) -> int | None:
        """Pid of the shim, the process above the leader that adopts orphans; None: the shim ended too early."""
        return None if self._attempt.shim is None else self._attempt.shim[0]

    @property
    def cpu_seconds(self) -> float | None:
        """The CPU seconds of all processes of an attempt that has ended; None: unknown."""
        return None if self.shim_pid is None else proc_table.reaped_cpu_seconds(self.shim_pid)

    def interrupt(self) -> bool:
        """
        Ask the leader to end, by SIGINT, and by SIGCONT in case it is stopped. Its descendants get no signal.

        Returns whether the leader still lived.
        """
        return self._send(signal.SIGINT, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the leader and those processes of the attempt that one pass finds; :meth:`sweep` ends the rest."""
        if not self._is_open:
            return
        self._attempt.ending = True
        self.poll()
        with linux.urgent():
            self._layers[0].kill_pass(thorough=False)
            self._send(signal.SIGKILL, group=True)

    def sweep(self, deadline: float) -> SweepReport:
        """
        Kill the rest of the attempt until two passes in a row find nothing.

        Args:
            deadline: When to give up, on the monotonic clock.
        """
        if not self._is_open:
            return SweepReport(killed=0, survivors=0, unattributed=0, seconds=0.0)
        self._attempt.ending = True
        is_empty = self._group is not None and not self._group.populated
        if not is_empty and not self._handle.shim_has_ended:
            # At once, because most are in it; the shim adopts the others, so that the passes find them.
            self._handle.kill_group()
        self.poll()
        with contextlib.nullcontext() if is_empty else linux.urgent():
            return containment.sweep(self._layers, deadline)

    def poll(self) -> Exit | None:
        """Return how the leader has ended; None while it lives."""
        with self._lock:
            if self._exit is None and self._is_open and linux.has_ended(self.pidfd):
                status = self._handle.status()
                self._exit = Exit(None if status is None else os.waitstatus_to_exitcode(status))
            return self._exit

    def finish(self, within_seconds: float) -> tuple[Exit | None, SweepReport]:
        """
        Wait for the end of a short program, end everything that is left of it, and close.

        Args:
            within_seconds: How long to wait for the leader, and again for the sweep.
        """
        try:
            select.select([self.pidfd], [], [], within_seconds)
            ended = self.poll()
            return ended, self.sweep(time.monotonic() + within_seconds)
        finally:
            self.close()

    def close_stdin(self) -> None:
        """Close our end of the child's stdin, so that the child reads an end of file."""
        with self._lock:
            self._close(self.stdin)

    def close(self) -> None:
        """Close all descriptors and count the attempt as ended; its leftovers have no owner from now on."""
        self.poll()
        with self._lock:
            for descriptor in tuple(self._open):
                self._close(descriptor)
            if self._is_open:
                self._is_open = False
                self._handle.close()
                if self._group is not None:
                    self._group.remove()
        self._registry.remove(self._attempt)

    def _send(self, *numbers: int, group: bool = False) -> bool:
        with self._lock:  # the number of a closed descriptor may already be another attempt's
            if not self._is_open or self._exit is not None:
                return False
            if group:
                for number in numbers:
                    linux.send_to_group(self.pidfd, number)
            if linux.has_ended(self.pidfd):
                return False
            # The first signal may end the leader, and its shim may reap it before the next signal.
            was_there, *_ = [linux.send(self.pidfd, number) for number in numbers]
            return was_there

    def _close(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.remove(descriptor)
            os.close(descriptor)
