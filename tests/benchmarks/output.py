"""How fast a child's output gets through the supervisor into the transcript."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import psutil

from tests.benchmarks.bed import child_command, directory, epoch, message, supervisor
from tests.benchmarks.harness import Bench, Figure, Row, in_turn, ratio_at_least

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.benchmarks.harness import Scale

MB = 1 << 20
LINE_LIMIT_BYTES = 16 * MB
FRAMES = ((200, "200 B"), (4096, "4 KB"), (MB, "1 MB"))


def run(scale: Scale) -> Iterable[Row]:
    rounds, size = scale.rounds(7, 1), scale.rounds(96, 4) * MB
    with directory() as home, supervisor(home, child_command(), ANSWER_LOG_LIMIT="65536") as running:
        numbers = itertools.count()
        process = psutil.Process(running.pid)
        # MB for each second of a processor, which what else runs here touches less than the elapsed time.
        busy: dict[str, list[float]] = defaultdict(list)

        def told(frame_bytes: int) -> tuple[Path, str]:
            stamped = home / f"stamp-{next(numbers)}"
            return stamped, message(do="print", frame=frame_bytes, bytes=size, stamp=str(stamped))

        def through_supervisor(frame_bytes: int) -> float:
            stamped, text = told(frame_bytes)
            execution_id = f"output-{next(numbers)}"
            before = _spent(process)
            if running.http.post(text, execution_id=execution_id)["status"] != "success":
                raise RuntimeError("an execution failed")
            busy["ours"].append(size / MB / (_spent(process) - before))
            [attempt] = running.http.get(f"/api/executions/{execution_id}")["attempts"]
            (home / "data" / "transcripts" / f"{execution_id}.jsonl").unlink()
            return _rate(stamped, epoch(attempt["ended_at"]))

        def through_tee(frame_bytes: int) -> float:
            stamped, text = told(frame_bytes)
            asked = home / "asked"
            asked.write_text(text)
            with (
                asked.open("rb") as stdin,
                subprocess.Popen(child_command().split(), stdin=stdin, stdout=subprocess.PIPE) as child,
            ):
                tee = subprocess.Popen(["tee", str(home / "teed")], stdin=child.stdout, stdout=subprocess.DEVNULL)
                _, status, used = os.wait4(tee.pid, 0)
                tee.returncode = os.waitstatus_to_exitcode(status)
            ended = time.time()
            busy["tee"].append(size / MB / (used.ru_utime + used.ru_stime))
            (home / "teed").unlink()
            return _rate(stamped, ended)

        def through_loop(frame_bytes: int) -> float:
            stamped, text = told(frame_bytes)
            before = time.process_time()
            asyncio.run(_read_in_loop(text))
            busy["loop"].append(size / MB / (time.process_time() - before))
            return _rate(stamped, time.time())

        for frame_bytes, name in FRAMES:
            busy.clear()
            figures = in_turn(
                rounds,
                lambda: through_supervisor(frame_bytes),
                lambda: through_tee(frame_bytes),
                lambda: through_loop(frame_bytes),
            )
            what = f"output → transcript, frames of {name}"
            yield from _rows(what, "MB/s", *figures)
            spent = (Figure.of(busy[side]) for side in ("ours", "tee", "loop"))
            yield from _rows(what, "MB per second of a processor", *spent)


def _rows(what: str, unit: str, ours: Figure, tee: Figure, loop: Figure) -> Iterable[Row]:
    yield Row("output", what, unit, ours, "tee FILE", tee, ratio_at_least(0.5))
    yield Row("output", what, unit, ours, "asyncio readline + json.loads", loop, ratio_at_least(5))


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def _read_in_loop(text: str) -> int:
    process = await asyncio.create_subprocess_exec(
        *child_command().split(), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_LIMIT_BYTES
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("no pipes")
    process.stdin.write(text.encode())
    process.stdin.close()
    assistant = 0
    while line := await process.stdout.readline():
        frame: dict[str, Any] = json.loads(line)
        assistant += frame["type"] == "assistant"
    await process.wait()
    return assistant


def _rate(stamped: Path, ended: float) -> float:
    """Return MB a second, from the child's first write to the end."""
    stamp = json.loads(stamped.read_text())
    return float(stamp["sent"] / MB / (ended - stamp["begun"]))


BENCH = Bench("output", run)
