"""Memory and processor time of a supervisor that has nothing to do."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.bed import bare_server, directory, nothing_cli, started, supervisor, until
from benchmarks.harness import Bench, Figure, Goal, Row, p50_at_most, ratio_at_most
from benchmarks.machine import cpu_seconds, wake_ups, weight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from benchmarks.harness import Scale

BARE = "bare starlette + uvicorn"
SUPERVISORD = "supervisord, one program"
SETTLE_SECONDS = 2.0


class Idle(NamedTuple):
    """The resources that a process takes while it has nothing to do."""

    rss_mb: float
    pss_mb: float
    cpu_percent: float
    wake_ups_a_second: float


WHAT = (
    ("RSS", "MB", p50_at_most(40) & ratio_at_most(1.3, "≤ 1.3 × bare")),
    ("PSS", "MB", None),
    ("CPU", "% of a core", p50_at_most(0.4)),
    ("wake-ups", "1/s", None),
)


def watched(seconds: float, *pids: int) -> list[Idle]:
    """Measure all processes during the same *seconds*."""
    time.sleep(SETTLE_SECONDS)
    before = [(cpu_seconds(pid), wake_ups(pid)) for pid in pids]
    begun = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - begun
    return [
        Idle(
            weight([pid]).rss_mb,
            weight([pid]).pss_mb,
            (cpu_seconds(pid) - cpu) / passed * 100,
            (wake_ups(pid) - woken) / passed,
        )
        for pid, (cpu, woken) in zip(pids, before, strict=True)
    ]


@contextlib.contextmanager
def supervisord(home: Path) -> Iterator[int | None]:
    """Run supervisord with one program and yield its pid; None: it is not installed (the extra ``bench``)."""
    if importlib.util.find_spec("supervisor") is None:
        yield None
        return
    config = home / "supervisord.conf"
    config.write_text(
        f"[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={home}/pid\nuser={os.geteuid()}\n"
        f"[program:one]\ncommand=/bin/sh -c 'echo up >{home}/up; exec sleep 1000000'\n"
    )
    with started([sys.executable, "-m", "supervisor.supervisord", "-c", str(config)], stderr=-3) as process:
        until((home / "up").exists, "supervisord's program")
        yield process.pid


def run(scale: Scale) -> Iterable[Row]:
    seconds = scale.rounds(20, 2)
    with contextlib.ExitStack() as held:
        home = held.enter_context(directory())
        fresh = held.enter_context(supervisor(home / "fresh", nothing_cli(home)))
        used = held.enter_context(supervisor(home / "used", nothing_cli(home)))
        bare, http = held.enter_context(bare_server())
        other = held.enter_context(supervisord(home))
        executions = scale.rounds(100, 5)
        for _ in range(executions):
            used.http.post()
            http.ask("GET", "/livez")
        pids = [fresh.pid, used.pid, bare.pid, *([other] if other is not None else [])]
        measured = watched(seconds, *pids)
    for column, (what, unit, goal) in enumerate(WHAT):
        values = [Figure.of([one[column]]) for one in measured]
        for name, value in (("fresh", values[0]), (f"after {executions} executions", values[1])):
            yield Row("idle", f"{what}, {name}", unit, value, BARE, values[2], _only(goal))
        note = "" if other is not None else "supervisord is not installed: pip install '.[test,bench]'"
        yield Row("idle", f"{what}, fresh", unit, values[0], SUPERVISORD, values[3] if other else None, note=note)


def _only(goal: Goal | None) -> Goal:
    return goal or Goal("-", lambda _row: None)


BENCH = Bench("idle", run)
