"""What must hold over many executions, cut connections and killed supervisors; takes minutes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import random
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from agent_runtime.process.forkserver.shim import FORK_SERVER_NAME
from tests.support.supervised import DEADLINE_SECONDS, eventually, marked_processes, supervised

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

QUICK_CLI = """#!/bin/sh
cat >/dev/null
mode=bypassPermissions
for word; do case $word in --permission-mode=*) mode=${word#*=};; esac; done
id=$(cat /proc/sys/kernel/random/uuid)
printf '{"type":"system","subtype":"init","session_id":"%s","permissionMode":"%s"}\\n' $id $mode
printf '{"type":"assistant","message":{"model":"quick","content":[{"type":"text","text":"x"}]}}\\n'
printf '{"type":"result","subtype":"success","is_error":false,"result":"x","session_id":"%s"}\\n' $id
"""


def quick_cli(home: Path) -> str:
    """Write a CLI that says the least a run can say; it starts in a few milliseconds."""
    path = home / "quick-cli"
    path.write_text(QUICK_CLI)
    path.chmod(0o755)
    return str(path)


def has_lines(path: Path, count: int) -> bool:
    return path.exists() and len(path.read_text().splitlines()) >= count


def until_answered(
    client: httpx.Client, url: dict[str, str], execution_id: str, body: dict[str, Any], rng: random.Random
) -> dict[str, Any]:
    """Post a task, hang up at a random moment, and ask for the id again until there is an answer."""
    for _ in range(600):
        with contextlib.suppress(httpx.HTTPError):
            timeout = rng.choice([0.01, 0.05, 0.2, DEADLINE_SECONDS])
            task = {**body, "execution_id": execution_id}
            response = client.post(f"{url['now']}/api/task", json=task, timeout=timeout)
            if response.status_code == 200:
                answer: dict[str, Any] = response.json()
                return answer
        threading.Event().wait(0.05)
    pytest.fail(f"{execution_id}: no answer")


def test_a_hundred_executions_survive_cut_connections_and_three_killed_supervisors(tmp_path: Path) -> None:
    log = tmp_path / "ran"
    rng = random.Random(20261122)
    script = [
        {"do": "init"},
        {"do": "assistant", "text": "x"},
        {"do": "touch", "path": str(log), "text": "began {pid}"},
        {"do": "sleep", "seconds": 0.2},
        {"do": "result", "text": "Done."},
    ]
    names = [f"execution-{n}" for n in range(100)]
    flags = ("--slots", "6", "--queue", "200", "--stop-grace", "0.3")
    url: dict[str, str] = {}
    body = {"message": json.dumps({"script": script})}
    # One client for all: making one takes more processor time than the task that it posts.
    with httpx.Client(trust_env=False) as client, ThreadPoolExecutor(20) as pool:
        futures: list[Future[dict[str, Any]]] = []
        for lifetime in range(4):
            with supervised(tmp_path, flags=flags, expect_exit=0 if lifetime == 3 else None) as running:
                url["now"] = running.url
                if not futures:
                    futures = [
                        pool.submit(until_answered, client, url, name, body, random.Random(rng.random()))
                        for name in names
                    ]
                if lifetime < 3:
                    eventually(functools.partial(has_lines, log, 20 * (lifetime + 1)))
                    running.process.send_signal(signal.SIGKILL)
                    running.process.wait(DEADLINE_SECONDS)
                else:
                    answers = [future.result(300) for future in futures]
                    records = [running.record(name) for name in names]
                    results = [running.get(f"/api/executions/{name}/result") for name in names]

    # One that was killed while it printed its result has nothing left to play when it is resumed.
    assert {answer["response"] for answer in answers} <= {"Done.", "Nothing left to play."}
    assert {record["outcome"] for record in records} == {"success"}
    assert {result["status_code"] for result in results} == {200}
    for record in records:
        ends = [(attempt["started_at"], attempt["ended_at"]) for attempt in record["attempts"]]
        assert all(ended <= started for (_, ended), (started, _) in itertools.pairwise(ends)), record
    assert not any(marked_processes(name) for name in names)


def test_ten_thousand_executions_leave_descriptors_threads_and_memory_flat(tmp_path: Path) -> None:
    # Without file delivery: the proof it needs, made in the background, has its own needs of memory, once.
    flags = ("--slots", "4", "--queue", "100", "--log-level", "warning", "--token-delivery", "env")
    count = 10_000
    with supervised(tmp_path, claude=quick_cli(tmp_path), flags=flags) as running:
        process = psutil.Process(running.process.pid)
        clients = [httpx.Client(base_url=running.url, timeout=60, trust_env=False) for _ in range(8)]

        def run(number: int) -> int:
            return clients[number % 8].post("/api/task", json={"message": "x"}).status_code

        def measure() -> tuple[int, int, int]:
            eventually(lambda: running.get("/health")["slots"]["busy"] == 0)
            return process.num_fds(), process.num_threads(), process.memory_info().rss

        with ThreadPoolExecutor(8) as pool:
            # Until then caches fill: of records, of SQLite's pages, of what is imported on first use.
            assert set(pool.map(run, range(count // 2))) == {200}
            before = measure()
            assert set(pool.map(run, range(count // 2))) == {200}
        after = measure()
        for client in clients:
            client.close()

        assert abs(after[0] - before[0]) <= 2, (before, after)
        assert abs(after[1] - before[1]) <= 1, (before, after)
        assert after[2] <= before[2] * 1.05, (before, after)
        children = [child.name() for child in process.children(recursive=True) if child.is_running()]
        assert children == [FORK_SERVER_NAME.decode()]
        assert len(running.get("/api/executions?limit=200")["executions"]) == 200
