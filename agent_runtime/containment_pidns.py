"""End an attempt by ending PID 1 of its PID namespace: the kernel takes along whoever is in it, in one step."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, ClassVar

from agent_runtime import linux, proc_table
from agent_runtime.containment import Look

if TYPE_CHECKING:
    from agent_runtime.nursery import Kept

_COUNTING_IS_WORTH = 10
"""So many times as long as it takes to count is not counted again: those who are dying need the time, too."""


class NamespaceLayer:
    """
    A keeper that is PID 1: its end is complete only when nobody is left in its namespace.

    Source: https://man7.org/linux/man-pages/man7/pid_namespaces.7.html ("The namespace init process")
    """

    ends_keeper: ClassVar[bool] = True
    is_certain: ClassVar[bool] = True

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._ended = 0
        self._alive = 0
        self._count_again_at = 0.0

    @property
    def ended(self) -> int:
        """How many processes were in the namespace when it was ended."""
        return self._ended

    def remember(self) -> None:
        """Do nothing: nobody leaves a PID namespace."""

    def strike(self, *, thorough: bool) -> Look:  # noqa: ARG002 - one way is certain
        """Kill the namespace's PID 1, once; after that, look whether it has come to its end."""
        if self._kept.keeper_has_ended:
            return Look()
        began = time.monotonic()
        if began >= self._count_again_at:
            self._alive = self._living()
            now = time.monotonic()
            self._count_again_at = now + (now - began) * _COUNTING_IS_WORTH
        fresh = max(0, self._alive - self._ended)
        self._ended += fresh
        self._kept.kill_keeper()
        return Look(alive=max(1, self._alive), fresh=fresh)

    def _living(self) -> int:
        """Count who is in the namespace besides its PID 1, as far as there are descriptors to look with."""
        identity = self._kept.keeper
        try:
            root = proc_table.read_process(identity[0]) if identity is not None else None
            if root is None or root.identity != identity or root.pid == os.getpid():
                return 0
            return sum(not process.dead for process in proc_table.branch(proc_table.look(), root)) - (not root.dead)
        except OSError as error:
            if error.errno not in linux.OUT_OF_DESCRIPTORS:
                raise
            return 0
