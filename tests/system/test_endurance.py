"""What must hold over many executions: nothing grows; takes a minute or two."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from agent_runtime.process.forkserver.shim import FORK_SERVER_NAME
from tests.support.supervised import QUICK_CLI, eventually, supervised

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_ten_thousand_executions_leave_descriptors_threads_and_memory_flat(tmp_path: Path) -> None:
    # Without file delivery: the proof it needs, made in the background, has its own needs of memory, once.
    flags = ("--slots", "4", "--queue", "100", "--log-level", "warning", "--token-delivery", "env")
    count = 10_000
    with supervised(tmp_path, claude=QUICK_CLI, flags=flags) as running:
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
