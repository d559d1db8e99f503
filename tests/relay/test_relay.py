"""The relay between a raw child and a raw API."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from agent_runtime.relay import exchange
from tests.relay.support import (
    API_KEY,
    BETA,
    NEW,
    OK,
    OLD,
    RawApi,
    Relayed,
    Secret,
    Talk,
    read_answer,
    refusal,
    relayed,
    tokens_in,
)
from tests.support.supervised import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent_runtime.delivery.delivery import HeldRequest


def says(data: bytes) -> Callable[[Talk, bytes], object]:
    """Return a function that answers every request with *data*."""
    return lambda talk, _request: talk.send(data)


def refuses_old(talk: Talk, request: bytes) -> None:
    talk.send(refusal() if OLD in tokens_in(request) else OK)


@pytest.fixture
def api() -> RawApi:
    return RawApi(says(OK))


@pytest.fixture
def child(tmp_path: Path, api: RawApi) -> Iterator[Relayed]:
    with api.running() as url, relayed(tmp_path, url) as running:
        yield running


# -- the token


def test_the_child_has_no_token_and_its_request_exactly_one(api: RawApi, child: Relayed) -> None:
    more = (
        f"x-api-key: {child.placeholder}\r\nCookie: a=b\r\nPROXY-AUTHORIZATION: Basic eA==\r\nX_Api_Key: k\r\n"
        + BETA
        + "X-Original-URL: /elsewhere\r\nx-http-method-override: PUT\r\n"
    )
    answer = child.ask(child.message(b'{"a": 1}', more))

    assert answer.endswith(b"ok")
    assert OLD not in str(child.delivered.variables)
    assert tokens_in(api.requests[0]) == [OLD]
    assert not any(name in api.requests[0].lower() for name in (b"x_api_key", b"x-original-url", b"method-override"))
    assert child.placeholder.encode() not in api.requests[0]
    assert api.requests[0].endswith(b'\r\n\r\n{"a": 1}')
    assert api.requests[0].startswith(b"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1:")


def test_each_request_has_the_token_that_is_in_use_then(api: RawApi, child: Relayed) -> None:
    child.ask()
    child.secret.write(NEW)
    child.ask()

    assert [tokens_in(request) for request in api.requests] == [[OLD], [NEW]]
    assert child.delivered.relayed is not None
    assert child.delivered.relayed.carried()[0].number == 2
    assert child.delivered.relayed.served.number == 2


@pytest.mark.parametrize("status", [b"429 Slow", b"500 No", b"304 Same"])
def test_what_was_not_fulfilled_has_used_nothing_of_its_token(api: RawApi, child: Relayed, status: bytes) -> None:
    child.ask()
    child.secret.write(NEW)
    api.answer = says(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
    child.ask()

    assert tokens_in(api.requests[-1]) == [NEW]
    assert child.delivered.relayed is not None
    assert child.delivered.relayed.carried()[0].number == 2
    assert child.delivered.relayed.served.number == 1


def test_a_refused_request_is_sent_again_with_a_token_that_was_written_meanwhile(api: RawApi, child: Relayed) -> None:
    api.answer = refuses_old
    child.secret.unread = NEW

    assert child.ask(child.message(b"once")).endswith(b"ok")
    assert [tokens_in(request) for request in api.requests] == [[OLD], [NEW]]
    assert api.requests[0].replace(OLD.encode(), b"") == api.requests[1].replace(NEW.encode(), b"")


@pytest.mark.parametrize(
    ("answer", "more"),
    [
        pytest.param(refusal(), "", id="not-the-clis-form"),
        pytest.param(refusal("Your organization does not have access to model: x", 403), BETA, id="a-model"),
        pytest.param(OK.replace(b"200 OK", b"401 No"), BETA, id="no-json"),
        pytest.param(OK.replace(b"200 OK", b"429 Slow"), BETA, id="a-throttle"),
        pytest.param(OK.replace(b"200 OK", b"302 There"), BETA, id="a-redirect"),
    ],
)
def test_what_is_not_about_the_token_is_passed_on_once(api: RawApi, child: Relayed, answer: bytes, more: str) -> None:
    api.answer = says(answer)
    child.secret.unread = NEW

    assert child.ask(child.message(more=more)) == answer
    assert len(api.requests) == 1


def test_a_compressed_refusal_is_understood(api: RawApi, child: Relayed) -> None:
    body = gzip.compress(refusal().partition(b"\r\n\r\n")[2])
    packed = b"HTTP/1.1 401 No\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"
    packed += b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    api.answer = lambda talk, request: talk.send(packed if OLD in tokens_in(request) else OK)
    child.secret.unread = NEW

    assert child.ask(child.message(more=BETA + "Accept-Encoding: gzip, br;q=1, zstd\r\n")).endswith(b"ok")
    assert b"Accept-Encoding: gzip\r\n" in api.requests[0]


def test_a_token_of_the_other_kind_is_not_used_for_a_child_that_runs(api: RawApi, child: Relayed) -> None:
    child.secret.write(API_KEY)
    child.ask()

    assert tokens_in(api.requests[0]) == [OLD]
    assert not child.delivered.can_receive(child.secret.generation)


def test_an_api_key_goes_in_its_own_header(tmp_path: Path, api: RawApi) -> None:
    with api.running() as url, relayed(tmp_path, url, secret=Secret(API_KEY)) as child:
        child.ask()

    assert "ANTHROPIC_API_KEY" in child.delivered.variables
    assert f"x-api-key: {API_KEY}".encode() in api.requests[0]
    assert b"uthorization" not in api.requests[0]


# -- who may ask for what


def test_only_a_living_attempts_identity_is_let_in(api: RawApi, child: Relayed) -> None:
    other = child.relay.deliver(child.secret.generation)
    placeholders = [value for value in other.variables.values() if value.startswith("relay-")]
    assert child.ask(child.head(token=placeholders[0]) + b"Content-Length: 0\r\n\r\n").endswith(b"ok")
    child.relay.release(other)

    for guess in (*placeholders, "", "relay-", child.placeholder[:-1], child.placeholder + "0", "relay-\xff"):
        answer = child.ask(child.head(token=guess) + b"Content-Length: 0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 404 "), guess
    without_prefix = child.message().replace(child.place[1].encode(), b"", 1)
    assert child.ask(without_prefix).startswith(b"HTTP/1.1 404 ")
    assert len(api.requests) == 1


def test_a_connection_belongs_to_the_identity_that_it_has_shown_first(api: RawApi, child: Relayed) -> None:
    other = child.relay.deliver(child.secret.generation)
    [second] = [value for value in other.variables.values() if value.startswith("relay-")]
    with child.connect() as raw:
        answers = []
        for token in (child.placeholder, second):
            raw.sendall(child.head(token=token) + b"Content-Length: 0\r\n\r\n")
            answers.append(read_answer(raw).partition(b"\r\n")[0].split()[1])

    assert answers == [b"200", b"404"]
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    "target",
    [
        "POST /api/oauth/claude_cli/create_api_key",
        "GET /v1/messages",
        "PUT /v1/messages",
        "POST /v1/messages/../../api/oauth/claude_cli/create_api_key",
        "POST /v1/messages/",
        "POST //v1/messages",
        "POST /v1/messages%2fbatches",
        "POST /v1/messages/batches",
        "GET /v1/models/x",
        "TRACE /",
        "DELETE /v1/models",
        "HEAD /v1/messages",
    ],
)
def test_what_is_not_on_the_list_is_not_passed_on(api: RawApi, child: Relayed, target: str) -> None:
    method, path = target.split()
    with child.connect() as raw:
        raw.sendall(child.head(method, path) + b"Content-Length: 3\r\n\r\nabc" + child.message())
        answers = b""
        while not answers.endswith(b"ok"):
            answers += raw.recv(65536)

    assert answers.startswith(b"HTTP/1.1 404 ")
    assert [request[:18] for request in api.requests] == [b"POST /v1/messages "]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda head: head.replace(b"\r\nHost", b"\nHost"), id="bare-lf"),
        pytest.param(lambda head: head + b"A: b\r\n folded\r\n", id="folded"),
        pytest.param(lambda head: head + b"Transfer-Encoding: chunked\r\n", id="two-lengths"),
        pytest.param(lambda head: head + b"Content-Length: 5\r\n", id="contradiction"),
        pytest.param(lambda head: head + b"Upgrade: websocket\r\n", id="upgrade"),
        pytest.param(lambda head: head + b"Bad Name: x\r\n", id="bad-name"),
        pytest.param(lambda head: head + b"A: \0\r\n", id="nul"),
        pytest.param(lambda head: head.replace(b"POST /", b"POST http://127.0.0.1/", 1), id="absolute"),
        pytest.param(lambda head: head.replace(b"HTTP/1.1", b"HTTP/1.0"), id="1.0"),
        pytest.param(lambda head: head.replace(b"HTTP/1.1", b"HTTP/2.0"), id="2.0"),
        pytest.param(lambda _head: b"CONNECT api.anthropic.com:443 HTTP/1.1\r\nHost: x\r\n", id="connect"),
        pytest.param(lambda head: head + b"A: " + b"a" * 70000 + b"\r\n", id="huge"),
    ],
)
def test_a_head_that_can_be_read_in_two_ways_is_refused(
    api: RawApi, child: Relayed, spoil: Callable[[bytes], bytes]
) -> None:
    answer = child.ask(spoil(child.head() + b"Content-Length: 2\r\n") + b"\r\n{}")

    assert re.match(rb"HTTP/1.1 40[04] ", answer), answer
    assert api.requests == []


def test_a_request_that_was_refused_is_followed_by_none(api: RawApi, child: Relayed) -> None:
    with child.connect() as raw:
        raw.sendall(child.head(token="relay-guess") + b"Content-Length: 0\r\n\r\n" + child.message())
        while raw.recv(65536):
            pass

    assert api.requests == []


def test_a_request_of_another_process_than_the_cli_is_counted(api: RawApi, child: Relayed) -> None:
    assert child.delivered.relayed is not None
    for pid, expected in ((os.getpid(), 0), (os.getppid(), 2)):
        child.delivered.relayed.pid = pid
        with child.connect() as raw:
            for _ in range(2):
                raw.sendall(child.message())
                assert read_answer(raw).endswith(b"ok")
        eventually(lambda: child.notes["2xx"] == len(api.requests))
        assert child.notes["other_process"] == expected


# -- the body and the connection


@pytest.mark.parametrize("more", ["", "Expect: 100-continue\r\n"])
def test_a_body_that_says_to_be_too_long_is_refused_before_it_comes(api: RawApi, child: Relayed, more: str) -> None:
    answer = child.ask(child.head() + f"{more}Content-Length: {64 * 1024 * 1024 + 1}\r\n\r\n".encode())

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert api.requests == []


def test_a_large_body_in_chunks_arrives_as_it_was(api: RawApi, child: Relayed) -> None:
    body = bytes(range(256)) * 40_000  # 10 MB
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:3], body[3:9_000_000], body[9_000_000:])
    )
    answer = child.ask(child.head() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")

    assert answer.endswith(b"ok")
    assert api.requests[0].partition(b"\r\n\r\n")[2] == body
    eventually(lambda: child.relay._budget._left == 64 * 1024 * 1024)


def test_a_child_that_waits_for_continue_gets_it(api: RawApi, child: Relayed) -> None:
    with child.connect() as raw:
        raw.sendall(child.head() + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 100 ")
        raw.sendall(b"{}")
        assert read_answer(raw).endswith(b"ok")

    assert b"xpect" not in api.requests[0]


def test_requests_in_one_connection_are_answered_in_turn(api: RawApi, child: Relayed) -> None:
    api.answer = lambda talk, request: talk.send(OK.replace(b"ok", request[-2:]))
    with child.connect() as raw:
        raw.sendall(b"".join(child.message(b"%02d" % number) for number in range(20)))
        data = b""
        while data.count(b"HTTP/1.1") < 20 or not data.endswith(b"19"):
            data += raw.recv(65536)

    assert re.findall(rb"\r\n\r\n(\d\d)", data) == [b"%02d" % number for number in range(20)]
    assert api.connections == 1


def test_sixty_four_requests_at_once(api: RawApi, child: Relayed) -> None:
    gate = threading.Barrier(64)

    def answer(talk: Talk, request: bytes) -> None:
        gate.wait(10)
        talk.send(OK.replace(b"ok", request[-2:]))

    api.answer = answer
    answers: list[bytes] = [b""] * 64
    threads = [
        threading.Thread(target=lambda n=n: answers.__setitem__(n, child.ask(child.message(b"%02d" % n))))
        for n in range(64)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert [answer[-2:] for answer in answers] == [b"%02d" % n for n in range(64)]


def test_a_stream_is_passed_on_piece_by_piece(api: RawApi, child: Relayed) -> None:
    go = threading.Event()

    def answer(talk: Talk, _request: bytes) -> None:
        talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nfirst\r\n")
        assert go.wait(10)
        talk.send(b"6\r\nsecond\r\n0\r\nTrailer: x\r\n\r\n")

    api.answer = answer
    with child.connect() as raw:
        raw.sendall(child.message())
        data = b""
        while b"first" not in data:
            data += raw.recv(65536)
        go.set()
        while not data.endswith(b"0\r\nTrailer: x\r\n\r\n"):
            data += raw.recv(65536)
        raw.sendall(child.message())  # the connection can be used further

        assert raw.recv(10)


@pytest.mark.parametrize(("size", "pauses"), [(200, False), (8192, True)])
def test_only_an_answer_that_comes_faster_than_a_models_events_is_read_with_pauses(
    api: RawApi, child: Relayed, monkeypatch: pytest.MonkeyPatch, size: int, *, pauses: bool
) -> None:
    monkeypatch.setattr(exchange, "PAUSE_SECONDS", 0.5)
    seen = threading.Semaphore(0)

    def answer(talk: Talk, _request: bytes) -> None:
        talk.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (3 * size))
        for _ in range(3):
            talk.send(b"x" * size)
            assert seen.acquire(timeout=10)

    api.answer = answer
    with child.connect() as raw:
        raw.sendall(child.message())
        data, begun = b"", time.monotonic()
        for number in range(3):
            while data.count(b"x") < (number + 1) * size:
                data += raw.recv(65536)
            seen.release()
        took = time.monotonic() - begun

    assert (took >= 1.0) is pauses, took


# -- a hostile API

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", id="short"),
        pytest.param(CHUNKED + b"5\r\nabc", id="in-a-chunk"),
        pytest.param(CHUNKED + b"3\r\nabc\r\n", id="between-chunks"),
        pytest.param(CHUNKED + b"3\r\nabc\r\n0\r\n", id="in-the-trailer"),
        pytest.param(CHUNKED + b"zz\r\nabc", id="no-size"),
        pytest.param(CHUNKED + b"3\nabc\n", id="bare-size"),
        pytest.param(CHUNKED + b"-3\r\nabc\r\n", id="negative"),
    ],
)
def test_an_answer_that_is_cut_ends_with_a_reset_and_never_as_a_whole_one(
    api: RawApi, child: Relayed, data: bytes
) -> None:
    api.answer = lambda talk, _request: talk.close_after(data)
    answer = child.ask()

    assert answer.endswith(b"RESET"), answer
    assert not answer.removesuffix(b"RESET").endswith(b"0\r\n\r\n")


def test_an_answer_that_the_end_of_its_connection_ends_is_whole_and_one_that_is_reset_is_not(
    api: RawApi, child: Relayed
) -> None:
    api.answer = lambda talk, _request: talk.close_after(b"HTTP/1.0 200 OK\r\n\r\nabc")
    assert child.ask().endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    def cut(talk: Talk, _request: bytes) -> bool:
        talk.send(b"HTTP/1.0 200 OK\r\n\r\nabc")
        time.sleep(0.05)  # so that the relay has read the answer
        talk.reset()
        return False

    api.answer = cut
    assert child.ask().endswith(b"RESET")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * 70000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\nA: b\n\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
    ],
)
def test_no_answer_and_a_garbled_one_are_a_502(api: RawApi, child: Relayed, data: bytes) -> None:
    api.answer = lambda talk, _request: talk.close_after(data)

    assert child.ask().startswith(b"HTTP/1.1 502 ")


def test_an_error_of_the_relay_has_no_body_for_head(api: RawApi, child: Relayed) -> None:
    api.answer = lambda talk, _request: talk.close_after(b"garbage\r\n\r\n")

    with child.connect() as raw:
        raw.sendall(child.head("HEAD", "/") + b"\r\n" + child.message())
        answers = b""
        while answers.count(b"HTTP/1.1 502 ") < 2:
            answers += raw.recv(65536)

    assert answers.partition(b"\r\n\r\n")[2].startswith(b"HTTP/1.1 502 ")


def test_an_answer_that_came_before_the_request_is_not_taken_for_the_next_one(api: RawApi, child: Relayed) -> None:
    api.answer = lambda talk, request: talk.send(OK.replace(b"ok", request[-2:]) + OK)

    assert [child.ask(child.message(body))[-2:] for body in (b"11", b"22")] == [b"11", b"22"]


def test_a_kept_connection_that_the_api_has_closed_costs_nothing(api: RawApi, child: Relayed) -> None:
    served: list[Talk] = []

    def answer(talk: Talk, _request: bytes) -> bool:
        if talk in served:
            return False  # closes instead of answering
        served.append(talk)
        talk.send(OK)
        return True

    api.answer = answer

    assert [child.ask()[-2:] for _ in range(3)] == [b"ok"] * 3


def test_an_api_that_never_answers_is_cut_off(tmp_path: Path) -> None:
    silent = threading.Event()
    api = RawApi(lambda _talk, _request: silent.wait(10))
    with api.running() as url, relayed(tmp_path, url, first_byte_seconds=0.2) as child:
        assert child.ask() == b"RESET"
        silent.set()
        assert child.notes["silent"] == 1


def test_an_api_that_cannot_be_reached_is_a_502(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with relayed(tmp_path, url) as child:
        begun = time.monotonic()
        assert child.ask().startswith(b"HTTP/1.1 502 ")
        assert 1.5 < time.monotonic() - begun < 6


# -- a child that leaves


def test_a_child_that_hangs_up_ends_its_request_at_the_api(api: RawApi, child: Relayed) -> None:
    gone = threading.Event()

    def answer(talk: Talk, _request: bytes) -> bool:
        with contextlib.suppress(ConnectionResetError):
            talk.connection.recv(1)
        gone.set()
        return False

    api.answer = answer
    with child.connect() as raw:
        raw.sendall(child.message())
        eventually(lambda: api.requests)

    assert gone.wait(5)


def test_the_end_of_an_attempt_ends_its_requests(api: RawApi, child: Relayed) -> None:
    gone = threading.Event()

    def answer(talk: Talk, _request: bytes) -> bool:
        with contextlib.suppress(ConnectionResetError):
            talk.connection.recv(1)
        gone.set()
        return False

    api.answer = answer
    with child.connect() as raw:
        raw.sendall(child.message())
        eventually(lambda: api.requests)
        child.relay.release(child.delivered)
        assert read_answer(raw) in {b"END", b"RESET"}

    assert gone.wait(5)


def test_a_child_that_reads_nothing_holds_up_the_api_and_takes_no_memory(api: RawApi, child: Relayed) -> None:
    sent = 0

    def answer(talk: Talk, _request: bytes) -> bool:
        nonlocal sent
        talk.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        while True:
            sent += talk.connection.send(b"x" * 65536)

    api.answer = answer
    with child.connect() as raw:
        raw.sendall(child.message())
        last = -1
        while sent != last:  # until it stops
            last = sent
            threading.Event().wait(0.2)

    assert 0 < sent < 30_000_000, "what the kernel's buffers take"


# -- held requests


@pytest.fixture
def holds(child: Relayed) -> list[HeldRequest]:
    """Have refused requests held; return the list to which each is added."""
    assert child.delivered.relayed is not None
    found: list[HeldRequest] = []
    child.delivered.relayed.on_hold = found.append
    return found


def test_a_held_request_is_sent_again_when_it_is_released(
    api: RawApi, child: Relayed, holds: list[HeldRequest]
) -> None:
    api.answer = refuses_old
    with child.connect() as raw:
        raw.sendall(child.message(b"held"))
        eventually(lambda: holds)
        assert (holds[0].detection.rule.trouble, holds[0].generation.number) == ("refused", 1)
        child.secret.write(NEW)
        holds[0].release(replays=True)

        assert read_answer(raw).endswith(b"ok")
    assert [request[-4:] for request in api.requests] == [b"held"] * 2
    assert holds[0].is_over


def test_a_held_answer_is_passed_on_when_that_is_decided(api: RawApi, child: Relayed, holds: list[HeldRequest]) -> None:
    limit = b"HTTP/1.1 429 Limit\r\nanthropic-ratelimit-unified-status: rejected\r\n"
    limit += b"anthropic-ratelimit-unified-reset: %d\r\ncontent-length: 2\r\n\r\n{}" % (time.time() + 60)
    api.answer = says(limit)
    with child.connect() as raw:
        raw.sendall(child.message())
        eventually(lambda: holds)
        holds[0].release(replays=False)

        assert read_answer(raw) == limit
    assert holds[0].detection.rule.trouble == "limited"
    assert holds[0].detection.resets_at is not None


@pytest.mark.parametrize("leaves", ["child", "attempt"])
def test_a_hold_ends_with_the_child_and_with_the_attempt(
    api: RawApi, child: Relayed, holds: list[HeldRequest], leaves: str
) -> None:
    api.answer = refuses_old
    with child.connect() as raw:
        raw.sendall(child.message())
        eventually(lambda: holds)
        raw.close() if leaves == "child" else child.relay.release(child.delivered)
        eventually(lambda: holds[0].is_over)
    holds[0].release(replays=True)  # too late, and does no harm

    assert len(api.requests) == 1
    eventually(lambda: child.relay._budget._left == 64 * 1024 * 1024)
