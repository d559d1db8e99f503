"""Restarts and broken connections under load, seen by backends that use the client; takes minutes."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.client import AgentClient, Answer, RequestRefused, SyncAgentClient
from tests.support.broken_network import Cut, Gate, gate
from tests.support.supervised import DEADLINE_SECONDS, SCRIPTED, Supervised, eventually, marked_processes, supervised

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ENDINGS = {"Done.", "Nothing left to play."}
"""One that was stopped while it printed its result has nothing left to play when it is resumed."""

ONCE_AT_A_TIME = """#!/bin/sh
# Held by this process and the CLI it becomes, as long as they live.
exec 9>>"{home}/held-$AGENT_RUNTIME_EXECUTION_ID"
held="{home}/held-$AGENT_RUNTIME_EXECUTION_ID"
flock -n 9 || echo "$AGENT_RUNTIME_EXECUTION_ID: $$ beside one of" $(cat "$held") >>"{home}/twice"
echo $$ >&9
echo "$AGENT_RUNTIME_EXECUTION_ID" >>"{home}/ran"
exec {cli} "$@"
"""


def one_at_a_time(home: Path) -> str:
    """Write a CLI that tells when a second process of the same execution is there beside the first."""
    path = home / "cli"
    path.write_text(ONCE_AT_A_TIME.format(home=home, cli=SCRIPTED))
    path.chmod(0o755)
    return str(path)


def talking(home: Path, name: str, *, lines: int, seconds: float) -> str:
    """Say numbered lines, and note each beside *home* after it was said."""
    steps: list[dict[str, Any]] = [{"do": "init"}]
    for number in range(lines):
        steps += [
            {"do": "assistant", "text": f"line {number}"},
            {"do": "touch", "path": str(home / f"said-{name}"), "text": f"line {number}"},
            {"do": "sleep", "seconds": seconds},
        ]
    return json.dumps({"script": [*steps, {"do": "result", "text": "Done."}]})


def lines_in(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def follow_to_success(url: str, execution_id: str) -> list[int | None]:
    """Read a stream to the execution's success, over the ends that interruptions give it."""
    had: list[int | None] = []
    with SyncAgentClient(url) as agent:
        while True:
            try:
                for event in agent.stream(execution_id, after=int(had[-1] or 0) if had else 0):
                    if event.name == "message":
                        had.append(event.id)
                    if event.name == "end" and event.data["outcome"] == "success":
                        return had
            except RequestRefused:  # it has not been admitted yet
                threading.Event().wait(0.05)


async def run_all(url: str, tasks: Iterable[tuple[str, str]]) -> list[Answer]:
    async with AgentClient(url) as agent:
        return await asyncio.gather(*(agent.run(message, execution_id=name) for name, message in tasks))


def run_all_blocking(url: str, tasks: list[tuple[str, str]]) -> list[Answer]:
    with SyncAgentClient(url) as agent, ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(lambda task: agent.run(task[1], execution_id=task[0]), tasks))


def accounted_for(running: Supervised, home: Path, names: list[str]) -> None:
    """Hold against what happened: every end is known and fetched, nothing ran twice at once, nothing is left."""
    records = [running.record(name) for name in names]
    assert {record["outcome"] for record in records} == {"success"}
    assert {running.get(f"/api/executions/{name}/result")["status_code"] for name in names} == {200}
    assert lines_in(home / "twice") == []
    assert set(names) <= set(lines_in(home / "ran"))
    for record in records:
        ends = [(attempt["started_at"], attempt["ended_at"]) for attempt in record["attempts"]]
        assert all(ended <= started for (_, ended), (started, _) in itertools.pairwise(ends)), record
    alive = running.get("/api/executions/running")
    assert (alive["executions"], alive["pending_ids"]) == ([], [])
    assert not any(marked_processes(name) for name in names)


