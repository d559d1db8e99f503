"""Cost of a request through the relay, beside the same request without it; each server is a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil

from agent_runtime.model.tokens import Token
from agent_runtime.relay.relay import Relay
from agent_runtime.secret.file import SecretFile
from agent_runtime.secret.generations import Generation, GenerationLedger
from agent_runtime.secret.writer import put
from benchmarks.harness import Bench, Figure, Goal, Row, adds_at_most, p50_at_most, p99_at_most, ratio_at_least

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from benchmarks.harness import Scale

TOKEN = "sk-ant-oat01-the-token-of-the-relay-bench-0000"
BODY = b"x" * 100_000
EVENT = b"event: content_block_delta\ndata: " + b"x" * 165 + b"\n\n"
HEADERS = {"anthropic-beta": "oauth-2025-04-20", "content-type": "application/json"}
MESSAGES = "/v1/messages"


def _p99_adds_at_most(limit: float) -> Goal:
    def check(row: Row) -> bool | None:
        return None if row.ours is None or row.baseline is None else row.ours.p99 - row.baseline.p99 <= limit

    return Goal(f"p99 adds ≤ {limit:g}", check)


async def _serve_api() -> None:
    """Answer each request with ``x-events`` events, each in a chunk, ``x-rate`` of them a second (its own headers)."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
                count = int(head.partition(b"x-events:")[2].split(b"\r\n")[0])
                rate, begun = float(head.partition(b"x-rate:")[2].split(b"\r\n")[0]), time.monotonic()
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                chunk = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
                for number in range(count):
                    if rate and (early := begun + number / rate - time.monotonic()) > 0:
                        await asyncio.sleep(early)
                    writer.write(chunk)
                    await writer.drain()
                writer.write(b"0\r\n\r\n")

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]} -", flush=True)
    await server.serve_forever()


def _serve_relay(api_url: str) -> None:
    directory = Path(tempfile.mkdtemp())
    put(directory / "token", TOKEN.encode())
    secret = SecretFile(directory / "token", ledger=GenerationLedger(None))
    secret.poll()
    relay = Relay({"ANTHROPIC_BASE_URL": api_url}, secret, directory=directory)
    relay.start()
    variables = relay.deliver(Generation(1, Token(TOKEN), time.time())).variables
    print(variables["ANTHROPIC_BASE_URL"], variables["CLAUDE_CODE_OAUTH_TOKEN"], flush=True)
    threading.Event().wait()


@contextlib.contextmanager
def _process(*words: str) -> Iterator[tuple[str, str, int]]:
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.relay", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url, token = process.stdout.readline().split()
        yield url, token, process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class _Side:
    """One way to the API: through the relay, or direct."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._headers = HEADERS | {"authorization": f"Bearer {token}"}
        self._client = httpx.Client(trust_env=False)
        self.milliseconds: list[float] = []
        self.megabytes_a_second: list[float] = []

    def first_byte(self) -> None:
        begun = time.perf_counter()
        with self._stream(1) as response:
            pieces = response.iter_raw()
            next(pieces)
            self.milliseconds.append((time.perf_counter() - begun) * 1000)
            for _ in pieces:
                pass

    def events(self, count: int, rate: int = 0) -> None:
        begun = time.perf_counter()
        with self._stream(count, rate) as response:
            total = sum(map(len, response.iter_raw()))
        self.megabytes_a_second.append(total / (time.perf_counter() - begun) / 1e6)

    def _stream(self, count: int, rate: int = 0) -> contextlib.AbstractContextManager[httpx.Response]:
        headers = self._headers | {"x-events": str(count), "x-rate": str(rate)}
        return self._client.stream("POST", self._url + MESSAGES, headers=headers, content=BODY)


def _eight_streams(relay: psutil.Process, sides: list[_Side], seconds: int) -> tuple[float, float]:
    """Run streams of 200 events a second side by side; return how much the relay took: % of a core, and MB more."""
    before, most, begun = relay.memory_info().rss, 0, time.monotonic()
    used = sum(relay.cpu_times()[:2])
    threads = [threading.Thread(target=side.events, args=(200 * seconds, 200)) for side in sides]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most = max(most, relay.memory_info().rss)
        threads[0].join(0.05)
    cores = (sum(relay.cpu_times()[:2]) - used) / (time.monotonic() - begun)
    return cores * 100, (most - before) / 1e6


def run(scale: Scale) -> Iterable[Row]:
    with _process("api") as (api_url, _, _), _process("relay", api_url) as (relay_url, token, pid):
        sides = [_Side(relay_url, token) for _ in range(8)]
        taken = [_eight_streams(psutil.Process(pid), sides, scale.rounds(5, 1)) for _ in range(scale.rounds(3, 1))]
        direct, ours = _Side(api_url, TOKEN), _Side(relay_url, token)
        for _ in range(scale.rounds(2000, 20)):
            direct.first_byte()
            ours.first_byte()
        for _ in range(scale.rounds(40, 2)):
            direct.events(scale.rounds(20_000, 500))
            ours.events(scale.rounds(20_000, 500))
    first = Figure.of(ours.milliseconds), Figure.of(direct.milliseconds)
    goal = adds_at_most(1.0) & _p99_adds_at_most(5.0)
    yield Row("relay", "first byte, body of 100 KB", "ms", first[0], "without a relay", first[1], goal)
    cores, memory = (Figure.of(values) for values in zip(*taken, strict=True))
    yield Row("relay", "8 streams of 200 events/s", "% of a core", cores, goal=p50_at_most(25))
    yield Row("relay", "8 streams, bodies of 100 KB", "MB", memory, goal=p99_at_most(8))
    stream = Figure.of(ours.megabytes_a_second), Figure.of(direct.megabytes_a_second)
    yield Row("relay", "events of 200 B", "MB/s", stream[0], "without a relay", stream[1], ratio_at_least(0.9))


BENCH = Bench("relay", run)

if __name__ == "__main__":
    if sys.argv[1] == "api":
        asyncio.run(_serve_api())
    else:
        _serve_relay(sys.argv[2])
