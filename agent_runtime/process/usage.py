"""
Measure with psutil what running executions use: CPU time, memory, processes, open files.

The values are for people and their graphs only; nothing that ends a process depends on them. A sample reads the process
table once, for all executions together.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping

import psutil

from agent_runtime.model.records import Usage


def sample(shims: Mapping[str, int]) -> dict[str, Usage]:
    """
    Measure the trees below the shims with these pids; the result has the same keys, without shims that are gone.

    CPU time is that of the living processes plus the time that dead ones have left to their parents, so that none is
    counted twice or lost. A process that ends meanwhile counts as far as it was read. Open files and PSS of another
    user's process are unknown.
    """
    below: defaultdict[int, list[psutil.Process]] = defaultdict(list)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            below[process.ppid()].append(process)
    found = {}
    for key, pid in shims.items():
        with contextlib.suppress(psutil.Error):
            found[key] = _tree(psutil.Process(pid), below)
    return found


def _tree(shim: psutil.Process, below: Mapping[int, list[psutil.Process]]) -> Usage:
    usage = Usage(cpu_seconds=_reaped_seconds(shim))
    waiting = list(below.get(shim.pid, ()))
    while waiting:
        process = waiting.pop()
        waiting += below.get(process.pid, ())
        with contextlib.suppress(psutil.Error), process.oneshot():
            times = process.cpu_times()
            usage.cpu_seconds += times.user + times.system + _reaped_seconds(process)
            usage.memory_bytes += process.memory_info().rss
            usage.processes += 1
            usage.open_files += process.num_fds()
            usage.pss_bytes += process.memory_full_info().pss
    return usage


def _reaped_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.children_user + times.children_system)
