"""What a backend is told: the event log, its stream, and the webhook."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import hmac
import json
import logging
import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from agent_runtime.api.streams import OpenStreams, follow_log, position_of
from agent_runtime.errors import AgentRuntimeError
from agent_runtime.model.records import rfc3339
from agent_runtime.model.tokens import Token
from agent_runtime.telemetry.events import EVENTS_HELD, POSTED, TYPES, Event, EventLog
from agent_runtime.telemetry.redaction import Redactor
from agent_runtime.telemetry.webhook import LAST_SECONDS, SIGNATURE_HEADER, Webhook
from agent_runtime.web.access import AccessKey
from agent_runtime.web.problems import problem_response
from agent_runtime.web.response_buffer import ResponseBuffer
from tests.support.loopback import serving
from tests.support.supervised import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from starlette.requests import Request

KEY = Token("the-access-key-of-these-tests")
TOKEN = Token("sk-ant-oat01-the-token-of-these-tests")
DEADLINE_SECONDS = 30.0


def published(count: int, *, kept: int = EVENTS_HELD) -> EventLog:
    """Make a log in which so many things have happened."""
    log = EventLog(size=kept)
    for number in range(count):
        log.publish("execution.started", number=number)
    return log


def numbers(events: list[Event]) -> list[Any]:
    return [event.data["number"] for event in events]


# The log.


def test_ids_rise_one_by_one_and_over_restarts() -> None:
    earlier = published(3)
    ids = [event.id for event in earlier.after(0)[0]]
    assert ids == [earlier.last_id - 2, earlier.last_id - 1, earlier.last_id]

    eventually(lambda: time.time_ns() // 1_000_000 > earlier.last_id)  # a restart takes longer than three events
    assert EventLog().last_id > earlier.last_id


def test_a_position_continues_exactly_after_it() -> None:
    log = published(5)
    third = log.last_id - 2

    events, gap = log.after(third)
    assert numbers(events) == [3, 4]
    assert not gap
    assert log.after(log.last_id) == ([], False)


def test_no_position_gets_all_that_is_kept_and_misses_nothing() -> None:
    assert numbers(published(5).after(0)[0]) == [0, 1, 2, 3, 4]
    assert published(5, kept=2).after(0)[1] is False


def test_a_position_that_is_gone_is_a_gap_and_one_at_its_edge_is_none() -> None:
    log = published(10, kept=4)
    oldest = log.last_id - 3

    assert numbers(log.after(oldest - 2)[0]) == [6, 7, 8, 9]
    assert log.after(oldest - 2)[1] is True
    assert log.after(oldest - 1)[1] is False
    assert log.after(oldest)[1] is False


def test_a_position_of_an_earlier_process_is_a_gap_also_where_nothing_has_happened() -> None:
    log = EventLog()

    assert log.after(log.last_id - 100_000) == ([], True)
    assert log.after(log.last_id) == ([], False)


def test_a_position_of_before_the_clock_went_back_is_a_gap_before_all_that_is_kept() -> None:
    events, gap = published(3).after(published(3).last_id + 10_000)

    assert (numbers(events), gap) == ([0, 1, 2], True)


def test_memory_is_bounded() -> None:
    assert len(published(EVENTS_HELD + 10).after(0)[0]) == EVENTS_HELD


def test_an_event_says_what_when_and_with_which_number() -> None:
    log = EventLog()
    log.publish("token.refused", generation=3, fingerprint=TOKEN.fingerprint, rule=None)

    (event,) = log.after(0)[0]
    sent = json.loads(event.json)
    assert sent == {
        "id": log.last_id,
        "type": "token.refused",
        "time": rfc3339(event.time.timestamp()),
        "data": {"generation": 3, "fingerprint": TOKEN.fingerprint, "rule": None},
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", sent["time"])


def test_a_type_that_nobody_knows_is_a_fault() -> None:
    with pytest.raises(ValueError, match="refuesd"):
        EventLog().publish("token.refuesd")


@pytest.mark.parametrize("value", [TOKEN, {"token": TOKEN}, [TOKEN], b"bytes"])
def test_nothing_that_could_hide_a_token_can_be_told(value: Any) -> None:
    log = EventLog()
    with pytest.raises(TypeError, match="subject"):
        log.publish("token.loaded", subject=value)
    assert log.after(0) == ([], False)


def test_a_token_in_a_text_is_taken_out() -> None:
    log = EventLog(redact=Redactor([TOKEN]).redact_text)
    log.publish("token.invalid", error=f"cannot use {TOKEN.secret} at all")

    assert TOKEN.secret.encode() not in log.after(0)[0][0].json
    assert TOKEN.fingerprint.encode() in log.after(0)[0][0].json


def test_waiting_ends_with_the_next_event_with_the_end_and_at_once_if_it_has_happened() -> None:
    async def scenario() -> None:
        log = EventLog()
        waiting = [asyncio.create_task(log.wait(log.last_id)) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        log.publish("token.loaded")
        await asyncio.gather(*waiting)
        await log.wait(log.last_id - 1)

        waiting = [asyncio.create_task(log.wait(log.last_id))]
        await asyncio.sleep(0)
        log.close()
        await asyncio.gather(*waiting)
        await log.wait(log.last_id)

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_SECONDS))


# The stream.


def parsed(chunk: bytes) -> list[dict[str, str]]:
    """Read events as a browser does; comments are left out."""
    found = []
    for block in chunk.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append(fields)
    return found


async def next_events(stream: AsyncIterator[bytes], count: int) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    while len(found) < count:
        found += parsed(await asyncio.wait_for(anext(stream), DEADLINE_SECONDS))
    return found


def streamed(log: EventLog, after: int) -> list[dict[str, str]]:
    """Follow a log that is closed, to the end."""
    log.close()

    async def collect() -> list[dict[str, str]]:
        return [event async for chunk in follow_log(log, after) for event in parsed(chunk)]

    return asyncio.run(asyncio.wait_for(collect(), DEADLINE_SECONDS))


def test_a_stream_says_what_was_what_happens_and_that_it_ends() -> None:
    async def scenario() -> None:
        log = published(1)
        stream = follow_log(log, 0)
        (was,) = await next_events(stream, 1)
        assert (was["event"], was["id"]) == ("execution.started", str(log.last_id))
        assert json.loads(was["data"])["data"] == {"number": 0}

        waiting = asyncio.create_task(next_events(stream, 1))
        await asyncio.sleep(0)
        log.publish("token.refused", generation=1)
        (happens,) = await waiting
        assert (happens["event"], happens["id"]) == ("token.refused", str(log.last_id))

        log.publish("execution.finished")
        log.close()
        last, end = await next_events(stream, 2)
        assert (last["event"], end) == ("execution.finished", {"event": "end", "data": '{"type":"stream_end"}'})
        assert [chunk async for chunk in stream] == []

    asyncio.run(scenario())


def test_a_stream_with_a_position_repeats_nothing_and_leaves_nothing_out() -> None:
    log = published(5)

    assert [event.get("id") for event in streamed(log, log.last_id - 2)] == [
        str(log.last_id - 1),
        str(log.last_id),
        None,
    ]


def test_a_gap_is_told_with_the_position_from_which_it_goes_on() -> None:
    log = published(10, kept=2)
    position = log.last_id - 5

    gap, *rest = streamed(log, position)
    assert (gap["event"], gap["id"]) == ("gap", str(log.last_id - 2))
    assert json.loads(gap["data"]) == {"first": position + 1, "last": log.last_id - 2, "reason": "not kept"}
    assert [event["event"] for event in rest] == ["execution.started", "execution.started", "end"]


def test_a_position_that_does_not_exist_yet_is_corrected_once_and_loses_no_event() -> None:
    log = published(2)
    future = log.last_id + 7

    gap, *rest = streamed(log, future)
    assert (gap["event"], gap["id"]) == ("gap", str(log.last_id - 2))
    assert json.loads(gap["data"]) == {"first": log.last_id + 1, "last": future, "reason": "not written yet"}
    assert [event["event"] for event in rest] == ["execution.started", "execution.started", "end"]


def test_a_silent_stream_is_kept_alive() -> None:
    async def scenario() -> list[bytes]:
        stream = follow_log(EventLog(), 0, keep_alive_seconds=0.01)
        return [await asyncio.wait_for(anext(stream), DEADLINE_SECONDS) for _ in range(3)]

    assert asyncio.run(scenario())[1:] == [b": keep-alive\n\n"] * 2


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, AgentRuntimeError)
    return problem_response(error)


@contextlib.contextmanager
def served(log: EventLog) -> Iterator[str]:
    """Put *log* behind a real server."""

    async def events(request: Request) -> Response:
        stream = functools.partial(follow_log, log, position_of(request))
        return OpenStreams(ResponseBuffer(1 << 20)).response(request, stream, AccessKey(None, "x", Redactor()))

    app = Starlette(routes=[Route("/api/events", events)], exception_handlers={AgentRuntimeError: _problem})
    with serving(app) as url:
        yield f"{url}/api/events"


def test_the_position_comes_by_header_or_by_query() -> None:
    log = published(2)
    log.close()
    with served(log) as url, httpx.Client(trust_env=False) as client:
        everything = client.get(url)
        by_header = client.get(url, headers={"last-event-id": str(log.last_id - 1)})
        by_query = client.get(url, params={"last_event_id": str(log.last_id - 1)})
        nonsense = client.get(url, headers={"last-event-id": "yesterday"})
    assert everything.headers["content-type"].startswith("text/event-stream")
    assert everything.headers["cache-control"] == "no-store"
    assert len(parsed(everything.content)) == 3
    assert [event.get("id") for event in parsed(by_header.content)] == [str(log.last_id), None]
    assert by_query.content == by_header.content
    assert (nonsense.status_code, nonsense.json()["error_class"]) == (400, "invalid_request")


def test_the_head_of_a_stream_without_end_is_had_at_once_and_again() -> None:
    with served(EventLog()) as url, httpx.Client(trust_env=False) as client:
        heads = [client.head(url) for _ in range(3)]
    assert [(head.status_code, head.content) for head in heads] == [(200, b"")] * 3
    assert heads[0].headers["content-type"].startswith("text/event-stream")


# The webhook.


class Backend:
    """Take what is posted, after as many refusals as it is told; every method may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._answers: list[int] = []
        self.posts: list[tuple[bytes, dict[str, str]]] = []
        self.silent = False

    def answer(self, *statuses: int) -> None:
        """Answer the next posts so; 200 after that."""
        with self._changed:
            self._answers += statuses

    async def take(self, request: Request) -> Response:
        body = await request.body()
        with self._changed:
            self.posts.append((body, dict(request.headers)))
            status = self._answers.pop(0) if self._answers else 200
            self._changed.notify_all()
        if self.silent:
            while (await request.receive())["type"] != "http.disconnect":
                pass
        return Response(b"x" * 1_000_000, status, {"location": "/elsewhere"})

    def wait_for_posts(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.posts) >= count, DEADLINE_SECONDS), self.posts

    @property
    def events(self) -> list[Any]:
        return [json.loads(body) for body, _ in self.posts]


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def backend_url(backend: Backend) -> Iterator[str]:
    app = Starlette(routes=[Route("/{path:path}", backend.take, methods=["POST"])])
    with serving(app) as url:
        yield f"{url}/events?agent=7"


