"""
What running executions take of the machine: processor time, memory, processes, open files; read with psutil.

Only for people and their graphs: nothing that ends a process depends on it. A sample reads the process table once, for
all executions together.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING

import psutil

from agent_runtime.model.records import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping


def sample(shims: Mapping[str, int]) -> dict[str, Usage]:
    """
    Measure the trees below the shims with these pids, by the same keys; one that is gone is left out.

    Processor time is that of all that live plus what the dead have left to their parents, so that none is counted twice
    and none is lost. A process that ends while it is looked at counts as far as it was seen; files of another user's
    process are not counted, and its PSS is not known.
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


def reaped_cpu_seconds(shim: int) -> float | None:
    """Tell how much processor time those have taken that a shim has reaped: all of an attempt's, when it has ended."""
    with contextlib.suppress(psutil.Error):
        return _of_the_dead(psutil.Process(shim))
    return None


def _tree(shim: psutil.Process, below: Mapping[int, list[psutil.Process]]) -> Usage:
    usage = Usage(cpu_seconds=_of_the_dead(shim))
    waiting = list(below.get(shim.pid, ()))
    while waiting:
        process = waiting.pop()
        waiting += below.get(process.pid, ())
        with contextlib.suppress(psutil.Error), process.oneshot():
            times = process.cpu_times()
            usage.cpu_seconds += times.user + times.system + _of_the_dead(process)
            usage.memory_bytes += process.memory_info().rss
            usage.processes += 1
            usage.open_files += process.num_fds()
            usage.pss_bytes += process.memory_full_info().pss
    return usage


def _of_the_dead(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.children_user + times.children_system)
