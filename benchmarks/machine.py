"""Describe the machine that the figures were measured on, and measure single processes."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.support.api_mode import CLAUDES, claudes

if TYPE_CHECKING:
    from collections.abc import Iterable

CLI_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agent-runtime" / "claude"
"""Where ``.ci/run`` installs the real CLIs."""


def real_clis() -> dict[str, str]:
    """Return the real CLIs on this machine by version: those that the tests are given, and those that CI installed."""
    found = [*map(str, CLI_CACHE.glob("*/node_modules/.bin/claude")), *claudes(os.environ)]
    return {Path(path).parts[-4]: path for path in found if "node_modules" in Path(path).parts}


def facts() -> dict[str, Any]:
    """Describe the machine, without its name or any path on it."""
    return {
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": psutil.virtual_memory().total >> 20,
        "python": platform.python_version(),
        "cli_versions": sorted(real_clis()) or f"none; set {CLAUDES}",
        "load_1_5_15_minutes": [round(load, 2) for load in os.getloadavg()],
        "commit": _commit(),
    }


def _commit() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or "unknown"


@dataclass(frozen=True, slots=True)
class Weight:
    """Memory of processes, in MB."""

    rss_mb: float
    pss_mb: float


def weight(pids: Iterable[int]) -> Weight:
    """Add up the memory of processes; PSS divides a shared page among the processes that share it."""
    rss = pss = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Rss":
                rss += int(value.split()[0])
            elif name == "Pss":
                pss += int(value.split()[0])
    return Weight(rss / 1024, pss / 1024)


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process without its children, more precisely than in clock ticks."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def wake_ups(pid: int) -> int:
    """Return how often the threads of a process were woken: as often as they gave the processor back by themselves."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total
