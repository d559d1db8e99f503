"""Signal processes that are known by pid and start time, and nobody else."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.linux import syscalls as linux

if TYPE_CHECKING:
    from agent_runtime.process.linux.proc import Process

_MOST_HELD = 256


class Freezer:
    """
    Hold processes still until all of a family are known, then kill them.

    What is stopped cannot fork, so its children can be counted; and under a limit of processes it makes no room for
    others as the killed does. Each pidfd is opened first and what it names is compared then: from there on the pid may
    be given away without harm.

    Args:
        adopters: Pids, besides ours, of those to whom orphans go: the parent of what is held may change to one.
    """

    def __init__(self, *adopters: int) -> None:
        self._adopters = {os.getpid(), *adopters}
        self._held: list[tuple[int, bool]] = []

    def hold(self, process: Process) -> bool:
        """
        Stop a process if it is still the one that was seen, else nobody; tell whether it is held.

        A group's leader is held with its whole group, as that lies within one session and so within one attempt.
        """
        if len(self._held) >= _MOST_HELD:
            self.kill()
        try:
            return self._hold(process)
        except OSError as error:
            if error.errno not in linux.OUT_OF_DESCRIPTORS or not self._held:
                raise
        self.kill()
        return self._hold(process)

    def kill(self) -> None:
        """Kill all that is held."""
        while self._held:
            pidfd, is_group = self._held.pop(0)
            # Whoever has become another user in the meantime lives on, and the next look tells.
            with contextlib.suppress(PermissionError):
                if is_group:
                    linux.send_to_group(pidfd, signal.SIGKILL)
                linux.send(pidfd, signal.SIGKILL)
            os.close(pidfd)

    def _hold(self, process: Process) -> bool:
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return False
        held = False
        try:
            now = proc_table.read_process(process.pid)
            if now is None or now.dead or now.identity != process.identity or now.session == os.getsid(0):
                return False
            if now.parent != process.parent and now.parent not in self._adopters:
                return False
            held = linux.send(pidfd, signal.SIGSTOP)
            if held and now.group == now.pid:
                linux.send_to_group(pidfd, signal.SIGSTOP)
            if held:
                self._held.append((pidfd, now.group == now.pid))
        except PermissionError:
            return False
        else:
            return held
        finally:
            if not held:
                os.close(pidfd)
