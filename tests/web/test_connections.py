"""Connections: how many, how slow, what is no HTTP, and callers that are gone without a word; over real sockets."""

from __future__ import annotations

import contextlib
import ctypes
import json
import socket
import struct
import sys
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import pytest

from agent_runtime.errors import RESERVED_WORDS
from agent_runtime.settings import PLACES_BEYOND
from agent_runtime.web.uvicorn_protocol import HEADER_LIMIT_BYTES
from tests.support.supervised import Supervised, eventually, supervised
from tests.system.test_executions import OK, holding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STREAM = b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIST = b"GET /api/executions HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
SO_ATTACH_FILTER = 26


def connect(running: Supervised) -> socket.socket:
    address = urlsplit(running.url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def read_to_the_end(connection: socket.socket) -> bytes:
    """Read until the supervisor closes; a reset is a failure: it takes answers away."""
    received = bytearray()
    while data := connection.recv(65536):
        received += data
    return bytes(received)


def say(running: Supervised, *pieces: bytes) -> bytes:
    """Send *pieces* on a connection of their own, and read until the supervisor closes it."""
    with connect(running) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return read_to_the_end(connection)


def problem_in(answer: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert headers["content-type"] == "application/problem+json", answer
    assert headers["connection"] == "close"
    assert int(headers["content-length"]) == len(body)
    problem = json.loads(body)
    assert not any(word in problem["detail"].lower() for word in RESERVED_WORDS)
    return int(status.split()[1]), headers, problem


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("connections"), flags=("--request-timeout", "0.5")) as running:
        yield running


POST = b"POST /api/task HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: 2\r\n"


@pytest.mark.parametrize(
    ("pieces", "error_class"),
    [
        ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) + b"\r\n\r\n"], "invalid_request"),
        ([b"hello\r\n\r\n"], "invalid_request"),
        ([b"\r\n\r\n\r\n"], "invalid_request"),
        ([b"GET /livez HTTP/1.1\r\n\r\n"], "invalid_request"),
        ([b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"], "invalid_request"),
        ([b"GET /livez HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n"], "invalid_request"),
        ([b"GET /live z HTTP/1.1\r\nHost: a\r\n\r\n"], "invalid_request"),
        ([POST + b"Content-Length: -1\r\n\r\n"], "invalid_request"),
        ([POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}"], "invalid_request"),
        ([POST + b"Transfer-Encoding: gzip\r\n\r\n{}"], "invalid_request"),
        ([POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n"], "invalid_request"),
        ([POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}", b"oops\r\n" * 1000], "invalid_request"),
        ([b"GET /livez?" + b"x" * HEADER_LIMIT_BYTES + b" HTTP/1.1\r\nHost: a\r\n\r\n"], "too_large"),
        ([b"GET /livez HTTP/1.1\r\nHost: a\r\nX: ", *[b"x" * 4096] * 64], "too_large"),
        ([b"GET /livez HTTP/1.1\r\nHost: a\r\n", *[b"x: y\r\n"] * 4096, b"\r\n"], "too_large"),
    ],
    ids=lambda value: value[0][:40].decode("latin-1") if isinstance(value, list) else value,
)
def test_what_is_no_http_is_refused_in_words_a_program_can_read(
    shared: Supervised, pieces: list[bytes], error_class: str
) -> None:
    status, _, problem = problem_in(say(shared, *pieces))

    assert problem["error_class"] == error_class
    assert status == problem["status"] == {"invalid_request": 400, "too_large": 413}[error_class]


@pytest.mark.parametrize(
    ("sent", "word"),
    [(b"", None), (b"GET /livez HT", "header"), (POST + b"Content-Length: 10\r\n\r\n{", "body")],
    ids=["nothing", "half a header", "half a body"],
)
def test_a_request_that_does_not_arrive_is_not_waited_for(shared: Supervised, sent: bytes, word: str | None) -> None:
    answer = say(shared, sent)

    if word is None:
        assert answer == b""
    else:
        status, _, problem = problem_in(answer)
        assert (status, problem["error_class"]) == (400, "invalid_request")
        assert word in problem["detail"]


@pytest.mark.parametrize(
    "pieces",
    [
        [POST + LENGTH + CHUNKED + b"\r\n0\r\n\r\n"],
        [POST + CHUNKED + LENGTH + b"\r\n2\r\n{}\r\n0\r\n\r\n"],
        [POST + b"content-length: 0\r\ntransfer-ENCODING: Chunked\r\n\r\n0\r\n\r\n"],
        [POST + b"Transfer-Encoding:\r\n chunked\r\n" + LENGTH + b"\r\n0\r\n\r\n"],
        [POST + b"X: y\n" + CHUNKED + LENGTH + b"\r\n0\r\n\r\n"],
        [POST + b"Expect: 100-continue\r\n" + LENGTH + CHUNKED + b"\r\n0\r\n\r\n"],
        [POST + b"Connection: upgrade\r\nUpgrade: h2c\r\n" + LENGTH + CHUNKED + b"\r\n0\r\n\r\n"],
        [POST + b"Content-Length: 4\r\nTransfer-Enc", b"oding: chunked\r\n\r\n0\r\n", b"\r\n"],
        [LIVE.removesuffix(b"\r\n") + LENGTH + CHUNKED + b"\r\n0\r\n\r\n"],
        [POST.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n0\r\n\r\n"],
        [POST.replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\n" + CHUNKED + b"\r\n0\r\n\r\n"],
        *(
            [POST + framing + b"\r\n2\r\n{}\r\n0\r\n\r\n"]
            for framing in (
                *(
                    b"Content-Length: %b\r\n" % value
                    for value in (b"2, 3", b"2,", b"+2", b"0x2", b"2_0", b"", b"1" * 21)
                ),
                *(
                    b"Transfer-Encoding: %b\r\n" % value
                    for value in (b"gzip, chunked", b"chunked, gzip", b"identity", b"")
                ),
                *(
                    b"Transfer-Encoding: %b\r\n" % value
                    for value in (b"chunked, chunked", b'"chunked"', b"\x0bchunked")
                ),
                CHUNKED + CHUNKED,
                b"Transfer-Encoding : chunked\r\n",
                b"Content-Length\t: 2\r\n",
                b"X: y\r" + CHUNKED,
                b"X: \x00\r\n" + CHUNKED,
            )
        ),
        [b"POST /api/task HTTP/1.1\r\n Host: a\r\nHost: localhost\r\n" + LENGTH + b"\r\n{}"],
        *(
            [POST + CHUNKED + b"\r\n" + body]
            for body in (b"0x2\r\n{}\r\n", b"+2\r\n{}\r\n", b"2\n{}\n0\n\n", b"2;a\nb\r\n{}\r\n", b"2\r\n{}XX0\r\n\r\n")
        ),
    ],
    ids=lambda pieces: b"".join(pieces)[5:].replace(POST[5:], b"")[:60].decode("latin-1"),
)
def test_where_the_end_of_a_body_can_be_read_in_two_ways_nothing_behind_it_is_answered(
    shared: Supervised, pieces: list[bytes]
) -> None:
    answer = say(shared, *pieces[:-1], pieces[-1] + LIVE)

    status, _, problem = problem_in(answer)
    assert (status, problem["error_class"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    "header",
    [b"Content-Length: 2, 2\r\n", LENGTH + LENGTH, b"X: y\r\n z\r\n" + LENGTH, b"X: y\r\n " + CHUNKED + LENGTH],
    ids=repr,
)
def test_a_length_that_is_said_twice_and_a_folded_line_are_read_as_the_rfc_allows(
    shared: Supervised, header: bytes
) -> None:
    """RFC 9112, 5.2 and 6.3: equal lengths count once, and a folded line goes on with the value of the one before."""
    answer = say(shared, POST + header + b"\r\n{}" + LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"message: is missing" in answer
    assert b"HTTP/1.1 200 OK" in answer


@pytest.mark.parametrize(
    "sent", [b"GET /livez HTTP/1.1\r\nX: ", LIVE + b"GET /li", POST + b"Content-Length: 99\r\n\r\n{"]
)
def test_a_request_that_drips_is_not_waited_for_either(shared: Supervised, sent: bytes) -> None:
    with connect(shared) as connection:
        connection.sendall(sent)
        over = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not over.wait(0.05):
                    connection.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            answer = b""
            while b"took too long" not in answer:
                data = connection.recv(65536)
                assert data, answer
                answer += data
        finally:
            over.set()
            dripping.join()


def test_a_caller_whose_body_is_too_long_can_read_so_although_it_still_sends(shared: Supervised) -> None:
    with connect(shared) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            connection.sendall(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
        assert connection.recv(12) == b"HTTP/1.1 413"


@pytest.mark.slow
def test_a_long_body_that_keeps_coming_may_take_longer_than_a_header(shared: Supervised) -> None:
    """Of 64 KiB that arrive the rest has 4 s more: it comes after a second, which is twice the time of a header."""
    body = json.dumps({"message": json.dumps(OK), "system_prompt": "x" * 70_000}).encode()
    with connect(shared) as connection:
        connection.sendall(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:-1])
        connection.settimeout(1.0)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(30)
        connection.sendall(body[-1:])
        assert connection.recv(12) == b"HTTP/1.1 200"


def closed_by_the_other_side(connection: socket.socket) -> bool:
    connection.setblocking(False)
    with contextlib.suppress(ConnectionResetError):
        try:
            while connection.recv(65536):
                pass
        except BlockingIOError:
            return False
    return True


def test_when_all_places_are_taken_others_are_told_to_come_back_and_probes_are_answered(tmp_path: Path) -> None:
    with supervised(tmp_path, flags=("--max-connections", "3")) as running, contextlib.ExitStack() as held:
        go = tmp_path / "go"
        running.post(holding(go), execution_id="held", async_result=True)
        running.client.close()
        for _ in range(3):
            reader = held.enter_context(connect(running))
            reader.sendall(STREAM)
            assert reader.recv(12) == b"HTTP/1.1 200"

        for request in (
            LIST,
            POST + b"Content-Length: 3000000\r\n\r\n" + b"x" * 3_000_000,
        ):
            status, headers, problem = problem_in(say(running, request))
            assert (status, problem["error_class"]) == (409, "busy")
            assert int(headers["retry-after"]) > 0
        for path in (b"livez", b"readyz", b"health"):
            answer = say(running, LIVE.replace(b"livez", path))
            assert answer.startswith(b"HTTP/1.1 200"), answer
            assert b"connection: close" in answer

        silent = [held.enter_context(connect(running)) for _ in range(3 * PLACES_BEYOND)]
        assert say(running, LIVE).startswith(b"HTTP/1.1 200")
        assert sum(map(closed_by_the_other_side, silent)) >= 2 * PLACES_BEYOND
        sockets = [c for c in psutil.Process(running.process.pid).net_connections() if c.status == "ESTABLISHED"]
        assert len(sockets) <= 3 + PLACES_BEYOND
        held.close()

        go.touch()
        eventually(lambda: b'"outcome":"success"' in record(running, b"held"))


def record(running: Supervised, execution_id: bytes) -> bytes:
    path = b"GET /api/executions/%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % execution_id
    return say(running, path)


def test_a_newcomer_gets_the_place_of_the_one_that_was_idle_longest(tmp_path: Path) -> None:
    with supervised(tmp_path, flags=("--max-connections", "3")) as running, contextlib.ExitStack() as held:
        kept_alive = [held.enter_context(connect(running)) for _ in range(3)]
        for connection in (kept_alive[1], kept_alive[0], kept_alive[2], kept_alive[0]):
            connection.sendall(LIVE)
            answer = b""
            while not answer.endswith(b'"ok"}'):
                answer += connection.recv(65536)

        assert record(running, b"unknown").startswith(b"HTTP/1.1 404")

        eventually(lambda: closed_by_the_other_side(kept_alive[1]))
        assert [closed_by_the_other_side(connection) for connection in (kept_alive[0], kept_alive[2])] == [False, False]


@pytest.mark.slow
def test_a_newcomer_gets_the_place_of_one_that_says_nothing(tmp_path: Path) -> None:
    flags = ("--max-connections", "3", "--request-timeout", "600")
    with supervised(tmp_path, flags=flags) as running, contextlib.ExitStack() as held:
        for _ in range(3):
            held.enter_context(connect(running)).sendall(b"GET /")

        eventually(lambda: record(running, b"unknown").startswith(b"HTTP/1.1 404"))


@pytest.mark.slow
def test_callers_cannot_take_the_descriptors_that_executions_need(tmp_path: Path) -> None:
    with contextlib.ExitStack() as held:
        limit_files = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); "
        limited = (sys.executable, "-c", limit_files + "os.execv(sys.argv[1], sys.argv[1:])")
        running = held.enter_context(supervised(tmp_path, flags=("--slots", "2"), prefix=limited))
        limit = running.get("/health")["connections"]["limit"]
        assert 16 <= limit < 100
        body = json.dumps({"message": json.dumps(OK)}).encode()
        posting = [held.enter_context(connect(running)) for _ in range(2)]
        for connection in posting:
            connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-1])
        for _ in range(300):
            reader = held.enter_context(connect(running))
            with contextlib.suppress(ConnectionError):
                reader.sendall(STREAM)
        eventually(lambda: b"all connections are taken" in say(running, LIST))

        for connection in posting:
            connection.sendall(body[-1:])

        assert [connection.recv(12) for connection in posting] == [b"HTTP/1.1 200"] * 2
        assert "ulimit" in running.log.read_text()


def drop_everything(connection: socket.socket) -> None:
    """
    Have the kernel drop every packet that comes for *connection*: its other side sees a machine that is gone.

    Source: https://www.kernel.org/doc/html/latest/networking/filter.html
    """
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET | BPF_K: of each packet 0 bytes
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


@pytest.mark.slow
def test_callers_that_are_gone_without_a_word_hold_no_place_and_the_execution_goes_on(tmp_path: Path) -> None:
    go = tmp_path / "go"
    flood = {"script": [{"do": "init"}, {"do": "flood", "bytes": 20_000_000}, {"do": "result", "text": "x"}]}
    with supervised(tmp_path, flags=("--peer-timeout", "3")) as running, contextlib.ExitStack() as held:
        running.post(flood, execution_id="flood")
        running.post(holding(go), execution_id="held", async_result=True)
        body = json.dumps({"message": json.dumps(holding(go)), "execution_id": "held"}).encode()
        for request in (
            STREAM,
            STREAM.replace(b"events", b"executions/held/stream"),
            POST + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        ):
            gone = held.enter_context(connect(running))
            gone.sendall(request)
            if b"task" not in request:
                assert gone.recv(12) == b"HTTP/1.1 200"
            running.get("/livez")  # answered after what came before it has been read
            drop_everything(gone)
        takes_nothing = held.enter_context(connect(running))
        takes_nothing.sendall(STREAM.replace(b"events", b"executions/flood/stream"))
        there = held.enter_context(running.client.stream("GET", "/api/events"))
        eventually(lambda: running.get("/health")["streams"]["open"] == 4)

        eventually(lambda: running.get("/health")["streams"]["open"] == 1)
        eventually(lambda: running.get("/health")["connections"]["open"] == 2)

        assert there.status_code == 200
        assert running.record("held")["state"] == "running"
        go.touch()
        eventually(lambda: running.record("held")["outcome"] == "success")


def test_readers_that_leave_at_once_take_no_place_with_them(shared: Supervised) -> None:
    for _ in range(100):
        with connect(shared) as connection:
            connection.sendall(STREAM)

    eventually(lambda: shared.get("/health")["streams"]["open"] == 0)


@pytest.mark.parametrize("path", ["/api/events", "/api/executions/there/stream"])
def test_a_request_for_the_head_of_a_stream_gets_it_and_takes_no_place(shared: Supervised, path: str) -> None:
    shared.post(OK, execution_id="there")

    response = shared.client.head(path)

    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert shared.get("/health")["streams"]["open"] == 0