def publishing(*types: str) -> Callable[[EventLog], None]:
    def happens(log: EventLog) -> None:
        for type_ in types:
            log.publish(type_)

    return happens


def run(
    url: str,
    happens: Callable[[EventLog], None],
    *,
    until: Callable[[], None] | None = None,
    key: Callable[[], Token | None] = lambda: KEY,
    pauses_seconds: tuple[float, ...] = (0.0, 0.0),
    kept: int = EVENTS_HELD,
) -> Webhook:
    """Post what *happens*, wait for *until*, close the log and end; in that order."""

    async def scenario() -> Webhook:
        log = EventLog(size=kept)
        webhook = Webhook(url, key, log, environ={}, pauses_seconds=pauses_seconds)
        webhook.start()
        happens(log)
        if until is not None:
            await asyncio.to_thread(until)
        log.close()
        await webhook.stop()
        return webhook

    return asyncio.run(asyncio.wait_for(scenario(), DEADLINE_SECONDS))


def test_events_are_posted_in_order_and_signed(backend: Backend, backend_url: str) -> None:
    run(backend_url, publishing(*sorted(TYPES)))

    assert [event["type"] for event in backend.events] == sorted(POSTED)
    assert [event["id"] for event in backend.events] == sorted(event["id"] for event in backend.events)
    for body, headers in backend.posts:
        expected = hmac.new(KEY.secret.encode(), body, hashlib.sha256).hexdigest()
        assert headers[SIGNATURE_HEADER.lower()] == f"sha256={expected}"
        assert headers["content-type"] == "application/json"
        assert "authorization" not in headers
        assert KEY.secret not in str(headers)


