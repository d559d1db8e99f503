"""Fifty readers of one running execution, beside the same bytes from a server that does nothing else."""

from __future__ import annotations

import itertools
import json
import selectors
import socket
import time
from typing import TYPE_CHECKING, cast

from benchmarks.bed import bare_server, child_command, directory, message, supervisor, until
from benchmarks.harness import Bench, Row, in_turn, ratio_at_least

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.harness import Scale

MB = 1 << 20
READERS = 50
LAST_CHUNK = b"0\r\n\r\n"


def opened(address: tuple[str, int], path: str) -> list[socket.socket]:
    """Open the stream at *path* once for each reader."""
    readers = [socket.create_connection(address) for _ in range(READERS)]
    for reader in readers:
        reader.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    return readers


def read_all(readers: list[socket.socket]) -> int:
    """Read all streams at once, each to its end; return how many bytes came."""
    received, buffer = 0, bytearray(MB)
    with selectors.DefaultSelector() as waiting:
        for opened_one in readers:
            opened_one.setblocking(False)
            waiting.register(opened_one, selectors.EVENT_READ)
        while waiting.get_map():
            for key, _ in waiting.select(60):
                reader = cast("socket.socket", key.fileobj)
                count = reader.recv_into(buffer)
                received += count
                if count == 0 or buffer[max(0, count - len(LAST_CHUNK)) : count].endswith(LAST_CHUNK):
                    waiting.unregister(reader)
                    reader.close()
    return received


def run(scale: Scale) -> Iterable[Row]:
    rounds, size = scale.rounds(7, 1), scale.rounds(8, 1) * MB
    numbers = itertools.count()
    with (
        directory() as home,
        supervisor(home, child_command(), ANSWER_LOG_LIMIT="65536") as running,
        bare_server() as (_, bare),
    ):
        for frame_bytes, name in ((400, "400 B"), (4096, "4 KB")):
            told = home / f"stream-{frame_bytes}"

            def running_one() -> float:
                number = next(numbers)
                go, stamp = home / f"go-{number}", home / f"stamp-{number}"
                text = message(do="print", frame=frame_bytes, bytes=size, stamp=str(stamp), go=str(go))
                path = f"/api/executions/stream-{number}/stream"
                running.http.post(text, execution_id=f"stream-{number}", async_result=True)
                until(lambda: running.http.get("/api/executions/running")["executions"], "the start")
                readers = opened(running.http.address, path)
                until(lambda: all(_has_begun(reader) for reader in readers), "the streams' first bytes")
                go.touch()
                received = read_all(readers)
                ended = time.time()
                running.http.ended(f"stream-{number}")
                if not told.exists():
                    told.write_bytes(running.http.ask("GET", path)[1])
                return float(received / MB / (ended - json.loads(stamp.read_text())["begun"]))

            def bare_one() -> float:
                begun = time.time()
                received = read_all(opened(bare.address, f"/stream?file={told}"))
                return received / MB / (time.time() - begun)

            ours, beside = in_turn(rounds, running_one, bare_one)
            what = f"{READERS} readers of one running execution, frames of {name}"
            yield Row("streaming", what, "MB/s in all", ours, "bare uvicorn, same bytes", beside, ratio_at_least(0.7))


def _has_begun(reader: socket.socket) -> bool:
    return b"event: state" in reader.recv(MB, socket.MSG_PEEK)


BENCH = Bench("streaming", run)
