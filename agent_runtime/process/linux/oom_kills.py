"""
Count the processes that the kernel killed for lack of memory in the cgroup of the whole container.

A container has one memory limit for everything in it. Attempts without a counting cgroup of their own depend on the
container's counter, which does not name the killed process. An attempt therefore compares the counts before and after,
and must know whether another attempt ran meanwhile: see ``Ending.oom_nearby``.
"""

from __future__ import annotations

import threading
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
        self._lock = threading.Lock()
        self._watches: set[OomWatch] = set()

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

    def watch(self) -> OomWatch:
        """Begin to count for an attempt that is about to start; :meth:`OomWatch.end` must follow."""
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
    Compares the container's counter before and during one attempt. Made by :meth:`OomKills.watch` only.

    Attributes:
        is_shared: Whether another attempt ran at the same time.
    """

    def __init__(self, kills: OomKills, before: int | None) -> None:
        self._kills = kills
        self._before = before
        self.is_shared = False

    @property
    def has_counted(self) -> bool:
        """Whether any process was killed since the watch began; False if the counter cannot be read."""
        now = None if self._before is None else self._kills.count()
        return now is not None and self._before is not None and now > self._before

    def end(self) -> None:
        """Record that the attempt is over; further calls do nothing."""
        self._kills._end(self)  # noqa: SLF001 - the two are one
