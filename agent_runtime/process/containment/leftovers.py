"""End the processes that an earlier supervisor of the same data directory has left behind."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from agent_runtime.process.containment.cgroup import CgroupLayer
from agent_runtime.process.containment.freezer import Freezer
from agent_runtime.process.containment.registry import MARK_VARIABLE, is_of_an_earlier_start, tag_of
from agent_runtime.process.containment.sweep import sweep
from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.linux.cgroup import Group
from agent_runtime.process.linux.cgroup_setup import Groups
from agent_runtime.process.linux.proc import Identity, Process

log = logging.getLogger(__name__)

_GUARD = "keepers.lock"
"""The lock that all shims of a data directory hold; shims of earlier versions hold the file of this name."""
_PAUSE_SECONDS = 0.001
_REMOVE_WITHIN_SECONDS = 1.0


def sweep_leftovers(data_dir: Path, *, within_seconds: float = 5) -> int:
    """
    Kill the processes of an earlier supervisor of this data directory, before any request is admitted.

    Call it only while holding the data directory's lock: then no living supervisor can own these processes. This
    process, its ancestors and its descendants are spared. Returns the number of killed processes.
    """
    deadline = time.monotonic() + within_seconds
    tag = tag_of(data_dir)
    killed: set[Identity] = set()
    alive: set[int] = set()
    empty_passes = 0
    while empty_passes < 2 and proc_table.shows_our_pids():
        alive = set()
        freezer = Freezer()
        for process in _leftovers(tag):
            alive.add(process.pid)
            if process.identity not in killed and freezer.freeze(process):
                killed.add(process.identity)
        freezer.kill()
        empty_passes = 0 if alive else empty_passes + 1
        if alive and time.monotonic() >= deadline:
            log.error("processes of an earlier supervisor cannot be ended: %d", len(alive))
            break
        if empty_passes < 2:
            time.sleep(_PAUSE_SECONDS)  # what was killed takes a moment to go, and has no parent here to tell of it
    return len(killed)


def sweep_leftover_groups(groups: Groups, data_dir: Path, *, within_seconds: float = 5) -> int:
    """End the processes in the cgroups of an earlier supervisor and remove the cgroups; return how many were killed."""
    deadline = time.monotonic() + within_seconds
    tag = tag_of(data_dir)
    killed = 0
    for directory in groups.leftovers(lambda mark: is_of_an_earlier_start(mark, tag)):
        try:
            group = Group(directory)
        except OSError:
            continue
        killed += sweep((CgroupLayer(group),), deadline).killed
        if not group.remove(max(0.0, min(_REMOVE_WITHIN_SECONDS, deadline - time.monotonic()))):
            log.error("a cgroup of an earlier supervisor cannot be ended: %s", directory.name)
    return killed


def await_shims(data_dir: Path, *, within_seconds: float = 5) -> int:
    """
    Wait until all shims of an earlier supervisor of this data directory have ended; return our shims' lock descriptor.

    A leader that is just being started has no mark yet, so a sweep alone misses it. Its shim ends it, and ends last.
    Every shim holds the lock as long as it lives.
    """
    deadline = time.monotonic() + within_seconds
    descriptor = os.open(data_dir / _GUARD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                log.error("shims of an earlier supervisor are still there: their processes cannot be ended")
                break
        time.sleep(_PAUSE_SECONDS)  # a blocking flock has no deadline
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _leftovers(tag: str) -> Iterator[Process]:
    if not any(_is_left(pid, tag) for pid in proc_table.all_pids()):
        return  # nearly always, and to read the environments alone takes half the time
    snapshot = proc_table.Snapshot()
    spared = _relatives(snapshot)
    for root in snapshot.processes.values():
        if not root.dead and root.pid not in spared and _is_left(root.pid, tag):
            yield from (process for process in proc_table.branch(snapshot, root) if not process.dead)


def _is_left(pid: int, tag: str) -> bool:
    mark = proc_table.read_environ(pid, MARK_VARIABLE)
    return mark is not None and is_of_an_earlier_start(mark, tag)


def _relatives(snapshot: proc_table.Snapshot) -> set[int]:
    """Return the pids of this process, its ancestors and its descendants."""
    me = snapshot.processes[os.getpid()]
    related = {process.pid for process in proc_table.branch(snapshot, me)}
    ancestor = snapshot.processes.get(me.parent)
    while ancestor is not None and ancestor.pid not in related:
        related.add(ancestor.pid)
        ancestor = snapshot.processes.get(ancestor.parent)
    return related
