"""
Read ``/proc``: who is whose child, born when, in which session, with which mark in its environment.

Nothing here sends a signal or reaps. A process that is gone is an absent answer, never an error; having no descriptor
left to look with is an error, because it must not be taken for "nothing there".
"""

from __future__ import annotations

import functools
import os
from enum import Enum
from typing import TYPE_CHECKING, Protocol, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

Identity: TypeAlias = tuple[int, int]
"""Pid and start time in clock ticks after boot: a pid alone may be somebody else's by now."""

_ENVIRON_LIMIT_BYTES = 8 * 1024 * 1024  # the kernel's own limit for arguments and environment together is 6 MiB
_CHUNK_BYTES = 128 * 1024


class Process(msgspec.Struct, frozen=True):
    """
    A process as ``/proc/PID/stat`` showed it.

    Attributes:
        started_ticks: Start time, on the clock of :func:`agent_runtime.process.linux.syscalls.boot_ticks`.
        dead: A zombie; one whose main thread alone has ended is not dead.
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
        """What tells it from any other process, also from a later one with the same pid."""
        return (self.pid, self.started_ticks)


class NoMark(Enum):
    """Why a process shows no value of an environment variable."""

    ABSENT = "absent"
    EMPTY = "empty"
    """No environment at all: it may be in the middle of ``execve``, so look again."""
    UNREADABLE = "unreadable"
    """Of another user or not dumpable, or gone."""


def read_process(pid: int) -> Process | None:
    """
    Read one process; None if there is none.

    Source: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
    """
    stat = _read(f"/proc/{pid}/stat", 2048)
    if stat is None:
        return None
    fields = stat[stat.rfind(b")") + 2 :].split(None, 20)  # the name before it may hold blanks and parentheses
    if len(fields) < 20:
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


def read_environ(pid: int, name: str) -> str | NoMark:
    """Return the value of one variable in the environment the process was started with."""
    wanted = b"\0" + name.encode() + b"="
    try:
        descriptor = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return NoMark.UNREADABLE
    data = bytearray(b"\0")
    try:
        while len(data) < _ENVIRON_LIMIT_BYTES and (chunk := os.read(descriptor, _CHUNK_BYTES)):
            data += chunk
    except (ProcessLookupError, PermissionError):
        return NoMark.UNREADABLE
    finally:
        os.close(descriptor)
    if len(data) == 1:
        return NoMark.EMPTY
    begin = data.find(wanted)
    if begin < 0:
        return NoMark.ABSENT
    begin += len(wanted)
    end = data.find(b"\0", begin)
    return data[begin : end if end >= 0 else len(data)].decode(errors="replace")


def read_oom_score(pid: int) -> int | None:
    """Return what is added to the process's badness when memory runs out; children inherit it."""
    text = _read(f"/proc/{pid}/oom_score_adj", 32)
    return int(text) if text else None


class View(Protocol):
    """One look at the process tree."""

    def children(self, parent: Process) -> list[Process]:
        """Return the living and the zombie children of a process."""
        ...


class Live:
    """
    Follow the kernel's own lists of children: costs as much as there are descendants, not processes.

    A child may be missing from its list when another one ends at the same moment, so one look proves nothing.

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
            listed = _read_all(f"/proc/{parent.pid}/task/{thread}/children")
            for pid in listed.split():
                child = read_process(int(pid))
                if child is not None and child.parent == parent.pid:
                    found.append(child)
        return found


class Snapshot:
    """Read every process there is and find the children by their parents: slower, needs no special kernel option."""

    def __init__(self) -> None:
        self.processes = {process.pid: process for process in all_processes()}
        self._children: dict[int, list[Process]] = {}
        for process in self.processes.values():
            self._children.setdefault(process.parent, []).append(process)

    def children(self, parent: Process) -> list[Process]:
        """Return the children the snapshot shows."""
        return self._children.get(parent.pid, [])


def look(*, thorough: bool = False) -> View:
    """Return a view of the process tree; a thorough one does not depend on the lists of children."""
    return Snapshot() if thorough or not has_children_files() else Live()


def branch(view: View, root: Process) -> Iterator[Process]:
    """
    Yield a process and all its descendants, parents before their children.

    A process's children are looked up before it is yielded, so the caller may kill it at once.
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


def all_processes() -> Iterator[Process]:
    """Yield every process that ``/proc`` shows."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - hot path, names only
        if name.isdecimal():
            process = read_process(int(name))
            if process is not None:
                yield process


@functools.cache
def has_children_files() -> bool:
    """Tell whether the kernel was built with CONFIG_PROC_CHILDREN."""
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")  # noqa: PTH110 - as cheap as can be


def shows_our_pids() -> bool:
    """
    Tell whether ``/proc`` is of our own PID namespace.

    Where it is not, its numbers mean other processes than ours and nobody may be signalled by them.
    """
    try:
        return os.readlink("/proc/self") == str(os.getpid())  # noqa: PTH115 - the target is no path to us
    except OSError:
        return False


def _read(path: str, limit_bytes: int) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    try:
        return os.read(descriptor, limit_bytes)
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)


def _read_all(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
    data = b""
    try:
        while chunk := os.read(descriptor, _CHUNK_BYTES):
            data += chunk
    except ProcessLookupError:
        return b""
    finally:
        os.close(descriptor)
    return data
