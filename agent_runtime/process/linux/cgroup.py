"""A cgroup (version 2) for one attempt: its limits, its counters, and its end in one write."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent_runtime.process.linux import syscalls as linux

_NOT_ANSWERED = (errno.ENODEV, errno.ENOENT, errno.EOPNOTSUPP)
"""The errors for a file of a removed cgroup (by descriptor, and by path), and for one of a threaded cgroup."""

_PAUSE_SECONDS = 0.001
_CPU_PERIOD_MICROSECONDS = 100_000
_CPU_LEAST_MICROSECONDS = 1000


class Limits(msgspec.Struct, frozen=True):
    """
    What one execution may use; None: no limit.

    Attributes:
        memory_bytes: Including the kernel's memory for it and the page cache; swap is off.
        pids: Processes and their threads.
        cpus: 1.0 is one CPU's time.
    """

    memory_bytes: int | None = None
    pids: int | None = None
    cpus: float | None = None

    @property
    def controllers(self) -> tuple[str, ...]:
        """Names of the controllers that enforce the limits; empty: nothing is limited."""
        asked = {"memory": self.memory_bytes, "pids": self.pids, "cpu": self.cpus}
        return tuple(name for name, limit in asked.items() if limit is not None)

    def files(self) -> Iterator[tuple[str, str, bool]]:
        """
        Yield name and content of each file that sets a limit, and whether the file must exist.

        ``memory.oom.group`` is 0: the kernel then kills one process, the biggest, which nearly always is a tool's, and
        the agent can try another way. With 1, the CLI would die with every greedy test run. If the CLI itself is
        killed, the sweep ends the rest.

        Swap is off: otherwise the limit would shift the load to the disk that everybody shares.

        Source: https://docs.kernel.org/admin-guide/cgroup-v2.html
        """
        if self.memory_bytes is not None:
            yield "memory.oom.group", "0", False
            yield "memory.swap.max", "0", False  # missing if the kernel does not account for swap
            yield "memory.max", str(self.memory_bytes), True
        if self.pids is not None:
            yield "pids.max", str(self.pids), True
        if self.cpus is not None:
            quota = max(_CPU_LEAST_MICROSECONDS, round(self.cpus * _CPU_PERIOD_MICROSECONDS))
            yield "cpu.max", f"{quota} {_CPU_PERIOD_MICROSECONDS}", True


class Group:
    """
    The cgroup of one attempt.

    All files that are needed to kill its processes are opened at once, so that killing needs no new descriptor, fork or
    thread. Every method may be called from any thread and repeatedly; after :meth:`remove` they find an empty group.

    Attributes:
        place: Descriptor of the directory, for a child to be forked into; -1 once the group is closed.
        procs: Descriptor of ``cgroup.procs``; -1 once the group is closed. A process that writes ``0`` to it joins the
            group; the child does so before it gives up its rights.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.RLock()
        self._open: set[int] = set()
        try:
            self.place = self._open_file("", os.O_PATH | os.O_DIRECTORY)
            self.procs = self._open_file("cgroup.procs", os.O_RDWR)
            self._events = self._open_file("cgroup.events", os.O_RDONLY)
            self._kill = self._open_file("cgroup.kill", os.O_WRONLY, is_optional=True)
            self._memory_events = self._open_file("memory.events", os.O_RDONLY, is_optional=True)
            self._oom_kills = 0
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        state = "populated" if self.populated else "empty"
        return f"<Group {self.directory.name} {state if self._open else 'closed'}>"

    @property
    def populated(self) -> bool:
        """Whether a process lives in the group or in a group below it."""
        return _counters(self._read(self._events)).get("populated", 0) != 0

    @property
    def counts_memory(self) -> bool:
        """Whether the group has the memory controller, with which the kernel counts its kills for lack of memory."""
        return self._memory_events >= 0

    def pids(self) -> set[int]:
        """
        Return the pids of the processes in the group and in the groups below it.

        Without free descriptors the processes in the groups below are missing; :attr:`populated` includes them.
        """
        found = _numbers(self._read(self.procs))
        with contextlib.suppress(OSError):
            for group in map(Path, below(self.directory)):
                found |= _numbers((group / "cgroup.procs").read_bytes())
        return found - {0}  # the kernel shows processes outside our PID namespace as 0

    def oom_kills(self) -> int:
        """Return how many processes of the group the kernel killed for lack of memory; once closed, the last count."""
        with self._lock:
            if text := self._read(self._memory_events):
                self._oom_kills = _counters(text).get("oom_kill", 0)
            return self._oom_kills

    def kill(self) -> None:
        """
        Kill all processes in the group and below it at once, including stopped, frozen and just forked ones.

        Does nothing where the kernel has no ``cgroup.kill`` (before Linux 5.14), and where the child has made the group
        a threaded one. A process of which only the main thread has ended survives (Linux 6.18).
        """
        with self._lock:
            if self._kill < 0:
                return
            try:
                os.write(self._kill, b"1")
            except OSError as error:
                if error.errno not in _NOT_ANSWERED:
                    raise

    def remove(self, within_seconds: float = 1.0) -> bool:
        """
        Remove the group with all groups below it, and close it; return whether the group is gone.

        Dying processes keep a group busy for a moment, so the removal is repeated for *within_seconds*. The next start
        of a supervisor removes a group that is left.
        """
        self.oom_kills()
        gone = remove_tree(self.directory, within_seconds)
        self.close()
        return gone

    def close(self) -> None:
        """Close all descriptors; the group and its processes stay."""
        with self._lock:
            while self._open:
                os.close(self._open.pop())
            self.place = self.procs = self._events = self._kill = self._memory_events = -1

    def _open_file(self, name: str, flags: int, *, is_optional: bool = False) -> int:
        """Open a file of the group until it is closed; -1 if a file that is optional does not exist."""
        try:
            descriptor = os.open(self.directory / name, flags | os.O_CLOEXEC)
        except FileNotFoundError:
            if is_optional:
                return -1
            raise
        self._open.add(descriptor)
        return descriptor

    def _read(self, descriptor: int) -> bytes:
        """Read a whole file of the group; empty if it is not open, or the group is removed."""
        with self._lock:
            if descriptor not in self._open:
                return b""
            data = b""
            try:
                while chunk := os.pread(descriptor, 65536, len(data)):
                    data += chunk
            except OSError as error:
                if error.errno not in _NOT_ANSWERED:
                    raise
            return data


