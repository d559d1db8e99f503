"""What the client makes of answers and events of supervisors of other versions, and of junk."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from agent_runtime import client
from agent_runtime.client import AgentClient, Event, SyncAgentClient, TokenFailed
from agent_runtime.client.answers import read
from tests.support.broken_network import http, says, stranger
from tests.support.supervised import fails

if TYPE_CHECKING:
    from collections.abc import Iterator

AT = "2026-11-30T07:42:08.123Z"


# -- answers


def test_an_answer_of_another_version_is_read_as_far_as_it_can_be() -> None:
    token = read(
        client.TokenReport,
        {
            "state": "dreaming",
            "generation": "x",
            "kind": 5,
            "limited_until": AT,
            "loaded_at": "soon",
            "expires_at": AT[:-1],
        },
    )

    assert token is not None
    assert (token.state, token.generation, token.kind, token.held_by) == ("dreaming", None, None, {})
    assert (token.limited_until, token.loaded_at) == (datetime(2026, 11, 30, 7, 42, 8, 123000, UTC), None)
    assert token.expires_at is None  # without a time zone
    assert token["state"] == "dreaming"  # as of the dict that earlier versions returned
    with pytest.raises(KeyError):
        token["newer"]


def test_a_record_of_an_earlier_version_keeps_all_that_can_be_read() -> None:
    attempts: list[Any] = [{"pid": 7, "started_at": AT, "tokens": [{"generation": 1}, "x"], "exit_code": "x"}, 5]
    record = read(
        client.Execution,
        {
            "execution_id": "a",
            "state": "resting",
            "metadata": {"cost_usd": None, "context_window": None, "num_turns": 3},
            "attempts": attempts,
        },
    )

    assert record is not None
    assert (record.state, record.outcome, record.created_at) == ("resting", None, None)
    assert (record.metadata.cost_usd, record.metadata.context_window, record.metadata.num_turns) == (0.0, 200_000, 3)
    [attempt] = record.attempts
    assert (attempt.pid, attempt.exit_code, attempt.started_at) == (7, None, datetime.fromisoformat(AT))
    assert [(token.generation, token.fingerprint) for token in attempt.tokens] == [(1, "")]


@pytest.mark.parametrize("kind", [client.TokenReport, client.Health, client.Execution, client.RunningExecutions])
def test_what_lacks_the_first_field_is_something_else(kind: type[Any]) -> None:
    first = kind.__struct_fields__[0]

    assert read(kind, {}) is None
    assert read(kind, {first: None}) is None
    assert read(kind, {first: ["x"]}) is not None


@pytest.mark.parametrize("junk", [b"{}", b"[]", b"null", b"{", b"<html>", b'{"status": null}', b"\xff"])
def test_junk_in_the_place_of_an_answer_is_no_answer(junk: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_runtime.client.exchange.FIRST_PAUSE_SECONDS", 0.0)
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=junk))
    with SyncAgentClient("http://agent", transport=transport) as agent:
        for call in (agent.health, agent.token, agent.running, agent.drain, lambda: agent.status("x")):
            with fails("unreachable", match="cannot be read"):
                call()


def test_the_client_imports_httpx_and_msgspec_and_nothing_else_of_others() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.programs.imports_of_the_client"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded, heavy = done.stdout.splitlines()

    # What httpx itself imports where it is installed, by its own choice.
    beside = {
        "httpcore",
        "anyio",
        "certifi",
        "h11",
        "idna",
        "sniffio",
        "typing_extensions",
        "click",
        "pygments",
        "rich",
    }
    assert set(loaded.split()) - beside == {"httpx", "msgspec"}
    assert heavy == ""


# -- events

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


def sent(number: int, kind: str = "token.loaded", data: str = '{"generation": 1}') -> bytes:
    body = f'{{"id":{number},"type":"{kind}","time":"{AT}","data":{data}}}'
    return f"event: {kind}\nid: {number}\ndata: {body}\n\n".encode()


GAP = b'event: gap\nid: 9\ndata: {"first": 6, "last": 9, "reason": "not kept"}\n\n'
END = b'event: end\ndata: {"type": "stream_end"}\n\n'


def heard_by(flavour: str, url: str, count: int, **options: Any) -> list[Event]:
    """Listen until *count* events have come."""
    if flavour == "blocking":
        with SyncAgentClient(url) as agent:
            return list(itertools.islice(agent.events(**options), count))

    async def listen() -> list[Event]:
        heard: list[Event] = []
        async with AgentClient(url) as agent:
            async for event in agent.events(**options):
                heard.append(event)
                if len(heard) == count:
                    break
        return heard

    return asyncio.run(listen())


@pytest.mark.parametrize("flavour", ["blocking", "awaiting"])
def test_events_come_once_over_cuts_ends_proxies_and_gaps(flavour: str) -> None:
    junk = b'event: token.loaded\nid: 5\ndata: {not json}\n\n: keep-alive\n\nevent: later\ndata: {"n": 1}\n\n'
    with stranger(
        says(HEAD + b": events\n\n" + sent(4) + sent(5)[:20]),  # cut in the middle of a line
        says(http(502, b"<html>")),
        says(http(200, b"<html>", "content-type: text/html")),
        says(HEAD + sent(4) + junk + sent(5, "token.refused", "{}") + END),
        says(HEAD + GAP + sent(10, "token.dreaming")),
    ) as server:
        events = heard_by(flavour, server.url, 4, after=3)

        asked = [
            line.split(b": ")[1]
            for request in server.requests
            for line in request.lower().split(b"\r\n")
            if line.startswith(b"last-event-id")
        ]
    assert [(event.id, event.type) for event in events] == [
        (4, "token.loaded"),
        (5, "token.refused"),
        (9, "gap"),
        (10, "token.dreaming"),
    ]
    assert events[0].time == datetime.fromisoformat(AT)
    assert (events[0].data, events[2].data["last"]) == ({"generation": 1}, 9)
    assert asked == [b"3", b"4", b"4", b"4", b"5"]


def test_events_end_with_a_refused_key_or_without_any_answer() -> None:
    refusal = b'{"error_class": "access", "status": 401, "detail": "no key"}'
    with stranger(says(http(401, refusal))) as server, fails("access"):
        heard_by("awaiting", server.url, 1)
    with stranger(says(http(404, b"<html>"))) as server, fails("unexpected"):
        heard_by("blocking", server.url, 1)
    with SyncAgentClient("http://127.0.0.1:9", patience_seconds=0.1) as agent, fails("unreachable"):
        next(agent.events())


def test_events_end_when_the_client_is_closed() -> None:
    with stranger(says(HEAD + sent(1))) as server:
        agent = SyncAgentClient(server.url)
        heard, one = list[Event](), threading.Event()

        def listen() -> None:
            for event in agent.events():
                heard.append(event)
                one.set()

        thread = threading.Thread(target=listen)
        thread.start()
        assert one.wait(10)
        agent.close()
        thread.join(10)

        assert (thread.is_alive(), [event.id for event in heard]) == (False, [1])

    async def closed_meanwhile(url: str) -> int:
        agent, count = AgentClient(url), 0
        async for _ in agent.events():
            count += 1
            await agent.aclose()
        with fails("closed"):
            await agent.token()
        return count

    with stranger(says(HEAD + sent(1) + END)) as server:
        assert asyncio.run(asyncio.wait_for(closed_meanwhile(server.url), 10)) == 1


# -- a token that failed


def answers(*generations: int | None, status: int = 503, error_class: str = "auth") -> httpx.MockTransport:
    """Turn away with each of these generations, then answer."""
    left = list(generations)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404, json={"error_class": "not_found", "status": 404})
        if not left:
            return httpx.Response(200, json={"execution_id": "x", "status": "success"})
        problem = {"error_class": error_class, "status": status, "token_generation": left.pop(0), "resets_at": AT}
        return httpx.Response(status, json=problem)

    return httpx.MockTransport(answer)


@pytest.fixture(params=["blocking", "awaiting", "awaiting a coroutine"])
def flavour(request: pytest.FixtureRequest) -> Iterator[str]:
    return request.param  # type: ignore[no-any-return]


def met(flavour: str, transport: httpx.MockTransport, count: int, raised: BaseException | None = None) -> Any:
    """Run *count* tasks at once; return what was told, and what each of them came to."""
    told: list[TokenFailed] = []

    def plain(error: TokenFailed) -> None:
        told.append(error)
        if raised is not None:
            raise raised

    async def awaited(error: TokenFailed) -> None:
        await asyncio.sleep(0)
        plain(error)

    if flavour == "blocking":
        outcomes: list[Any] = []
        with SyncAgentClient("http://agent", transport=transport, on_token_failed=plain) as agent:

            def run() -> None:
                try:
                    outcomes.append(agent.run("Do it."))
                except Exception as error:  # noqa: BLE001 - looked at by the caller
                    outcomes.append(error)

            threads = [threading.Thread(target=run) for _ in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
        return told, outcomes

    async def run_all() -> list[Any]:
        callback = plain if flavour == "awaiting" else awaited
        async with AgentClient("http://agent", transport=transport, on_token_failed=callback) as agent:
            return await asyncio.gather(*(agent.run("Do it.") for _ in range(count)), return_exceptions=True)

    outcomes = asyncio.run(run_all())
    return told, outcomes


@pytest.mark.parametrize(("status", "error_class"), [(503, "auth"), (503, "billing"), (429, "rate_limit")])
def test_a_failed_token_is_told_once_for_each_generation(flavour: str, status: int, error_class: str) -> None:
    told, outcomes = met(flavour, answers(1, 1, 1, 2, 2, 1, status=status, error_class=error_class), 8)

    assert sorted(error.generation for error in told) == [1, 2]
    assert {error.error_class for error in told} == {error_class}
    assert told[0].resets_at == datetime.fromisoformat(AT)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Answer"] * 2 + ["TokenFailed"] * 6


@pytest.mark.parametrize("raised", [ValueError("of the callback"), StopIteration(), KeyError("x")])
def test_what_the_callback_raises_does_not_hide_the_failure(
    flavour: str, raised: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    told, outcomes = met(flavour, answers(1, 1), 2, raised)

    assert (len(told), [type(outcome) for outcome in outcomes]) == (1, [TokenFailed] * 2)
    assert [record.message for record in caplog.records] == ["on_token_failed raised an error"]


def test_no_token_is_told_once_until_a_task_has_one(flavour: str) -> None:
    assert len(met(flavour, answers(None, None, None, status=500, error_class="no_token"), 3)[0]) == 1


def test_a_later_lack_of_a_token_is_told_again() -> None:
    told: list[TokenFailed] = []
    missing = answers(None, None, status=500, error_class="no_token")
    there = answers()
    turns = [missing, missing, there, answers(None, status=500, error_class="no_token")]
    transport = httpx.MockTransport(lambda request: turns[0].handle_request(request))  # noqa: PLW0108 - then the first
    with SyncAgentClient("http://agent", transport=transport, on_token_failed=told.append) as agent:
        for calls in (1, 1, 1, 2):
            with contextlib.suppress(TokenFailed):
                agent.run("Do it.")
            assert len(told) == calls
            turns.pop(0)


def test_the_callback_of_a_blocking_client_may_use_it() -> None:
    told: list[str] = []

    def again(error: TokenFailed) -> None:
        told.append(agent.run(f"Again after {error.generation}.").status)

    turned_away_once = answers(1)
    with (
        SyncAgentClient("http://agent", transport=turned_away_once, on_token_failed=again) as agent,
        fails("auth"),
    ):
        agent.submit("Do it.")
    assert told == ["success"]


def test_a_failure_that_another_token_does_not_cure_is_not_told() -> None:
    told: list[TokenFailed] = []
    too_long = answers(1, status=422, error_class="max_turns")
    with (
        SyncAgentClient("http://agent", transport=too_long, on_token_failed=told.append) as agent,
        fails("max_turns"),
    ):
        agent.run("Do it.")
    assert told == []
