"""How soon a supervisor that has stored many executions answers about them."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from benchmarks.bed import directory, nothing_cli, supervisor
from benchmarks.harness import Bench, Figure, Row, p99_at_most

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.bed import Http
    from benchmarks.harness import Scale


def asked(http: Http, paths: Iterable[str]) -> Figure:
    """
    Request each path; return how many milliseconds the answers took.

    What the client does with an answer is not counted: to parse 200 records takes 2.5 ms, and now and then 8 more,
    because it makes this process collect its garbage.
    """
    samples = []
    for path in paths:
        begun = time.perf_counter()
        status, body = http.ask("GET", path)
        samples.append((time.perf_counter() - begun) * 1000)
        if status != HTTPStatus.OK:
            raise RuntimeError(f"{path}: {status} {body[:300]!r}")
    return Figure.of(samples)


def run(scale: Scale) -> Iterable[Row]:
    kept, times = scale.rounds(1000, 20), scale.rounds(500, 20)
    with directory() as home, supervisor(home, nothing_cli(home), QUEUE=str(kept), SLOTS="4") as running:
        ids = [f"execution-{number}" for number in range(kept)]
        for execution_id in ids[:-1]:
            running.http.post(execution_id=execution_id, async_result=True)
        running.http.post(execution_id=ids[-1])
        for execution_id in ids:
            running.http.ended(execution_id)
        some = [ids[number * 7919 % kept] for number in range(times)]
        for what, paths in (
            ("list, first page", ["/api/executions"] * times),
            ("list, 200", ["/api/executions?limit=200"] * (times // 5 or 1)),
            ("one record", [f"/api/executions/{execution_id}" for execution_id in some]),
            ("its result", [f"/api/executions/{execution_id}/result" for execution_id in some]),
        ):
            yield Row("kept", f"{kept} kept: {what}", "ms", asked(running.http, paths), goal=p99_at_most(20))


BENCH = Bench("kept", run)
