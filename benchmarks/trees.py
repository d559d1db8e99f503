"""Time from the signal until a whole tree of processes is gone, beside ``killpg`` on a tree that stays in its group."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks.bed import child_command, directory, message, supervisor, until
from benchmarks.harness import Bench, Row, in_turn, ratio_at_most

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from benchmarks.bed import Supervised
    from benchmarks.harness import Scale

LAYERS = ("cgroup", "scan")
"""Values of ``AGENT_RUNTIME_CONTAINMENT`` to measure; the table names one that does not work here."""

SIZES = (1, 6, 51, 201)


def gone_at(pidfds: list[int]) -> float:
    """Wait until every process has ended; return when the last one did."""
    waiting = select.poll()
    for pidfd in pidfds:
        waiting.register(pidfd, select.POLLIN)
    left = len(pidfds)
    while left:
        for pidfd, _ in waiting.poll():
            waiting.unregister(pidfd)
            left -= 1
    return time.monotonic()


@contextlib.contextmanager
def held(leader: int, size: int, stamp: str) -> Iterator[list[int]]:
    """Wait until a tree has *size* processes; yield a pidfd of each while the block lasts."""
    until(Path(f"{stamp}.ready").exists, f"a tree of {size}")
    pids = [leader, *(child.pid for child in psutil.Process(leader).children(recursive=True))]
    if len(pids) != size:
        raise RuntimeError(f"a tree of {len(pids)}, not {size}")
    pidfds = [os.pidfd_open(pid) for pid in pids]
    try:
        yield pidfds
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def run(scale: Scale) -> Iterable[Row]:
    rounds = scale.rounds(20, 2)
    numbers = itertools.count()
    for layer in LAYERS:
        with directory() as home, supervisor(home, child_command(), CONTAINMENT=layer) as running:
            for size in SIZES:

                def told() -> tuple[str, str]:
                    stamp = str(home / f"stamp-{next(numbers)}")
                    return stamp, message(do="tree", processes=size, stamp=stamp)

                def ours() -> float:
                    stamp, text = told()
                    return _through(running, f"tree-{next(numbers)}", text, size, stamp)

                def killpg() -> float:
                    stamp, text = told()
                    with subprocess.Popen(
                        child_command().split(), stdin=-1, stdout=subprocess.DEVNULL, start_new_session=True
                    ) as process:
                        if process.stdin is None:
                            raise RuntimeError("no stdin")
                        process.stdin.write(text.encode())
                        process.stdin.close()
                        with held(process.pid, size, stamp) as pidfds:
                            process.send_signal(signal.SIGINT)
                            select.select([pidfds[0]], [], [])
                            with contextlib.suppress(ProcessLookupError):
                                os.killpg(process.pid, signal.SIGKILL)
                            return _since(stamp, gone_at(pidfds))

                mine, theirs = in_turn(rounds, ours, killpg)
                what = f"signal → tree of {size} gone, {layer}"
                yield Row("trees", what, "ms", mine, "killpg", theirs, ratio_at_most(1.5))


def _through(running: Supervised, execution_id: str, text: str, size: int, stamp: str) -> float:
    running.http.post(text, execution_id=execution_id, async_result=True)
    [one] = until(lambda: running.http.get("/api/executions/running")["executions"], "the start")
    with held(one["pid"], size, stamp) as pidfds:
        # In a thread, because the answer comes only when the record is final, which is later than the tree's end.
        asking = threading.Thread(target=running.http.ask, args=("POST", f"/api/executions/{execution_id}/terminate"))
        asking.start()
        took = _since(stamp, gone_at(pidfds))
        asking.join()
    running.http.ended(execution_id)
    return took


def _since(stamp: str, moment: float) -> float:
    """Return the milliseconds from the leader's signal to *moment*; the leader ends at once, and leaves the others."""
    return float(moment - json.loads(Path(stamp).read_text())["signalled"]) * 1000


BENCH = Bench("trees", run)
