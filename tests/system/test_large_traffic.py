"""Large bodies and answers hold up nobody, and readers that take nothing cost a bounded amount of memory."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.support.supervised import Supervised, eventually, supervised
from tests.system.test_executions import OK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

MIB = 1 << 20
LISTS = b'{"message":"x","mcp_config":{"mcpServers":{"a":[' + b"[]," * 2_500_000 + b"[]]}}}"
LONGEST_GAP_SECONDS = 1.0
"""Ten times what the benchmark allows (benchmarks/traffic.py), for a machine that does much else."""


def printing(text_bytes: int) -> dict[str, Any]:
    return {
        "script": [{"do": "init"}, {"do": "assistant", "text": "x" * text_bytes}, {"do": "result", "text": "Done."}]
    }


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    """A supervisor with an answer of nearly 4 MiB and some hundred records."""
    with supervised(tmp_path_factory.mktemp("loaded"), flags=("--queue", "500", "--log-level", "info")) as running:
        assert running.post(printing(3_900_000), execution_id="long").status_code == 200
        yield running


def post_lists(url: str) -> None:
    answer = httpx.post(f"{url}/api/task", content=LISTS, timeout=60, trust_env=False)
    assert (answer.status_code, answer.json()["error_class"]) == (400, "invalid_request")
    assert "100000 values" in answer.json()["detail"]


def get_result(url: str) -> None:
    answer = httpx.get(f"{url}/api/executions/long/result", timeout=60, trust_env=False)
    assert answer.status_code == 200
    assert len(answer.content) > 7 * MIB


def post_known(url: str) -> None:
    message = json.dumps(printing(3_900_000))
    answer = httpx.post(
        f"{url}/api/task", json={"message": message, "execution_id": "long"}, timeout=60, trust_env=False
    )
    assert answer.status_code == 200
    assert len(answer.content) > 3 * MIB


def post_long_message(url: str) -> None:
    answer = httpx.post(
        f"{url}/api/task", json={"message": "a,[" * 5_000_000, "model": ""}, timeout=60, trust_env=False
    )
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("call", "times"),
    [
        pytest.param(post_lists, 3, id="three times 7.5 MB of nested lists"),
        pytest.param(get_result, 15, id="15 results"),
        pytest.param(post_known, 6, id="6 kept answers"),
        pytest.param(post_long_message, 1, id="a message of 15 MB"),
    ],
)
def test_the_event_loop_is_never_held_for_long(loaded: Supervised, call: Callable[[str], None], times: int) -> None:
    """One good round of several is enough: any one may be late on a loaded machine, not all of them."""
    assert any(longest_wait(loaded, call, times) < LONGEST_GAP_SECONDS for _ in range(3))


def longest_wait(running: Supervised, call: Callable[[str], None], times: int) -> float:
    """Return the longest time that ``/livez`` took while *call* was made so many times at once."""
    waits = []
    with ThreadPoolExecutor(min(times, 10)) as pool:
        calls = [pool.submit(call, running.url) for _ in range(times)]
        while not all(one.done() for one in calls):
            begun = time.perf_counter()
            assert running.client.get("/livez").status_code == 200
            waits.append(time.perf_counter() - begun)
            threading.Event().wait(0.005)
        for one in calls:
            one.result()
    return max(waits)


def metric(running: Supervised, name: str) -> float:
    found = re.search(rf"^agent_runtime_{name} (.+)$", running.client.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


@contextlib.contextmanager
def readers_that_take_nothing(running: Supervised, path: str, count: int) -> Iterator[list[socket.socket]]:
    address = urlsplit(running.url)
    with contextlib.ExitStack() as held:
        readers = []
        for _ in range(count):
            reader = held.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect((address.hostname, address.port))
            reader.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            readers.append(reader)
        yield readers


@pytest.mark.parametrize(("what", "count"), [("stream", 60), ("result", 30)])
def test_readers_that_take_nothing_cost_a_bounded_amount_that_is_given_back(
    tmp_path: Path, what: str, count: int
) -> None:
    budget = 24 * MIB
    flags = ("--response-buffer-bytes", str(budget))
    with supervised(tmp_path, flags=flags) as running:
        memory = psutil.Process(running.process.pid).memory_info
        # A stream has all of a frame, an answer no more than its limit.
        assert running.post(printing(12 * MIB if what == "stream" else 3_900_000), execution_id="long").is_success
        get_result(running.url) if what == "result" else running.get("/api/executions/long")
        before = memory().rss

        with readers_that_take_nothing(running, f"/api/executions/long/{what}", count) as readers:
            for reader in readers if what == "stream" else readers[:2]:
                assert reader.recv(12) == b"HTTP/1.1 200"
            eventually(lambda: metric(running, "response_buffer_bytes") > 7 * MIB)
            peak = memory().rss
            assert metric(running, "response_buffer_bytes") <= budget
            assert running.post(OK).json()["status"] == "success"

        # Of streams 60 frames of 12 MiB would be 720 MiB, of results 30 bodies of 7.5 MiB 225.
        assert peak - before < budget + count * 256 * 1024 + 16 * MIB
        eventually(lambda: metric(running, "response_buffer_bytes") == 0)
        eventually(lambda: memory().rss - before < 10 * 1000 * 1000)


def test_a_reader_that_takes_nothing_makes_room_for_the_next(tmp_path: Path) -> None:
    with supervised(tmp_path, flags=("--response-buffer-bytes", str(9 * MIB))) as running:
        assert running.post(printing(3_900_000), execution_id="long").is_success
        with readers_that_take_nothing(running, "/api/executions/long/result", 1) as (idle,):
            assert idle.recv(12) == b"HTTP/1.1 200"
            get_result(running.url)

            assert metric(running, "readers_let_go_total") == 1
            assert sum(map(len, iter(lambda: idle.recv(1 << 20), b""))) < 7 * MIB  # it ends, and too soon
        assert "a connection was closed: its reader" in running.log.read_text()
