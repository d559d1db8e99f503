"""L7: whatever is sent to whatever route, the answer is one of the contract: a typed problem, and never a 500."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest

from agent_runtime.api.app import ROUTES
from agent_runtime.errors import RESERVED_WORDS, ErrorClass
from agent_runtime.model.task import Task
from agent_runtime.settings import Settings
from tests.support.supervised import Supervised, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "get")
NO_FAILURES = {200, 202, 400, 401, 404, 405, 409, 413}
OF_THE_TOKEN = {"auth", "no_token", "rate_limit"}
"""The fuzz posts tokens, too; what an execution then ends with is no failure of the supervisor."""

WORDS = ["running", "known", "..", "../../etc/passwd", "%2e%2e%2f", "a" * 4000, "%00", "%ff%fe", "☃", "-", "--version"]
WORDS += [".", "%0d%0aX: y", "'; DROP TABLE executions; --", "a/b", "%", "%zz", " ", "known?", "0", "\u202e", "known#"]
NUMBERS = ["0", "-1", "1", "1e9", "9" * 18, "9" * 19, "000001" + "9" * 5000, "٣", "NaN", "", "1.5", "0x1", "+1", " 1"]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    1.5,
    2**31,
    2**63,
    2**64,
    10**30,
    1e308,
    "",
    "x",
    "\x00",
    "☃",
    "x" * 70_000,
]
VALUES += [
    [],
    {},
    [[]],
    [{}],
    {"a": None},
    "known",
    "../x",
    "--version",
    "-p",
    ["x"] * 3,
    [1],
    "401 oauth",
    "\u2028",
    " ",
]
VALUES += [{"mcpServers": {}}, [{"media_type": "image/png", "data": "AAAA"}], [{"media_type": "x", "data": "?"}]]
RAW = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"0",
    b'"x"',
    b"\xff\xfe",
    b"\x00" * 100,
    b'{"message": "\\ud800"}',
    b'{"message": "\\u0000"}',
]
RAW += [
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"message": 1e999}',
    b'{"message": NaN}',
    b'{"message": "x", "message": 1}',
]
RAW += [b'{"execution_id": "\\udfff", "message": "x"}', b'{"message": "x"} trailing', b"\xef\xbb\xbf{}", b"9" * 100_000]
RAW += [b'{"message": "' + b"x" * (Settings().body_limit + 1) + b'"}', b'{"images": [' + b"{}," * 100_000 + b"{}]}"]
HEADERS: list[tuple[bytes, bytes]] = [
    (b"Content-Type", b"text/html"),
    (b"Content-Type", b"application/json; charset=utf-16"),
    (b"Content-Encoding", b"gzip"),
    (b"Accept", b"image/png"),
    (b"Expect", b"100-continue"),
    (b"Prefer", b"respond-async;;,, ,=,wait=\xff"),
    (b"Prefer", b"respond-async"),
    (b"Authorization", b"Bearer \xff\xfe"),
    (b"Authorization", b"Basic Og=="),
    (b"Origin", b"http://[::1"),
    (b"Host", b"\xc3\xa4:99999999"),
    (b"X-Forwarded-For", b"1.2.3.4"),
    (b"Cookie", b"x" * 3000),
    (b"Range", b"bytes=0-"),
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Last-Event-ID", b"\xff"),
    *((b"Last-Event-ID", number.strip().encode()) for number in NUMBERS),
]
FIELDS = msgspec.structs.fields(Task)


def target(rng: random.Random) -> tuple[str, str]:
    """Choose a method and a path, mostly those of a route, with anything as its id, and a query."""
    entry = rng.choice([*ROUTES, *[entry for entry in ROUTES if entry.method == "POST"] * 2])
    method = entry.method if rng.random() < 0.8 else rng.choice(METHODS)
    path = entry.path if rng.random() < 0.9 else rng.choice(["/", "//", "/api", "/nowhere", "/api/task/", "/*"])
    path = path.replace("{id}", rng.choice(["known", rng.choice(WORDS)]))
    if rng.random() < 0.5:
        names = ["limit", "cursor", "state", "outcome", "last_event_id", "x", ""]
        pairs = [f"{rng.choice(names)}={rng.choice(NUMBERS + WORDS)}" for _ in range(rng.randint(1, 3))]
        path += "?" + "&".join(pairs)
    return method, path


def body(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.15:
        return rng.choice(RAW)
    if kind < 0.25:
        return rng.randbytes(rng.randint(1, 2000))
    fields = {rng.choice(FIELDS).encode_name: rng.choice(VALUES) for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 4]))}
    if rng.random() < 0.5:
        fields["message"] = "x"
    if rng.random() < 0.1:
        fields[rng.choice(["token", "unknown", "", "__class__"])] = rng.choice(VALUES)
    fields["timeout_seconds"] = fields.get("timeout_seconds") if rng.random() < 0.1 else 5
    return json.dumps(fields).encode(errors="surrogatepass")


def check(response: httpx.Response, asked: str) -> str:
    """Hold one answer against the contract and return what kind of answer it was."""
    status, kind = response.status_code, response.headers.get("content-type", "")
    if response.request.method == "HEAD":
        assert status in NO_FAILURES | {503}, asked
        return "head"
    if status < 400 or ("/readyz" in asked and status == 503):
        of_people_and_prometheus = ("text/html", "text/plain; version=", "application/openmetrics-text")
        assert kind.startswith(("application/json", "text/event-stream", *of_people_and_prometheus)), asked
        return str(status)
    assert kind == "application/problem+json", f"{asked}: {status} {kind} {response.text[:200]}"
    problem = response.json()
    error_class = ErrorClass(problem["error_class"])
    assert status == problem["status"] == error_class.status, asked
    assert isinstance(problem["detail"], str)
    assert isinstance(problem["title"], str)
    # A task that was let in ends as one of /bin/true, which prints no result.
    assert status in NO_FAILURES or error_class in OF_THE_TOKEN | {"lost_result"}, f"{asked}: {problem}"
    if error_class not in OF_THE_TOKEN:
        assert not any(word in problem["detail"].lower() for word in RESERVED_WORDS), f"{asked}: {problem}"
    if status == 405:
        assert response.headers["allow"], asked
    if status == 409 and error_class in ("busy", "draining"):
        assert int(response.headers["retry-after"]) > 0, asked
    return f"{status} {error_class}"


def fuzz(running: Supervised, rng: random.Random, count: int) -> Counter[str]:
    met: Counter[str] = Counter()
    address = httpx.URL(running.url)
    for _ in range(count):
        method, path = target(rng)
        content = body(rng) if rng.random() < 0.7 else b""
        headers = [(b"Host", b"localhost"), *rng.sample(HEADERS, rng.choice([0, 0, 1, 3]))]
        headers = [pair for pair in headers if pair[0] != b"Host"] + [
            next(p for p in reversed(headers) if p[0] == b"Host")
        ]
        asked = f"{method} {path[:100]} {headers} {content[:200]!r}"
        raw_path = path.partition("#")[0].encode().replace(b" ", b"%20")
        url = address.copy_with(raw_path=raw_path if raw_path.isascii() else httpx.URL(path).raw_path)
        with running.client.stream(method, url, headers=headers, content=content) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                response.read()
            met[check(response, asked)] += 1
    return met


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    flags = ("--slots", "2", "--queue", "4", "--probe", "off", "--token-delivery", "env")
    with supervised(tmp_path_factory.mktemp("hostile"), claude="/bin/true", flags=flags) as found:
        found.post("x", execution_id="known")
        yield found


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_sent_gets_an_answer_of_the_contract(running: Supervised, seed: int) -> None:
    met = fuzz(running, random.Random(seed), 400)

    assert {"200", "400 invalid_request", "404 not_found", "405 method", "head"} <= set(met), met
    assert running.get("/health")["streams"]["open"] <= 1


@pytest.mark.parametrize("path", sorted({entry.path for entry in ROUTES if entry.method == "POST"}))
def test_no_body_is_too_strange_for_a_route(running: Supervised, path: str) -> None:
    for content in RAW:
        response = running.client.post(path.replace("{id}", "known"), content=content)
        check(response, f"{path} {content[:50]!r}")
    running.client.delete("/api/drain").raise_for_status()


def test_every_path_says_which_methods_it_takes(running: Supervised) -> None:
    by_path: dict[str, set[str]] = {}
    for entry in ROUTES:
        by_path.setdefault(entry.path, set()).add(entry.method)
    for path, methods in by_path.items():
        takes = methods | ({"HEAD"} if "GET" in methods else set())
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - takes:
            response = running.client.request(method, path.replace("{id}", "known"))
            assert (response.status_code, response.json()["error_class"]) == (405, "method")
            assert set(response.headers["allow"].split(", ")) == takes
            assert "access-control-allow-origin" not in response.headers


def test_the_head_of_every_page_is_that_of_its_get(running: Supervised) -> None:
    for entry in ROUTES:
        if entry.method == "GET" and "stream" not in entry.path and entry.path != "/api/events":
            path = entry.path.replace("{id}", "known")
            head, get = running.client.head(path), running.client.get(path)
            assert (head.status_code, head.content) == (get.status_code, b"")
            assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize("limit", NUMBERS)
def test_no_limit_gets_past_the_limit_of_a_list(running: Supervised, limit: str) -> None:
    answer = running.client.get("/api/executions", params={"limit": limit})

    assert answer.status_code == (200 if limit == "1" else 400)


def test_draining_and_busy_say_when_to_come_back(running: Supervised) -> None:
    running.client.post("/api/drain").raise_for_status()
    try:
        answer = running.post("x", execution_id=os.urandom(4).hex())
    finally:
        running.client.delete("/api/drain").raise_for_status()

    assert (answer.status_code, answer.json()["error_class"]) == (409, "draining")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
