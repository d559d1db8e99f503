"""Many executions at once: how soon ``/livez`` answers, how late the event loop is, and how much memory each takes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import psutil

from agent_runtime.process.usage import sample
from agent_runtime.store.line_files import file_size
from benchmarks.bed import child_command, directory, message, supervisor, until
from benchmarks.harness import NO_GOAL, Bench, Figure, Row, in_turn, p50_at_most, p99_at_most
from benchmarks.machine import weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.bed import Supervised
    from benchmarks.harness import Scale

COUNTS = (1, 8, 64, 256)
QUICK_COUNTS = (1, 8)


def held_mb(running: Supervised) -> float:
    """Return the PSS of the supervisor and of what it needs to run children, without these children."""
    executions = running.http.get("/api/executions/running")["executions"]
    leaders = {one["pid"] for one in executions}
    children = set()
    for leader in leaders:
        children |= {child.pid for child in psutil.Process(leader).children(recursive=True)}
    ours = {child.pid for child in psutil.Process(running.pid).children(recursive=True)} - leaders - children
    return weight([running.pid, *ours]).pss_mb


def run(scale: Scale) -> Iterable[Row]:
    asked = scale.rounds(500, 50)
    for count in QUICK_COUNTS if scale.quick else COUNTS:
        with directory() as home, supervisor(home, child_command(), SLOTS=str(count), QUEUE=str(count)) as running:
            until_there = message(do="hold", until=str(home / "done"))
            # Run one first: code that is loaded once must not count as memory of an execution.
            running.http.post(message(do="nothing"))
            before = held_mb(running)
            begun = time.monotonic()
            for number in range(count):
                running.http.post(until_there, execution_id=f"held-{number}", async_result=True)
            until(lambda: _frames(running, count) == count, "all of them", 120)
            started = time.monotonic() - begun
            alive, lags = [], []
            for number in range(asked):
                alive.append(_milliseconds(running))
                if number % 10 == 0:
                    lags.append(running.http.get("/health")["loop_lag_seconds"] * 1000)
                time.sleep(0.005)
            each = (held_mb(running) - before) / count
            looks, tables = in_turn(scale.rounds(20, 3), _look(running), _process_table)
            (home / "done").touch()
            for number in range(count):
                running.http.ended(f"held-{number}")
        name = f"{count} at once"
        goal = p99_at_most(20) if count <= 64 else NO_GOAL
        yield Row("many", f"{name}: /livez", "ms", Figure.of(alive), goal=goal, note=f"all ran after {started:.1f} s")
        yield Row("many", f"{name}: loop lag", "ms", Figure.of(lags))
        yield Row("many", f"{name}: a look at what they take", "ms", looks, "reading the process table", tables)
        yield Row("many", f"{name}: memory of each (PSS)", "MB", Figure.of([each]), goal=p50_at_most(1))


def _look(running: Supervised) -> Callable[[], float]:
    """Return a function that measures all executions as the supervisor does each second; it returns its own CPU ms."""
    executions = running.http.get("/api/executions/running")["executions"]
    shims = {one["execution_id"]: psutil.Process(one["pid"]).ppid() for one in executions}

    def look() -> float:
        begun = time.process_time()
        sample(shims)
        return (time.process_time() - begun) * 1000

    return look


def _process_table() -> float:
    begun = time.process_time()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            process.ppid()
    return (time.process_time() - begun) * 1000


def _frames(running: Supervised, count: int) -> int:
    """Return how many of the *count* executions have printed something."""
    transcripts = running.home / "data" / "transcripts"
    return sum(file_size(transcripts / f"held-{number}.jsonl") > 0 for number in range(count))


def _milliseconds(running: Supervised) -> float:
    begun = time.perf_counter()
    running.http.ask("GET", "/livez")
    return (time.perf_counter() - begun) * 1000


BENCH = Bench("many", run)