def test_a_rolling_restart_under_load_loses_neither_an_execution_nor_a_line(tmp_path: Path) -> None:
    names = [f"rolled-{n:02}" for n in range(14)]
    tasks = [(name, talking(tmp_path, name, lines=30, seconds=0.15)) for name in names]
    flags = ("--slots", "8", "--queue", "16", "--drain-timeout", "0.6", "--stop-grace", "0.5", "--resume-interrupted")
    claude = one_at_a_time(tmp_path)
    with ThreadPoolExecutor(20) as pool:
        with supervised(tmp_path, claude=claude, flags=flags) as first:
            url, port = first.url, first.url.rpartition(":")[2]
            waiting = pool.submit(asyncio.run, run_all(url, tasks[:9]))
            blocked = pool.submit(run_all_blocking, url, tasks[9:])
            readers = [pool.submit(follow_to_success, url, name) for name in names]
            eventually(lambda: len(first.get("/api/executions/running")["pending_ids"]) == len(names) - 8)
            eventually(lambda: sum(bool(lines_in(tmp_path / f"said-{name}")) for name in names) == 8)
            assert first.stop() == 0
        assert not any(marked_processes(name) for name in names)
        said = {name: lines_in(tmp_path / f"said-{name}") for name in names}
        assert any(said.values())
        with supervised(tmp_path, claude=claude, flags=("--port", port, *flags)) as second:
            answers = waiting.result(300) + blocked.result(300)
            assert {answer.response for answer in answers} <= ENDINGS
            assert [answer.execution_id for answer in answers] == names
            accounted_for(second, tmp_path, names)
            assert sum(len(second.record(name)["attempts"]) for name in names) > len(names)
            for name, reader in zip(names, readers, strict=True):
                lines = reader.result(DEADLINE_SECONDS)
                transcript = next((second.data_dir / "transcripts").glob(f"{name}*.jsonl")).read_text()
                assert lines == list(range(1, len(transcript.splitlines()) + 1))
                kept = [frame_text(line) for line in transcript.splitlines()]
                # Each line that was said is there once; what it was saying when it was stopped may be there, too.
                assert [text for text in kept if text in set(lines_in(tmp_path / f"said-{name}"))] == lines_in(
                    tmp_path / f"said-{name}"
                )


def frame_text(line: str) -> str | None:
    frame = json.loads(line)
    return frame["message"]["content"][0].get("text") if frame["type"] == "assistant" else None


def cuts(way: Gate, rng: random.Random, stop: threading.Event) -> None:
    """Reset whatever is connected, again and again, at moments that nobody can foresee."""
    while not stop.wait(rng.uniform(0.1, 1.5)):
        way.cut_all()


def random_cut(rng: random.Random) -> Cut:
    """Plan where a connection is cut: in the request, at its end, in the answer, or later by :func:`cuts`."""
    return rng.choice(
        [Cut(request_bytes=rng.randrange(1, 900)), Cut(reply_bytes=rng.randrange(1, 1500)), Cut()],
    )


def test_a_hundred_executions_survive_cut_connections_and_three_killed_supervisors(tmp_path: Path) -> None:
    count = 100
    rng = random.Random(20261122)
    names = [f"execution-{n}" for n in range(count)]
    tasks = [(name, talking(tmp_path, name, lines=1, seconds=0.5)) for name in names]
    flags = ("--slots", "6", "--queue", "200", "--stop-grace", "0.3")
    claude = one_at_a_time(tmp_path)

    stop = threading.Event()
    port = "0"
    with ThreadPoolExecutor(2) as pool:
        way: Gate | None = None
        for lifetime in range(4):
            last = lifetime == 3
            with supervised(
                tmp_path, claude=claude, flags=("--port", port, *flags), expect_exit=0 if last else None
            ) as running:
                port = running.url.rpartition(":")[2]
                if way is None:
                    between = gate(running.url, *(random_cut(rng) for _ in range(count)))
                    way = between.__enter__()
                    answered = pool.submit(asyncio.run, run_all(way.url, tasks))
                    cutter = pool.submit(cuts, way, rng, stop)
                if not last:
                    eventually(partial(enough_ran, tmp_path, count * (lifetime + 1) // 5))
                    running.process.send_signal(signal.SIGKILL)
                    running.process.wait(DEADLINE_SECONDS)
                    continue
                answers = answered.result(400)
                stop.set()
                cutter.result(DEADLINE_SECONDS)
                assert {answer.response for answer in answers} <= ENDINGS
                assert [answer.execution_id for answer in answers] == names
                accounted_for(running, tmp_path, names)
                assert way.connections > count
                between.__exit__(None, None, None)


def enough_ran(home: Path, count: int) -> bool:
    return len(set(lines_in(home / "ran"))) >= count
