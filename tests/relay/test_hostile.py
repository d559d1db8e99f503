"""A hostile API and a hostile child: nothing leaks, hangs or is invented, and the relay's memory has a bound."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import stat
import threading
import time
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING

import pytest

from agent_runtime.relay.requests import Body, MemoryBudget
from tests.relay.support import BETA, NEW, OK, OLD, RawApi, Relayed, Talk, read_answer, refusal, relayed
from tests.support.supervised import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_runtime.delivery.delivery import HeldRequest

STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    b"7\r\ndata: a\r\n2\r\n\n\n\r\n0\r\n\r\n"
)
SIZED = b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\ntwelve bytes"


@pytest.fixture
def api() -> RawApi:
    return RawApi(lambda talk, _request: talk.send(OK))


@pytest.fixture
def child(tmp_path: Path, api: RawApi, caplog: pytest.LogCaptureFixture) -> Iterator[Relayed]:
    with api.running() as url, relayed(tmp_path, url) as running:
        yield running
    assert not [record for record in caplog.records if record.levelname == "ERROR"], "a fault of the relay"


def slowly(talk: Talk, data: bytes) -> None:
    for at in range(len(data)):
        talk.send(data[at : at + 1])
        time.sleep(0.0005)


@pytest.mark.parametrize("answer", [STREAM, SIZED], ids=["stream", "sized"])
def test_an_answer_that_is_cut_anywhere_is_none_or_ends_with_a_reset(
    api: RawApi, child: Relayed, answer: bytes
) -> None:
    head = answer.index(b"\r\n\r\n") + 4
    for at in range(len(answer)):
        api.answer = lambda talk, _request, at=at: talk.close_after(answer[:at])  # type: ignore[misc]
        seen = child.ask()
        if at < head:
            assert seen.startswith(b"HTTP/1.1 502 "), (at, seen)
        else:
            assert seen.endswith(b"RESET"), (at, seen)
            body = seen.removesuffix(b"RESET").partition(b"\r\n\r\n")[2]
            assert answer[head:at].startswith(body), (at, seen)
    api.answer = lambda talk, _request: talk.send(answer)
    assert child.ask().partition(b"\r\n\r\n")[2] == answer[head:]


@pytest.mark.parametrize("answer", [STREAM, SIZED], ids=["stream", "sized"])
def test_an_answer_and_a_request_that_come_byte_by_byte_are_whole(api: RawApi, child: Relayed, answer: bytes) -> None:
    api.answer = lambda talk, _request: slowly(talk, answer)
    with child.connect() as raw:
        for byte in child.message(b"{}"):
            raw.sendall(bytes([byte]))
        seen = read_answer(raw)

    assert seen.partition(b"\r\n\r\n")[2] == answer.partition(b"\r\n\r\n")[2]
    assert api.requests[0].endswith(b"\r\n\r\n{}")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n", id="length"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: \xb2\r\n\r\n", id="no-digit"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx", id="lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="codings"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", id="two-lengths"
        ),
        pytest.param(b"HTTP/1.1 99999 OK\r\n\r\n", id="status"),
        pytest.param(b"HTTP/1.1 103 Early\r\n\r\n" * 50, id="never-final"),
    ],
)
def test_a_head_that_says_nonsense_is_a_502(api: RawApi, child: Relayed, answer: bytes) -> None:
    api.answer = lambda talk, _request: talk.close_after(answer)

    assert child.ask().startswith(b"HTTP/1.1 502 ")


def test_interim_answers_are_left_away(api: RawApi, child: Relayed) -> None:
    api.answer = lambda talk, _request: talk.send(b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" * 3 + OK)

    assert child.ask() == OK


def test_a_chunk_that_is_longer_than_its_size_is_cut(api: RawApi, child: Relayed) -> None:
    api.answer = lambda talk, _request: talk.close_after(STREAM.replace(b"data: a\r\n", b"data: aXX"))

    assert child.ask().endswith(b"RESET")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}", id="length"),
        pytest.param(b"Content-Length: 2\r\ncontent-length: 2, 3\r\n\r\n{}", id="two"),
        pytest.param(b"Content-Length: +2\r\n\r\n{}", id="sign"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", id="size"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n", id="behind-a-chunk"),
        pytest.param(b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="coding"),
    ],
)
def test_a_body_whose_end_is_in_doubt_reaches_nobody(api: RawApi, child: Relayed, body: bytes) -> None:
    assert child.ask(child.head() + body).startswith(b"HTTP/1.1 4"), "400, or 413"
    assert api.requests == []
    eventually(lambda: child.relay._budget._left == 64 * 1024 * 1024)


def test_a_compressed_stream_is_passed_on_as_it_comes(api: RawApi, child: Relayed) -> None:
    go = threading.Event()
    events = [gzip.compress(b"event: one\n\n"), gzip.compress(b"event: two\n\n")]
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"

    def answer(talk: Talk, _request: bytes) -> None:
        talk.send(head + b"%x\r\n%s\r\n" % (len(events[0]), events[0]))
        assert go.wait(10)
        talk.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(events[1]), events[1]))

    api.answer = answer
    with child.connect() as raw:
        raw.sendall(child.message(more=BETA + "Accept-Encoding: gzip\r\n"))
        data = b""
        while events[0] not in data:
            data += raw.recv(65536)
        go.set()
        while not data.endswith(b"0\r\n\r\n"):
            data += raw.recv(65536)

    assert b"content-encoding: gzip" in data
    assert events[1] in data


def test_a_refusal_with_a_body_of_ten_megabytes_is_passed_on_whole(api: RawApi, child: Relayed) -> None:
    body = b"x" * 10_000_000
    answer = b"HTTP/1.1 401 No\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    api.answer = lambda talk, _request: talk.send(answer)

    assert child.ask() == answer


def test_a_refusal_whose_body_never_ends_is_given_up(tmp_path: Path) -> None:
    silent = threading.Event()

    def answer(talk: Talk, _request: bytes) -> None:
        talk.send(refusal()[:-1])
        silent.wait(10)

    api = RawApi(answer)
    with api.running() as url, relayed(tmp_path, url, first_byte_seconds=0.3) as child:
        assert child.ask().startswith(b"HTTP/1.1 502 ")
        silent.set()


def test_mutations_of_what_both_sides_send_leak_nothing_and_hang_nobody(api: RawApi, child: Relayed) -> None:
    rng = random.Random(17)

    def mutated(data: bytes) -> bytes:
        made = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(made))
            made[at : at + rng.randint(0, 3)] = rng.choice((b"", b"\r\n", b"\0", b":", b" ", b"\xff", b"0", b"\n"))
        return bytes(made)

    for _ in range(150):
        answer = mutated(rng.choice((STREAM, SIZED, refusal())))
        api.answer = lambda talk, _request, answer=answer: talk.close_after(answer)  # type: ignore[misc]
        with child.connect() as raw:
            raw.sendall(mutated(child.message(b'{"a": 1}')))
            raw.shutdown(1) if rng.random() < 0.3 else None
            raw.settimeout(0.15)  # the relay rightly waits for the rest of an incomplete request
            seen = read_answer(raw)
        assert OLD.encode() not in seen
    assert child.ask(child.message()) is not None
    for request in api.requests:
        assert request.count(OLD.encode()) == 1, request
        assert child.placeholder.encode() not in request.partition(b"\r\n\r\n")[0]
    api.answer = lambda talk, _request: talk.send(OK)
    assert child.ask().endswith(b"ok"), "it goes on as before"
    eventually(lambda: child.relay._budget._left == 64 * 1024 * 1024)


def test_bodies_beyond_the_budget_go_into_files_without_a_name_that_only_we_can_read(tmp_path: Path) -> None:
    budget = MemoryBudget(str(tmp_path), limit_bytes=10 * 1024 * 1024)
    bodies = [Body(budget) for _ in range(3)]
    for number, body in enumerate(bodies):
        for _ in range(9):
            body.add(bytes([number]) * 1024 * 1024)
    assert len(_private_files(tmp_path)) == 3, "8 MiB each in memory, and 10 in all"
    assert list(tmp_path.iterdir()) == []
    for number, body in enumerate(bodies):
        assert b"".join(body.pieces()) == b"".join(body.pieces()) == bytes([number]) * 9 * 1024 * 1024
        body.close()
    assert budget._left == 10 * 1024 * 1024


def _private_files(directory: Path) -> set[str]:
    """Return the open files of this process that were deleted from *directory* and only their owner can read."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            name, mode = str(fd.readlink()), stat.S_IMODE(os.fstat(int(fd.name)).st_mode)
            if name.startswith(str(directory)) and name.endswith("(deleted)") and mode == 0o600:
                found.add(name)
    return found


def test_large_bodies_that_are_held_take_no_more_memory_than_the_budget(api: RawApi, child: Relayed) -> None:
    holds: list[HeldRequest] = []
    assert child.delivered.relayed is not None
    child.delivered.relayed.on_hold = holds.append
    api.answer = lambda talk, request: talk.send(refusal() if OLD.encode() in request else OK)
    before = _private_files(Path(gettempdir()))
    children = [child.connect() for _ in range(24)]
    for raw in children:
        raw.sendall(child.message(b"x" * 1024 * 1024))
    eventually(lambda: len(holds) == 24)
    files = _private_files(Path(gettempdir())) - before
    assert (len(files), child.relay._budget._left) == (16, 0), "of the others 8 MiB each are set aside"
    child.secret.write(NEW)
    for hold in holds:
        hold.release(replays=True)
    for raw in children:
        assert read_answer(raw).endswith(b"ok")
        raw.close()
    eventually(lambda: child.relay._budget._left == 64 * 1024 * 1024)
