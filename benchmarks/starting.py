"""Time from the start of the process to its first answer, and how much of it importing takes."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.bed import BARE, ROOT, SERVE, Http, directory, environment, first_line, nothing_cli, started
from benchmarks.harness import Bench, Row, in_turn, p50_at_most, ratio_at_most

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.harness import Scale

BESIDE = "bare starlette + uvicorn"


def first_answer(program: Sequence[str], env: dict[str, str] | None) -> float:
    """Return how many milliseconds after its start a server has answered."""
    begun = time.perf_counter()
    with contextlib.ExitStack() as held:
        process = held.enter_context(started([sys.executable, *program], env=env, cwd=ROOT, stderr=subprocess.DEVNULL))
        http = held.enter_context(contextlib.closing(Http(first_line(process).removeprefix("listening on "))))
        http.ask("GET", "/livez")
        return (time.perf_counter() - begun) * 1000


def processor_time(modules: str) -> Callable[[], float]:
    """Return a function that measures the processor time of importing *modules* (ms); other load hardly affects it."""

    def measured() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", f"import {modules}"], cwd=ROOT, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000

    return measured


def imported(modules: str) -> Callable[[], float]:
    """Return a function that measures the time until a Python that imports *modules* has ended (ms)."""

    def measured() -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {modules}"], cwd=ROOT, check=True)
        return (time.perf_counter() - begun) * 1000

    return measured


def run(scale: Scale) -> Iterable[Row]:
    rounds = scale.rounds(20, 3)
    # pip compiles what it installs; a checkout may lack bytecode, or must not write it (PYTHONDONTWRITEBYTECODE).
    subprocess.run([sys.executable, "-m", "compileall", "-q", "agent_runtime", "benchmarks"], cwd=ROOT, check=True)
    with directory() as home:
        env = environment(home, nothing_cli(home))

        def ours() -> float:
            return first_answer(SERVE, env)

        def bare() -> float:
            return first_answer(BARE, None)

        figures = in_turn(rounds, ours, bare)
    goal = ratio_at_most(1.5) & p50_at_most(400)
    yield Row("starting", "process start → /livez", "ms", figures[0], BESIDE, figures[1], goal)
    for what, measure in (("import, elapsed", imported), ("import, processor time", processor_time)):
        figures = in_turn(
            rounds, measure("agent_runtime.serve.bootstrap, agent_runtime.serve.service"), measure("benchmarks.bare")
        )
        yield Row("starting", what, "ms", figures[0], BESIDE, figures[1], ratio_at_most(1.5))


BENCH = Bench("starting", run)
