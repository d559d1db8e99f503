"""
How many processes the kernel has killed for want of memory in the cgroup that all attempts share with the supervisor.

A container has one memory limit for all that runs in it. Where attempts have no cgroup of their own that counts, its
counter is all there is; whose process was killed it does not say. So an attempt compares what was counted before and
after, and must know whether another attempt ran meanwhile: see ``Ending.oom_nearby``.
"""

from __future__ import annotations

import threading
from pathlib import Path

from agent_runtime.process.linux import cgroup_mount
from agent_runtime.process.linux.cgroup_setup import LEAF


class OomKills:
    """
    Read the counter; every method may be called from any thread.

    Args:
        file: ``memory.events``, or ``memory.oom_control`` (version 1, since Linux 4.13); None: there is none.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._watches: set[OomWatch] = set()

    @classmethod
    def of_this_container(cls, proc: Path = Path("/proc/self")) -> OomKills:
        """Find the counter of our own cgroup."""
        try:
            texts = (proc / "cgroup").read_text(), (proc / "mountinfo").read_text()
        except (OSError, UnicodeDecodeError):
            return cls()
        file = cgroup_mount.counters_of_memory(*texts)
        if file is not None and file.parent.name == LEAF:  # which has none of the attempts in it
            file = file.parent.parent / file.name
        return cls(file)

    def count(self) -> int | None:
        """Tell how many there were since the cgroup was made; None: that cannot be read."""
        if self._file is None:
            return None
        try:
            words = self._file.read_text().split()
        except (OSError, UnicodeDecodeError):
            return None
        counted = dict(zip(words[::2], words[1::2], strict=False)).get("oom_kill", "")
        return int(counted) if counted.isdecimal() else None

    def watch(self) -> OomWatch:
        """Begin to watch for an attempt that is about to start; :meth:`OomWatch.end` must follow."""
        watch = OomWatch(self, self.count())
        with self._lock:
            for other in self._watches:
                other.is_shared = watch.is_shared = True
            self._watches.add(watch)
        return watch

    def _end(self, watch: OomWatch) -> None:
        with self._lock:
            self._watches.discard(watch)


class OomWatch:
    """
    What is counted while one attempt runs. Made by :meth:`OomKills.watch` only.

    Attributes:
        is_shared: Another attempt ran meanwhile.
    """

    def __init__(self, kills: OomKills, before: int | None) -> None:
        self._kills = kills
        self._before = before
        self.is_shared = False

    @property
    def has_counted(self) -> bool:
        """Whether anything was killed since; False where that cannot be read."""
        now = None if self._before is None else self._kills.count()
        return now is not None and self._before is not None and now > self._before

    def end(self) -> None:
        """Note that the attempt is over; once more does nothing."""
        self._kills._end(self)  # noqa: SLF001 - the two are one
