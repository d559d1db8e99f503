"""Find and end an attempt's processes by their cgroup, without ``/proc`` and without races against forks."""

from __future__ import annotations

import threading
from typing import ClassVar

from agent_runtime.process.containment.sweep import PassResult
from agent_runtime.process.forkserver.server import ShimHandle
from agent_runtime.process.linux.cgroup import Group

_PASSES_BEFORE_RELEASE = 3
"""After this many passes that find only known processes the shim is released, so that it ends what is left."""


class CgroupLayer:
    """
    Ends the processes in an attempt's cgroup: one read finds them, one write kills them.

    It uses only descriptors that the group has open already. The child joins the group; its shim does not.

    A process whose main thread alone has ended survives the write (Linux 6.18), and so do those in a group that the
    child has made a threaded one. The shim ends them when it is released.
    """

    is_certain: ClassVar[bool] = True

    def __init__(self, group: Group, handle: ShimHandle | None = None) -> None:
        self._group = group
        self._shim_handle = handle
        self._seen: set[int] = set()
        self._passes_left = 0
        self._lock = threading.Lock()

    @property
    def ended(self) -> int:
        """How many processes were found alive by kill passes."""
        return len(self._seen)

    def kill_pass(self, *, thorough: bool) -> PassResult:  # noqa: ARG002 - every pass is thorough
        """Kill everything that lives in the group."""
        with self._lock:
            if not self._group.populated:
                return PassResult()
            pids = self._group.pids()
            new = len(pids - self._seen)
            if new:
                self._group.kill()
                self._passes_left = _PASSES_BEFORE_RELEASE
            elif self._passes_left:
                self._passes_left -= 1
            else:
                self._group.kill()
                if self._shim_handle is not None:
                    self._shim_handle.release()
            self._seen |= pids
            return PassResult(alive=max(1, len(pids)), new=new)
