"""
How fast a child's output gets through the supervisor into the transcript, and what memory that takes.

The same run also measures the least that any Python program which reads frames must do: read bytes from the pipe,
decode all complete lines in one call (to the same objects, by the same decoder), and write the bytes to a file. It
checks no line, redacts nothing, writes no index and notifies nobody. Its speed beside ``tee``, and beside the loop,
shows how far the two goals can be reached.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import subprocess
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from agent_runtime.claude.frames import Frame
from benchmarks.bed import child_command, directory, epoch, message, supervisor
from benchmarks.harness import Bench, Figure, Row, adds_at_most, in_turn, ratio_at_least

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from benchmarks.bed import Supervised
    from benchmarks.harness import Scale

MB = 1 << 20
LINE_LIMIT_BYTES = 16 * MB
PIPE_BYTES = 256 << 10
LEAST = "read, decode, write in Python"
FRAMES = ((200, "200 B"), (4096, "4 KB"), (MB, "1 MB"))


def run(scale: Scale) -> Iterable[Row]:
    rounds, size = scale.rounds(7, 1), scale.rounds(96, 4) * MB
    with directory() as home, supervisor(home, child_command(), ANSWER_LOG_LIMIT="65536") as running:
        numbers = itertools.count()
        process = psutil.Process(running.pid)
        # MB for each second of processor time, on which other load has less effect than on the elapsed time.
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

        def through_least(frame_bytes: int) -> float:
            stamped, text = told(frame_bytes)
            # In a process of its own: its memory would change how the loop, which runs in this process, gets memory.
            if (pid := os.fork()) == 0:
                try:
                    _read_and_decode(text, home / "least")
                    (home / "seconds").write_text(str(time.process_time()))
                    os._exit(0)
                finally:
                    os._exit(1)
            _, status = os.waitpid(pid, 0)
            ended = time.time()
            if status:
                raise RuntimeError("it could not be read")
            # Not from its resource usage, which includes that of the child that prints.
            busy["least"].append(size / MB / float((home / "seconds").read_text()))
            (home / "least").unlink()
            return _rate(stamped, ended)

        for frame_bytes, name in FRAMES:
            busy.clear()
            figures = in_turn(
                rounds,
                lambda: through_supervisor(frame_bytes),
                lambda: through_tee(frame_bytes),
                lambda: through_loop(frame_bytes),
                lambda: through_least(frame_bytes),
            )
            what = f"output → transcript, frames of {name}"
            yield from _rows(what, "MB/s", *figures)
            spent = (Figure.of(busy[side]) for side in ("ours", "tee", "loop", "least"))
            yield from _rows(what, "MB per second of a processor", *spent)
        yield from _memory(home, running, scale)


def _rows(what: str, unit: str, ours: Figure, tee: Figure, loop: Figure, least: Figure) -> Iterable[Row]:
    yield Row("output", what, unit, ours, "tee FILE", tee, ratio_at_least(0.5))
    yield Row("output", what, unit, ours, "asyncio readline + json.loads", loop, ratio_at_least(5))
    limit = f"the least in Python is {least.p50 / tee.p50:.2g} of tee and {least.p50 / loop.p50:.2g} × the loop"
    yield Row("output", what, unit, ours, LEAST, least, note=f"{unit}: {limit}")


def _memory(home: Path, running: Supervised, scale: Scale) -> Iterable[Row]:
    """Show that the supervisor's memory does not grow with the length of the output, or of a line."""
    process = psutil.Process(running.pid)
    numbers = itertools.count()

    def after(frame_bytes: int, size: int) -> Figure:
        execution_id = f"memory-{next(numbers)}"
        text = message(do="print", frame=frame_bytes, bytes=size, stamp=str(home / execution_id))
        if running.http.post(text, execution_id=execution_id)["status"] != "success":
            raise RuntimeError("an execution failed")
        (home / "data" / "transcripts" / f"{execution_id}.jsonl").unlink()
        return Figure.of([process.memory_info().rss / MB])

    short, long = 8, scale.rounds(512, 64)
    before = after(4096, short * MB)
    for frame_bytes, name in ((4096, "4 KB"), (8 * MB, "8 MB"), (4 * LINE_LIMIT_BYTES, "64 MB, cut at 16 MB")):
        what = f"memory after {long} MB of output, lines of {name}"
        beside = f"after {short} MB, lines of 4 KB"
        yield Row("output", what, "MB", after(frame_bytes, long * MB), beside, before, adds_at_most(8))


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _read_and_decode(text: str, path: Path) -> None:
    decode_lines = msgspec.json.Decoder(Frame).decode_lines
    buffer = bytearray(PIPE_BYTES + 2 * MB)
    memory, filled = memoryview(buffer), 0
    with (
        path.open("wb", buffering=0) as file,
        subprocess.Popen(child_command().split(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        if child.stdin is None or child.stdout is None:
            raise RuntimeError("no pipes")
        source = child.stdout.fileno()
        fcntl.fcntl(source, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        child.stdin.write(text.encode())
        child.stdin.close()
        while count := os.readv(source, [memory[filled : filled + PIPE_BYTES]]):
            end = buffer.rfind(b"\n", filled, filled + count) + 1
            filled += count
            if end:
                decode_lines(memory[:end])
                file.write(memory[:end])
                memory[: filled - end] = memory[end:filled]
                filled -= end


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
