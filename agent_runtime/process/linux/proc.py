"""
Read ``/proc``: parents, start times, sessions, and marks in environments.

Nothing here sends a signal or reaps. For a process that is gone the answer is None, never an error. A lack of
descriptors is an error, because it must not look like an absent process.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec

from agent_runtime.process.linux.syscalls import TICKS_PER_SECOND

Identity: TypeAlias = tuple[int, int]
"""Pid and start time in clock ticks after boot: a pid alone may have been reused."""

_LIMIT_BYTES = 8 * 1024 * 1024  # the kernel's own limit for arguments and environment together is 6 MiB
_CHUNK_BYTES = 128 * 1024
_ESTABLISHED = b"01"


class Process(msgspec.Struct, frozen=True):
    """
    A process as ``/proc/PID/stat`` showed it.

    Attributes:
        started_ticks: Start time, on the clock of :func:`agent_runtime.process.linux.syscalls.boot_ticks`.
        dead: Whether it is a zombie; a process of which only the main thread has ended is not dead.
    """

    pid: int
    parent: int
    group: int
    session: int
    threads: int
    started_ticks: int
    dead: bool

    @property
    def identity(self) -> Identity:
        """Identifies the process, also against a later one with the same pid."""
        return (self.pid, self.started_ticks)


def read_process(pid: int) -> Process | None:
    """
    Read one process; None if there is none.

    Source: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
    """
    fields = _stat_fields(pid)
    if fields is None:
        return None
    threads = int(fields[17])
    return Process(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        threads=threads,
        started_ticks=int(fields[19]),
        dead=fields[0] in {b"Z", b"X", b"x"} and threads <= 1,
    )


def read_living(identity: Identity) -> Process | None:
    """Read the process of this pid and start time; None: it has ended, whether it was reaped or not."""
    process = read_process(identity[0])
    return process if process is not None and process.identity == identity and not process.dead else None


def read_environ(pid: int, name: str) -> str | None:
    """
    Return the value of one variable in the environment the process was started with.

    None: the variable is not set, or the process is another user's, not dumpable, gone or in the middle of ``execve``.
    """
    _, found, rest = (b"\0" + (read_file(f"/proc/{pid}/environ") or b"")).partition(b"\0" + name.encode() + b"=")
    return rest.partition(b"\0")[0].decode(errors="replace") if found else None


def reaped_cpu_seconds(pid: int) -> float | None:
    """
    Return the CPU seconds of all processes that a process has reaped; None: it is gone.

    Once an attempt has ended, its shim has reaped all its processes.
    """
    fields = _stat_fields(pid)
    return None if fields is None else (int(fields[13]) + int(fields[14])) / TICKS_PER_SECOND


def read_oom_score(pid: int) -> int | None:
    """Return a process's ``oom_score_adj``, which its children inherit; None: the process is gone."""
    text = read_file(f"/proc/{pid}/oom_score_adj")
    return int(text) if text else None


class Live:
    """
    A view of the process tree by the kernel's lists of children: its cost grows with the descendants only.

    A child can be missing from its list when another one ends at the same moment, so a single read proves nothing.

    Source: https://man7.org/linux/man-pages/man5/proc_tid_children.5.html
    """

    def children(self, parent: Process) -> list[Process]:
        """Return the children that all threads of *parent* have."""
        threads: tuple[str, ...] = (str(parent.pid),)
        if parent.threads != 1:
            try:
                threads = tuple(os.listdir(f"/proc/{parent.pid}/task"))  # noqa: PTH208 - hot path, names only
            except (FileNotFoundError, ProcessLookupError):
                return []
        found: list[Process] = []
        for thread in threads:
            listed = read_file(f"/proc/{parent.pid}/task/{thread}/children")
            for pid in (listed or b"").split():
                child = read_process(int(pid))
                if child is not None and child.parent == parent.pid:
                    found.append(child)
        return found


class Snapshot:
    """A view of the process tree from a list of all processes: slower, but needs no kernel option."""

    def __init__(self) -> None:
        self.processes = {process.pid: process for process in all_processes()}
        self._children: dict[int, list[Process]] = {}
        for process in self.processes.values():
            self._children.setdefault(process.parent, []).append(process)

    def children(self, parent: Process) -> list[Process]:
        """Return the children at the time of the snapshot."""
        return self._children.get(parent.pid, [])


View: TypeAlias = Live | Snapshot


def take_view(*, thorough: bool = False) -> View:
    """Return a view of the process tree; a thorough one does not depend on the lists of children."""
    return Snapshot() if thorough or not has_children_files() else Live()


def branch(view: View, root: Process) -> Iterator[Process]:
    """
    Yield a process and all its descendants, parents before their children.

    The children of a process are read before the process is yielded, so the caller may kill it at once.
    """
    seen = {root.pid}
    waiting = [root]
    while waiting:
        later: list[Process] = []
        for process in waiting:
            if not process.dead:
                for child in view.children(process):
                    if child.pid not in seen:
                        seen.add(child.pid)
                        later.append(child)
            yield process
        waiting = later


def all_pids() -> list[int]:
    """List every process that ``/proc`` shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - hot path, names only


def all_processes() -> Iterator[Process]:
    """Read every process that ``/proc`` shows."""
    return (process for pid in all_pids() if (process := read_process(pid)) is not None)


@functools.cache
def has_children_files() -> bool:
    """Whether the kernel was built with CONFIG_PROC_CHILDREN."""
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")  # noqa: PTH110 - as cheap as can be


def shows_our_pids() -> bool:
    """
    Whether ``/proc`` is of our own PID namespace.

    If not, a pid in ``/proc`` means another process than the same pid here, and must not be used to signal one.
    """
    try:
        return os.readlink("/proc/self") == str(os.getpid())  # noqa: PTH115 - the target is no path to us
    except OSError:
        return False


def connects_from(pid: int, port: int) -> bool | None:
    """
    Whether a process has an open connection that comes from this port of 127.0.0.1; None: that cannot be seen.

    Source: https://docs.kernel.org/networking/proc_net_tcp.html
    """
    place = b"%08X:%04X" % (int.from_bytes((127, 0, 0, 1), sys.byteorder), port)
    lines = (line.split() for line in (read_file("/proc/net/tcp") or b"").splitlines())
    inode = next((line[9] for line in lines if line[1:4:2] == [place, _ESTABLISHED]), None)
    if inode is None:
        return None
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            held = {os.readlink(entry.path) for entry in entries}  # noqa: PTH115 - as above
    except OSError:
        return None
    return f"socket:[{inode.decode()}]" in held


def _stat_fields(pid: int) -> list[bytes] | None:
    """Return the fields of ``/proc/PID/stat`` from the third on, the state; None: the process is gone."""
    stat = read_file(f"/proc/{pid}/stat")
    # The name before the state may hold blanks and parentheses.
    fields = [] if stat is None else stat[stat.rfind(b")") + 2 :].split(None, 20)
    return fields if len(fields) >= 20 else None


def read_file(path: str | Path) -> bytes | None:
    """Return the whole content of a file of the kernel; None: the process is gone, or the file may not be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    data = bytearray()
    try:
        while len(data) < _LIMIT_BYTES and (chunk := os.read(descriptor, _CHUNK_BYTES)):
            data += chunk
    except (ProcessLookupError, PermissionError):
        return None
    finally:
        os.close(descriptor)
    return bytes(data)
