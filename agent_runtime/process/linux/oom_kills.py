"""
Count the processes that the kernel killed for lack of memory in the cgroup of the whole container.

A container has one memory limit for everything in it. Attempts without a counting cgroup of their own depend on the
container's counter, which does not name the killed process. An attempt therefore compares the counts before and after,
and must know whether another attempt ran meanwhile: see ``Ending.oom_nearby``.
"""

from __future__ import annotations

from pathlib import Path

from agent_runtime.process.linux import cgroup_mount
from agent_runtime.process.linux.cgroup_setup import LEAF
from agent_runtime.process.linux.proc import read_file


class OomKills:
    """
    The container's counter of these kills; every method may be called from any thread.

    Args:
        file: ``memory.events``, or ``memory.oom_control`` (version 1, since Linux 4.13); None: there is none.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file

    @classmethod
    def of_this_container(cls, proc: Path = Path("/proc/self")) -> OomKills:
        """Return the counter of our own cgroup."""
        try:
            texts = (proc / "cgroup").read_text(), (proc / "mountinfo").read_text()
        except (OSError, UnicodeDecodeError):
            return cls()
        file = cgroup_mount.oom_counter_file(*texts)
        if file is not None and file.parent.name == LEAF:  # the leaf has no attempts in it; they are counted above
            file = file.parent.parent / file.name
        return cls(file)

    def count(self) -> int | None:
        """Return the number of kills since the cgroup was made; None: it cannot be read."""
        if self._file is None:
            return None
        try:
            words = (read_file(self._file) or b"").split()
        except OSError:
            return None
        counted = dict(zip(words[::2], words[1::2], strict=False)).get(b"oom_kill", b"")
        return int(counted) if counted.isdigit() else None

    def has_risen(self, before: int | None) -> bool:
        """Whether any process was killed since *before* was counted; False if the counter cannot be read."""
        now = None if before is None else self.count()
        return now is not None and before is not None and now > before