def remove_tree(directory: Path, within_seconds: float = 0.0) -> bool:
    """Remove a cgroup and those below it, as soon as no process lives in them; return whether the cgroup is gone."""
    deadline = time.monotonic() + within_seconds
    while not (gone := _remove_all(directory)) and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)  # the kernel needs a moment to let go of processes that were just killed
    return gone


def _remove_all(directory: Path) -> bool:
    try:
        if _remove(directory):  # most cgroups have none below them, and rmdir needs no descriptor
            return True
        gone = True
        for group in (*map(Path, reversed(list(below(directory)))), directory):
            gone = _remove(group) and gone
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, *linux.OUT_OF_DESCRIPTORS):
            return False
        raise
    return gone


def below(directory: Path) -> Iterator[str]:
    """
    Yield the paths of the cgroups below *directory*, each before the cgroups below it; a machine may have thousands.

    Raises:
        OSError: A cgroup cannot be read; one that has just been removed is no error.
    """
    waiting = [str(directory)]
    while waiting:
        group = waiting.pop()
        with contextlib.suppress(FileNotFoundError):
            # Two links: no cgroup is below it, so its files need no look (kernfs_refresh_inode in Linux fs/kernfs).
            if os.stat(group).st_nlink == 2:  # noqa: PTH116 - as many paths as cgroups
                continue
            with os.scandir(group) as entries:
                found = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            yield from found
            waiting += found


def _remove(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True


def _numbers(text: bytes) -> set[int]:
    return {int(word) for word in text.split()}


def _counters(text: bytes) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0].decode(): int(pair[1]) for pair in pairs if len(pair) == 2}
