"""Large bodies, large answers, and readers that read nothing: how soon ``/livez`` answers, and the memory taken."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, cast

import psutil

from benchmarks.bed import child_command, directory, message, supervisor
from benchmarks.harness import NO_GOAL, Bench, Figure, Row, p50_at_most, p99_at_most

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.bed import Supervised
    from benchmarks.harness import Scale

MB = 1 << 20
RECORDS = 200
LISTS = b'{"message":"x","mcp_config":{"mcpServers":{"a":[' + b"[]," * 2_500_000 + b"[]]}}}"
POST_LISTS = b"POST /api/task HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (
    len(LISTS),
    LISTS,
)
SAMPLES = 100
IDLE_SECONDS = 8.0
"""For how long readers read nothing; shorter than the time after which the supervisor may drop them."""


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()


LOADS = {
    "7.5 MB of nested lists": (POST_LISTS, 1),
    "three times 7.5 MB of nested lists": (POST_LISTS, 3),
    "200 results of 4 MiB": (get("/api/executions/result/result"), 200),
    f"200 lists of {RECORDS} records": (get(f"/api/executions?limit={RECORDS}"), 200),
}


def ask_all(address: tuple[str, int], name: str) -> None:
    """Send all requests of the load *name* at once, and read the answers to their ends."""
    request, count = LOADS[name]
    buffer = bytearray(MB)
    with selectors.DefaultSelector() as waiting:
        for _ in range(count):
            caller = socket.create_connection(address)
            caller.sendall(request)
            caller.setblocking(False)
            waiting.register(caller, selectors.EVENT_READ)
        while waiting.get_map():
            for key, _ in waiting.select(60):
                caller = cast("socket.socket", key.fileobj)
                if caller.recv_into(buffer) == 0:
                    waiting.unregister(caller)
                    caller.close()


def run(scale: Scale) -> Iterable[Row]:
    with directory() as home, supervisor(home, child_command(), QUEUE=str(RECORDS)) as running:
        for number in range(scale.rounds(RECORDS, 20)):
            running.http.post(message(do="nothing"), execution_id=f"record-{number}")
        running.http.post(_printing(home, frame=4096, size=5 * MB), execution_id="result")
        unloaded = Figure.of(_asked(running) for _ in range(SAMPLES))
        with ProcessPoolExecutor(1, get_context("fork")) as pool:
            for name in LOADS:
                samples: list[float] = []
                while len(samples) < scale.rounds(SAMPLES, 10):
                    load = pool.submit(ask_all, running.http.address, name)
                    while not load.done():
                        samples.append(_asked(running))
                    load.result()
                yield Row(
                    "traffic", f"{name}: /livez", "ms", Figure.of(samples), "unloaded", unloaded, goal=p99_at_most(100)
                )
    for what, path, count in (("of one 12 MiB frame", "stream", 60), ("of results", "result", 200)):
        with directory() as home, supervisor(home, child_command()) as running:
            frame, size = (12 * MB, 12 * MB) if path == "stream" else (4096, 5 * MB)
            running.http.post(_printing(home, frame=frame, size=size), execution_id="long")
            running.http.ask("GET", "/api/executions/long/result")
            yield from _memory(running, f"{count} idle readers {what}", f"/api/executions/long/{path}", count)


def _memory(running: Supervised, name: str, path: str, count: int) -> Iterable[Row]:
    process = psutil.Process(running.pid)

    def rss() -> float:
        return float(process.memory_info().rss / 1e6)

    before = peak = rss()
    with contextlib.ExitStack() as held:
        for _ in range(count):
            reader = held.enter_context(socket.create_connection(running.http.address))
            reader.sendall(get(path))
        until = time.monotonic() + IDLE_SECONDS
        while time.monotonic() < until:
            peak = max(peak, rss())
            time.sleep(0.02)  # between two measurements of the memory
    time.sleep(3)  # the supervisor notices within seconds that the readers are gone, and frees their answers
    note = f"{before:.0f} MB before, {peak:.0f} at the peak, {(after := rss()):.0f} after"
    yield Row("traffic", f"{name}: memory at the peak", "MB more", Figure.of([peak - before]), goal=NO_GOAL, note=note)
    yield Row("traffic", f"{name}: memory after it", "MB more", Figure.of([after - before]), goal=p50_at_most(10))


def _asked(running: Supervised) -> float:
    begun = time.perf_counter()
    running.http.ask("GET", "/livez")
    milliseconds = (time.perf_counter() - begun) * 1000
    time.sleep(0.005)  # so that the probes are not a load of their own
    return milliseconds


def _printing(home: object, *, frame: int, size: int) -> str:
    return message(do="print", frame=frame, bytes=size, stamp=f"{home}/stamp")


BENCH = Bench("traffic", run)
