"""Time from the line that reports a refused token to the signal, beside a loop with ``readline()`` and ``re``."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import signal
from typing import TYPE_CHECKING, Any

from benchmarks.bed import SERVE, child_command, directory, epoch, message, supervisor, token
from benchmarks.blocked import take_the_loop
from benchmarks.harness import Bench, Figure, Row, p99_at_most

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from benchmarks.bed import Supervised
    from benchmarks.harness import Goal, Scale

MB = 1_000_000
SLOTS = 4
BYTES_A_SECOND = 100 * MB // SLOTS
PATTERN = re.compile(rb"API error.*(?:401|403)|authentication_error|OAuth token (?:has expired|revoked)", re.IGNORECASE)
BESIDE = "asyncio readline() + re"
CONDITIONS: tuple[tuple[str, tuple[str, ...], int, Goal], ...] = (
    ("idle", SERVE, 0, p99_at_most(5)),
    ("event loop blocked 200 ms", ("-m", "benchmarks.blocked"), 0, p99_at_most(50)),
    ("event loop computing 200 ms", ("-m", "benchmarks.blocked", "burn"), 0, p99_at_most(50)),
    (f"{SLOTS} slots flooding, 100 MB/s in all", SERVE, BYTES_A_SECOND, p99_at_most(50)),
)


class Measured:
    """The times measured on one side, in milliseconds."""

    def __init__(self) -> None:
        self.from_write: list[float] = []
        self.from_read: list[float] = []

    def add(self, stamp: Path) -> None:
        told = json.loads(stamp.read_text())
        self.from_write.append((told["signalled"] - told["written"]) * 1000)


def failing(home: Path, rate: int, number: int) -> tuple[Path, str]:
    """
    Return the file of times and the message of a child that fails after a moment.

    Until then it prints *rate* bytes a second to its stdout.
    """
    stamp = home / f"stamp-{number}"
    told = {"do": "fail", "stamp": str(stamp), "seconds": 0.2 if rate else 0.02, "bytes_a_second": rate, "frame": 4096}
    return stamp, message(**told)


def flooding(home: Path, rate: int, seconds: float, number: int) -> tuple[Path, str]:
    stamp = home / f"stamp-{number}"
    told = {"do": "flood", "stamp": str(stamp), "seconds": seconds, "bytes_a_second": rate, "frame": 4096}
    return stamp, message(**told)


class Flood:
    """How much the children in the other slots have printed."""

    def __init__(self) -> None:
        self.sent = 0
        self.seconds = 0.0

    @property
    def note(self) -> str:
        return f"the others printed {self.sent / MB / self.seconds:.0f} MB/s" if self.seconds else ""


def ours(
    home: Path, running: Supervised, rate: int, times: int, numbers: Iterator[int], measured: Measured, flood: Flood
) -> None:
    """Fail *times* times under the supervisor, each time with a new token, because each is refused for good."""
    running.http.ask("POST", "/api/credentials/reload-token", json.dumps({"token": token(next(numbers))}).encode())
    others: list[tuple[str, Path]] = []
    if rate:
        for _ in range(SLOTS - 1):
            number = next(numbers)
            stamp, text = flooding(home, rate, times * 0.3, number)
            running.http.post(text, execution_id=f"flood-{number}", async_result=True)
            others.append((f"flood-{number}", stamp))
    for _ in range(times):
        number = next(numbers)
        running.http.ask("POST", "/api/credentials/reload-token", json.dumps({"token": token(number)}).encode())
        stamp, text = failing(home, rate, number)
        answer = running.http.post(text, execution_id=f"fail-{number}")
        if answer.get("error_class") != "auth":
            raise RuntimeError(f"not taken for refused: {answer}")
        measured.add(stamp)
        [attempt] = running.http.get(f"/api/executions/fail-{number}")["attempts"]
        measured.from_read.append(attempt["evidence"]["seconds_to_signal"] * 1000)
    for execution_id, stamp in others:
        [attempt] = running.http.ended(execution_id)["attempts"]
        flood.sent += json.loads(stamp.read_text())["sent"]
        flood.seconds = flood.seconds + (epoch(attempt["ended_at"]) - epoch(attempt["started_at"])) / len(others)
    for path in (home / "data" / "transcripts").iterdir():
        path.unlink()


async def theirs(home: Path, name: str, rate: int, times: int, numbers: Iterator[int], measured: Measured) -> None:
    """Fail *times* times in the loop with ``readline()``."""
    blocking = None
    if name.startswith("event loop"):
        blocking = asyncio.create_task(take_the_loop(burning="computing" in name))
    others = []
    if rate:
        for _ in range(SLOTS - 1):
            _, text = flooding(home, rate, times * 0.3, next(numbers))
            others.append(asyncio.create_task(_watched(text)))
    for _ in range(times):
        stamp, text = failing(home, rate, next(numbers))
        await _watched(text)
        measured.add(stamp)
    for task in others:
        await task
    if blocking is not None:
        blocking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await blocking


async def _watched(text: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *child_command().split(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=16 << 20,
    )
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise RuntimeError("no pipes")
    process.stdin.write(text.encode())
    process.stdin.close()

    async def read(stream: asyncio.StreamReader, pattern: re.Pattern[bytes] | None) -> None:
        while line := await stream.readline():
            if pattern is None:
                frame: dict[str, Any] = json.loads(line)
                if frame.get("is_error"):
                    process.send_signal(signal.SIGINT)
            elif pattern.search(line):
                process.send_signal(signal.SIGINT)

    await asyncio.gather(read(process.stdout, None), read(process.stderr, PATTERN))
    await process.wait()


def run(scale: Scale) -> Iterable[Row]:
    rounds = scale.rounds(5, 1)
    numbers = itertools.count(1)
    for name, program, rate, goal in CONDITIONS:
        times = scale.rounds(8 if rate else 20, 3)
        mine, other, flood = Measured(), Measured(), Flood()
        with directory() as home, supervisor(home, child_command(), program=program) as running:
            for _ in range(rounds):
                ours(home, running, rate, times, numbers, mine, flood)
                # Fewer times with a blocked event loop, where each takes most of a second.
                asyncio.run(
                    theirs(home, name, rate, times if rate or name == "idle" else times // 4 or 1, numbers, other)
                )
        baseline = Figure.of(other.from_write)
        written, read = Figure.of(mine.from_write), Figure.of(mine.from_read)
        yield Row("detection", f"line → signal, {name}", "ms", written, BESIDE, baseline, goal, flood.note)
        yield Row("detection", f"our read → signal, {name}", "ms", read, goal=goal)


BENCH = Bench("detection", run)