@pytest.mark.parametrize("status", [302, 400, 404, 429, 500, 503])
def test_what_is_not_taken_is_posted_again_before_what_follows(
    backend: Backend, backend_url: str, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    backend.answer(status, status)
    run(backend_url, publishing("token.refused", "token.loaded"), until=lambda: backend.wait_for_posts(4))

    assert [event["type"] for event in backend.events] == ["token.refused"] * 3 + ["token.loaded"]
    assert len({body for body, _ in backend.posts[:3]}) == 1
    assert "given up" not in caplog.text


def test_an_event_is_given_up_after_so_many_tries_and_the_next_one_is_posted(
    backend: Backend, backend_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend.answer(500, 500, 500)
    run(backend_url, publishing("token.refused", "token.loaded"), until=lambda: backend.wait_for_posts(4))

    assert [event["type"] for event in backend.events] == ["token.refused"] * 3 + ["token.loaded"]
    assert caplog.text.count("given up") == 1


def test_the_key_is_read_anew_for_every_try_and_what_is_unsigned_is_warned_of_once(
    backend: Backend, backend_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = iter([None, None, KEY, None])
    backend.answer(500, 500)
    run(
        backend_url,
        publishing("token.refused", "token.loaded"),
        until=lambda: backend.wait_for_posts(4),
        key=lambda: next(keys),
    )

    signed = [SIGNATURE_HEADER.lower() in headers for _, headers in backend.posts]
    assert signed == [False, False, True, False]
    warnings = [record for record in caplog.records if "without a signature" in record.message]
    assert len(warnings) == 2
    assert KEY.secret not in caplog.text


def test_nobody_waits_for_a_silent_backend_and_what_is_lost_is_told(
    backend: Backend, backend_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend.silent = True
    took = 0.0

    async def scenario() -> None:
        nonlocal took
        log = EventLog(size=5)
        webhook = Webhook(backend_url, lambda: KEY, log, environ={}, pauses_seconds=())
        for number in range(-7, 0):
            log.publish("token.refused", number=number)
        webhook.start()
        await asyncio.to_thread(backend.wait_for_posts, 1)
        for number in range(100):
            log.publish("execution.finished", number=number)
        log.close()
        started = time.monotonic()
        await webhook.stop()
        took = time.monotonic() - started

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_SECONDS))

    assert took < LAST_SECONDS * 10
    assert [event["data"]["number"] for event in backend.events] == [-5]
    assert [f"posted: {count}" in caplog.text for count in (2, 100)] == [True, True]
    assert "not posted before the end: 5" in caplog.text


def test_the_oldest_are_lost_first(backend: Backend, backend_url: str, caplog: pytest.LogCaptureFixture) -> None:
    def happens(log: EventLog) -> None:
        for number in range(20):
            log.publish("execution.finished", number=number)

    run(backend_url, happens, kept=4)

    assert [event["data"]["number"] for event in backend.events] == [16, 17, 18, 19]
    assert "lost before they could be posted: 16" in caplog.text


def test_the_end_does_not_wait_for_a_long_pause_and_tries_each_once_more(
    backend: Backend, backend_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    backend.answer(500, 500)
    started = time.monotonic()
    run(
        backend_url,
        publishing("token.refused", "execution.finished"),
        until=lambda: eventually(lambda: "event not taken" in caplog.text),
        pauses_seconds=(3600.0, 3600.0),
    )

    assert time.monotonic() - started < DEADLINE_SECONDS
    assert [event["type"] for event in backend.events] == ["token.refused", "token.refused", "execution.finished"]
    assert caplog.text.count("given up") == 1


def test_a_backend_that_is_not_there_costs_nothing_but_the_events(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    webhook = run(f"http://127.0.0.1:{port}/hook-password", publishing("token.refused"))

    assert caplog.text.count("given up") == 1
    assert "hook-password" not in caplog.text + repr(webhook)


def test_what_happened_before_the_start_is_posted_too(backend: Backend, backend_url: str) -> None:
    async def scenario() -> None:
        log = published(1)
        webhook = Webhook(backend_url, lambda: KEY, log, environ={})
        log.publish("token.loaded", generation=1)
        webhook.start()
        log.close()
        await webhook.stop()

    asyncio.run(scenario())
    assert [event["type"] for event in backend.events] == ["token.loaded"]


def test_one_that_never_started_ends() -> None:
    asyncio.run(Webhook("https://backend.invalid", lambda: None, EventLog()).stop())


@pytest.mark.parametrize("url", ["", "backend:80", "unix:/run/hook", "ftp://backend", "http://:80"])
def test_an_address_that_is_none_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ValueError, match="http or https"):
        Webhook(url, lambda: None, EventLog())
