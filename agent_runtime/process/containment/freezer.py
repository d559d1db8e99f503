"""Stop and kill processes that are known by pid and start time, so that a reused pid is never signalled."""

from __future__ import annotations

import contextlib
import os
import signal

from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.linux import syscalls as linux
from agent_runtime.process.linux.proc import Process

_MOST_FROZEN = 256


class Freezer:
    """
    Stops processes until the whole tree is known, then kills them.

    A stopped process cannot fork, so its children can be listed. Under a limit on processes, killing it at once would
    make room for a new one. The pidfd is opened before the process is compared with the known one, so a reused pid does
    no harm.

    Args:
        adopters: Pids of other processes that adopt orphans: the parent of a known process may change to one of them.
    """

    def __init__(self, *adopters: int) -> None:
        self._adopters = {os.getpid(), *adopters}
        self._frozen: list[tuple[int, bool]] = []

    def freeze(self, process: Process) -> bool:
        """
        Stop a process if it is still the known one; return whether it was stopped.

        The leader of a process group is stopped with its whole group, which belongs to one session and one attempt.
        """
        if len(self._frozen) >= _MOST_FROZEN:
            self.kill()
        try:
            return self._freeze(process)
        except OSError as error:
            if error.errno not in linux.OUT_OF_DESCRIPTORS or not self._frozen:
                raise
        self.kill()
        return self._freeze(process)

    def kill(self) -> None:
        """Kill all stopped processes."""
        while self._frozen:
            pidfd, is_group = self._frozen.pop(0)
            # A process that has become another user's meanwhile survives; the next pass reports it.
            with contextlib.suppress(PermissionError):
                if is_group:
                    linux.send_to_group(pidfd, signal.SIGKILL)
                linux.send(pidfd, signal.SIGKILL)
            os.close(pidfd)

    def _freeze(self, process: Process) -> bool:
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return False
        was_stopped = False
        try:
            now = proc_table.read_process(process.pid)
            if now is None or now.dead or now.identity != process.identity or now.session == os.getsid(0):
                return False
            if now.parent != process.parent and now.parent not in self._adopters:
                return False
            was_stopped = linux.send(pidfd, signal.SIGSTOP)
            if was_stopped and now.group == now.pid:
                linux.send_to_group(pidfd, signal.SIGSTOP)
            if was_stopped:
                self._frozen.append((pidfd, now.group == now.pid))
        except PermissionError:
            return False
        else:
            return was_stopped
        finally:
            if not was_stopped:
                os.close(pidfd)
