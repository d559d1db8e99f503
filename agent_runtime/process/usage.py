"""
Measure with psutil what running executions use: CPU time, memory, processes, open files.

The values are for people and their graphs only; nothing that ends a process depends on them. A sample reads the process
table once, for all executions together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

import psutil

from agent_runtime.model.records import Usage
from agent_runtime.process.linux.proc import Snapshot, branch


def sample(shims: Mapping[str, int]) -> dict[str, Usage]:
    """
    Measure the trees below the shims with these pids; the result has the same keys, without shims that are gone.

    CPU time is that of the living processes plus the time that dead ones have left to their parents, so that none is
    counted twice or lost. A process that ends meanwhile counts as far as it was read. Open files and PSS of another
    user's process are unknown. While no more files can be opened, nothing is measured.
    """
    found: dict[str, Usage] = {}
    with contextlib.suppress(OSError):
        now = Snapshot()
        for key, pid in shims.items():
            if pid in now.processes:
                _, *below = (process.pid for process in branch(now, now.processes[pid]))
                with contextlib.suppress(psutil.Error):
                    found[key] = _usage(psutil.Process(pid), below)
    return found


def _usage(shim: psutil.Process, below: Iterable[int]) -> Usage:
    usage = Usage(cpu_seconds=_reaped_seconds(shim))
    for pid in below:
        with contextlib.suppress(psutil.Error), (process := psutil.Process(pid)).oneshot():
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
