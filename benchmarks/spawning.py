"""Time that the supervisor adds to a child that does nothing: from the task to the fork, and to the whole answer."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING

from benchmarks.bed import bare_server, directory, epoch, nothing_cli, supervisor
from benchmarks.harness import Bench, Row, adds_at_most, in_turn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.harness import Scale

BESIDE = "subprocess.Popen of the same child"
LEAST = "bare uvicorn, the same in a thread"


def run(scale: Scale) -> Iterable[Row]:
    with directory() as home:
        cli = nothing_cli(home)
        with supervisor(home, cli) as running:

            def spawned() -> float:
                begun = time.time()
                answer = running.http.post()
                [attempt] = running.http.get(f"/api/executions/{answer['execution_id']}")["attempts"]
                return (epoch(attempt["started_at"]) - begun) * 1000

            def spawned_bare() -> float:
                begun = time.time()
                with subprocess.Popen([cli], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
                    took = (time.time() - begun) * 1000
                    process.communicate(b"x")
                return took

            def answered() -> float:
                begun = time.perf_counter()
                if running.http.post()["status"] != "success":
                    raise RuntimeError("an execution failed")
                return (time.perf_counter() - begun) * 1000

            def answered_bare() -> float:
                begun = time.perf_counter()
                with subprocess.Popen([cli], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
                    lines = process.communicate(b"x")[0].splitlines()
                if json.loads(lines[-1])["is_error"]:
                    raise RuntimeError("the child failed")
                return (time.perf_counter() - begun) * 1000

            in_turn(5, answered, answered_bare)  # not measured: the first rounds load code
            rounds = scale.rounds(200, 5)
            ours, bare = in_turn(rounds, spawned, spawned_bare)
            yield Row("spawning", "task in → child spawned", "ms", ours, BESIDE, bare, adds_at_most(5))
            with bare_server() as (_, bare_http):

                def answered_by_bare_server() -> float:
                    begun = time.perf_counter()
                    if json.loads(bare_http.ask("POST", "/run", cli.encode())[1])["is_error"]:
                        raise RuntimeError("the child failed")
                    return (time.perf_counter() - begun) * 1000

                ours, bare, least = in_turn(rounds, answered, answered_bare, answered_by_bare_server)
            yield Row("spawning", "task in → whole answer", "ms", ours, BESIDE, bare, adds_at_most(5))
            yield Row("spawning", "task in → whole answer", "ms", ours, LEAST, least)


BENCH = Bench("spawning", run)
