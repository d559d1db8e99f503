"""The client's decisions, without any network: what it asks, when it pauses, what it makes of what it hears."""

from __future__ import annotations

import asyncio
import json
import pickle
import selectors
import time
from typing import Any

import httpx
import pytest

from agent_runtime.client import (
    AgentClient,
    ApiFailed,
    ClientError,
    ExecutionFailed,
    Problem,
    RequestRefused,
    StreamEvent,
    TokenFailed,
    TurnedAway,
)
from agent_runtime.client.errors import FAMILIES, failure
from agent_runtime.client.sse import EventReader, StreamPosition
from agent_runtime.client.submit import HOLD_SECONDS
from agent_runtime.errors import ErrorClass
from agent_runtime.model.task import Task, TaskFields
from tests.support.supervised import fails

ID = "the-id"
SUCCESS = {"execution_id": ID, "status": "success", "response": "Done."}
CUT = httpx.ReadError("cut")
REFUSED = httpx.ConnectError("refused")
POST, LOOK = "POST /api/task", f"GET /api/executions/{ID}/result"

Heard = httpx.Response | httpx.RequestError


def ok(content: dict[str, Any], status: int = 200, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=content, headers={name.replace("_", "-"): headers[name] for name in headers})


def problem(error_class: str, *, code: str | None = None, **headers: str) -> httpx.Response:
    status = ErrorClass(error_class).status
    return ok({"error_class": error_class, "status": status, "detail": "Sorry.", "code": code}, status, **headers)


def kept(at: str, error_class: str | None = None) -> httpx.Response:
    answer = SUCCESS if error_class is None else {"error_class": error_class, "detail": "Sorry."}
    status = 200 if error_class is None else ErrorClass(error_class).status
    return ok({"execution_id": ID, "status_code": status, "answer": answer, "retained_at": at})


RUNNING = ok({"execution_id": ID, "status": "accepted"}, 202)
UNKNOWN = problem("not_found")
NOT_KEPT = problem("not_found", code="no_retained_result")


class Clock(selectors.DefaultSelector):
    """A selector that jumps over every wait instead of sleeping, and so makes the time of its event loop."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


def quick_loop() -> asyncio.AbstractEventLoop:
    clock = Clock()
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = lambda: clock.now  # type: ignore[method-assign]
    return loop


class Played(httpx.AsyncBaseTransport):
    """A call, played to its end against answers that were written before; the last one is repeated."""

    def __init__(
        self, *replies: Heard, patience_seconds: float = 60.0, total_seconds: float = 3600.0, max_resumes: int = 3
    ) -> None:
        self.patience_seconds = patience_seconds
        self.total_seconds = total_seconds
        self.max_resumes = max_resumes
        self.replies = list(replies)
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.times.append(asyncio.get_running_loop().time())
        heard = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(heard, httpx.RequestError):
            raise heard
        return httpx.Response(heard.status_code, content=heard.content, headers=heard.headers)

    @property
    def asked(self) -> list[str]:
        return [f"{request.method} {request.url.path}" for request in self.requests]

    @property
    def pauses(self) -> list[float]:
        """How long the client has waited between its requests, and before its end."""
        return [
            round(after - before, 3)
            for before, after in zip(self.times, self.times[1:], strict=False)
            if after > before
        ]

    def play(self, call: str, *given: Any, url: str = "http://agent", **named: Any) -> Any:
        async def use() -> Any:
            options: dict[str, Any] = {"patience_seconds": self.patience_seconds, "max_resumes": self.max_resumes}
            async with AgentClient(url, transport=self, **options) as client:
                try:
                    return await getattr(client, call)(*given, **named)
                finally:
                    self.times.append(asyncio.get_running_loop().time())

        with asyncio.Runner(loop_factory=quick_loop) as runner:
            return runner.run(use())

    def run(self, *, is_known: bool = False) -> Any:
        with pytest.MonkeyPatch.context() as patched:
            if not is_known:
                patched.setattr("uuid.uuid4", lambda: ID)
            name = ID if is_known else None
            return self.play("run", "Do it.", execution_id=name, deadline_seconds=self.total_seconds)

    def submit(self) -> Any:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("uuid.uuid4", lambda: ID)
            return self.play("submit", "Do it.")

    def result(self) -> Any:
        return self.play("result", ID, deadline_seconds=self.total_seconds)


@pytest.fixture(autouse=True)
def longest_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 1.0)


def test_a_task_that_nothing_happens_to_is_one_request() -> None:
    played = Played(ok(SUCCESS))

    answer = played.run()

    assert (answer.response, played.asked, played.pauses) == ("Done.", [POST], [])
    body = json.loads(played.requests[0].content)
    assert (body, played.requests[0].extensions["timeout"]["read"]) == (
        {"message": "Do it.", "execution_id": ID},
        HOLD_SECONDS,
    )


def test_a_cut_post_is_followed_up_by_its_id_and_never_posted_again_while_it_is_known() -> None:
    played = Played(CUT, RUNNING, CUT, RUNNING, kept("now"))

    assert played.run().response == "Done."
    assert played.asked == [POST, LOOK, LOOK, LOOK, LOOK]


def test_a_post_that_never_arrived_is_sent_again_with_the_same_body() -> None:
    played = Played(CUT, UNKNOWN, ok(SUCCESS))

    assert played.run().response == "Done."
    assert played.asked == [POST, LOOK, POST]
    assert played.requests[0].content == played.requests[2].content


def test_where_nobody_listens_nothing_can_have_arrived() -> None:
    played = Played(REFUSED, REFUSED, ok(SUCCESS))

    played.run()

    assert played.asked == [POST] * 3
    assert played.pauses == sorted(played.pauses)


def test_a_failure_found_after_a_cut_is_the_answer_and_starts_nothing() -> None:
    played = Played(CUT, kept("now", "auth"))

    with fails("auth", match="Sorry"):
        played.run()
    assert played.asked == [POST, LOOK]


def test_an_answer_that_was_kept_before_is_no_answer_to_this_post() -> None:
    played = Played(kept("before", "auth"), CUT, kept("before", "auth"), ok(SUCCESS))

    assert played.run(is_known=True).response == "Done."
    assert played.asked == [LOOK, POST, LOOK, POST]


def test_a_new_failure_under_an_old_id_is_told_from_the_old_one() -> None:
    played = Played(kept("before", "auth"), CUT, kept("after", "auth"))

    with fails("auth"):
        played.run(is_known=True)
    assert played.asked == [LOOK, POST, LOOK]


@pytest.mark.parametrize("turned_away", ["busy", "draining"])
def test_a_client_that_is_turned_away_comes_back_when_told(turned_away: str) -> None:
    played = Played(problem(turned_away, retry_after="7"), ok(SUCCESS))

    assert played.run().response == "Done."
    assert played.asked == [POST, POST]
    assert played.pauses == [7.0]


def test_a_client_that_is_turned_away_for_too_long_is_told_why() -> None:
    played = Played(problem("busy", retry_after="25"), patience_seconds=60)

    with fails("busy") as error:
        played.run()
    assert played.pauses == [25.0, 25.0, 10.0]
    assert error.value.retry_after_seconds == 25


def test_pauses_grow_up_to_a_bound_and_the_last_try_is_at_the_end() -> None:
    played = Played(REFUSED, patience_seconds=30)

    with fails("unreachable", match="the connection broke") as error:
        played.run()
    assert played.pauses[:6] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
    assert max(played.pauses) == 5.0
    assert sum(played.pauses) == pytest.approx(30)
    assert error.value.execution_id == ID


def test_a_run_may_be_long_but_trouble_may_not() -> None:
    ups_and_downs: list[Heard] = [RUNNING, CUT]
    played = Played(CUT, *ups_and_downs * 300, kept("now"), patience_seconds=5)

    assert played.run().response == "Done."
    assert sum(played.pauses) > 60


def test_the_deadline_of_the_caller_ends_the_call_and_names_the_execution() -> None:
    played = Played(CUT, RUNNING, total_seconds=20)

    with fails("deadline") as error:
        played.run()
    assert error.value.execution_id == ID
    assert sum(played.pauses) == pytest.approx(20)


def test_a_client_that_was_never_admitted_before_the_deadline_is_told_why_and_not_that_it_goes_on() -> None:
    with fails("busy"):
        Played(problem("busy"), total_seconds=1).run()
    with fails("unreachable"):
        Played(REFUSED, total_seconds=1).run()
    with fails("deadline"):
        Played(REFUSED, CUT, REFUSED, total_seconds=1).run()
    with fails("deadline"):
        Played(RUNNING, total_seconds=1).result()


def test_what_a_shutdown_interrupted_is_posted_again() -> None:
    played = Played(problem("interrupted"), CUT, kept("one", "interrupted"), problem("draining"), ok(SUCCESS))

    assert played.run().response == "Done."
    assert played.asked == [POST, LOOK, LOOK, POST, POST]


def test_what_a_restart_interrupted_is_posted_again_and_not_because_it_was_interrupted_before() -> None:
    played = Played(CUT, kept("one", "interrupted"), CUT, kept("one", "interrupted"), ok(SUCCESS), max_resumes=1)

    assert played.run().response == "Done."
    assert played.asked == [POST, LOOK, POST, LOOK, POST]


def test_what_the_supervisor_resumed_by_itself_is_only_waited_for() -> None:
    played = Played(problem("interrupted"), RUNNING, RUNNING, kept("now"))

    assert played.run().response == "Done."
    assert played.asked == [POST, LOOK, LOOK, LOOK]


@pytest.mark.parametrize("max_resumes", [0, 2])
def test_what_is_interrupted_again_and_again_is_given_up(max_resumes: int) -> None:
    replies = [reply for n in range(5) for reply in (problem("interrupted"), kept(str(n), "interrupted"))]
    played = Played(*replies, max_resumes=max_resumes)

    with fails("interrupted"):
        played.run()
    assert played.asked.count(POST) == max_resumes + 1


@pytest.mark.parametrize(
    ("value", "pause"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("99999999999", 3600.0),
        ("-1", 0.1),
        ("1e9", 0.1),
        ("Fri, 31 Dec 2027 23:59:59 GMT", 0.1),
    ],
)
def test_retry_after_counts_where_it_is_a_number_of_seconds(value: str, pause: float) -> None:
    played = Played(problem("draining", retry_after=value), ok(SUCCESS), patience_seconds=9999, total_seconds=9999)

    played.run()

    assert played.pauses == [pause]


def test_records_that_cannot_be_read_for_now_are_asked_for_again_and_cost_no_second_execution() -> None:
    post = ok({"error_class": "storage", "detail": "Sorry."}, 409, retry_after="1")
    look = ok({"error_class": "storage", "detail": "Sorry."}, 500)
    played = Played(post, CUT, look, look, RUNNING, look, kept("now"))

    assert played.run().response == "Done."
    assert played.asked == [POST, POST, *[LOOK] * 5]
    with fails("storage") as error:
        Played(look).result()
    assert isinstance(error.value, TurnedAway)


def test_an_execution_that_was_admitted_and_is_then_unknown_is_not_run_twice() -> None:
    played = Played(CUT, RUNNING, UNKNOWN)

    with fails("not_found"):
        played.run()
    assert played.asked == [POST, LOOK, LOOK]


def test_an_answer_that_is_not_kept_is_told_and_not_made_again() -> None:
    played = Played(CUT, NOT_KEPT)

    with fails("not_found"):
        played.run()
    assert played.asked == [POST, LOOK]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_a_proxy_says_is_not_taken_for_the_supervisor(status: int) -> None:
    played = Played(httpx.Response(status, content=b"<html>Oops</html>"), RUNNING, kept("now"))

    assert played.run().response == "Done."
    assert played.asked == [POST, LOOK, LOOK]


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"status": 1}', b"\xff", b'{"execution_id": null}'])
def test_an_answer_that_cannot_be_read_is_asked_for_again(garbage: bytes) -> None:
    played = Played(httpx.Response(200, content=garbage), httpx.Response(200, content=garbage), kept("now"))

    assert played.run().response == "Done."
    assert played.asked == [POST, LOOK, LOOK]


@pytest.mark.parametrize("status", [302, 400, 403, 418])
def test_a_server_that_is_no_supervisor_is_not_asked_again(status: int) -> None:
    played = Played(httpx.Response(status, content=b"no"))

    with fails("unexpected", match=str(status)):
        played.run()
    assert played.asked == [POST]


def test_other_work_under_the_id_is_told_at_once() -> None:
    with fails("conflict"):
        Played(UNKNOWN, problem("conflict")).run(is_known=True)


def test_only_to_be_admitted_is_over_with_the_first_sign_of_it() -> None:
    played = Played(CUT, RUNNING)

    assert played.submit() == ID
    assert played.asked == [POST, LOOK]
    assert played.requests[0].headers["prefer"] == "respond-async"
    assert Played(CUT, kept("now", "timeout")).submit() == ID
    with fails("auth"):
        Played(problem("auth")).submit()


def test_a_result_is_waited_for_and_nothing_is_started() -> None:
    played = Played(RUNNING, CUT, RUNNING, kept("now"))

    assert played.result().response == "Done."
    assert set(played.asked) == {LOOK}
    with fails("not_found"):
        Played(UNKNOWN).result()
    with fails("rate_limit"):
        Played(kept("now", "rate_limit")).result()


FAMILY_OF = {
    TokenFailed: {"auth", "billing", "rate_limit", "no_token"},
    TurnedAway: {"busy", "draining", "storage"},
    ApiFailed: {"overloaded", "upstream", "network"},
    RequestRefused: {
        "invalid_request",
        "model",
        "access",
        "not_found",
        "method",
        "too_large",
        "conflict",
        "not_writable",
    },
}


@pytest.mark.parametrize("error_class", [each for each in ErrorClass if each is not ErrorClass.CANCELLED])
def test_every_class_has_its_family(error_class: ErrorClass) -> None:
    error = failure(Problem(error_class=error_class, status=error_class.status, detail="Sorry."), 3.0)

    assert error_class in FAMILIES  # no guess by the status
    family = next((family for family, classes in FAMILY_OF.items() if error_class in classes), ExecutionFailed)
    assert type(error) is family
    assert (error.error_class, error.status, str(error)) == (error_class, error_class.status, "Sorry.")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - written one line above
    assert (type(again), again.problem, again.retry_after_seconds) == (type(error), error.problem, 3.0)


@pytest.mark.parametrize(
    ("status", "retry_after", "family"),
    [
        (400, None, RequestRefused),
        (404, None, RequestRefused),
        (409, None, RequestRefused),
        (409, 5.0, TurnedAway),
        (413, None, RequestRefused),
        (422, None, ExecutionFailed),
        (429, 60.0, TokenFailed),
        (500, None, ExecutionFailed),
        (502, 5.0, ApiFailed),
        (503, None, TokenFailed),
        (504, None, ExecutionFailed),
    ],
)
def test_a_class_of_a_newer_supervisor_falls_into_a_family_by_its_status(
    status: int, retry_after: float | None, family: type[ClientError]
) -> None:
    error = failure(Problem(error_class="gremlins", status=status), retry_after)

    assert (type(error), error.error_class, str(error)) == (family, "gremlins", "gremlins")


def test_a_class_of_a_newer_supervisor_is_a_failure_with_its_problem() -> None:
    with fails("gremlins") as error:
        Played(ok({"error_class": "gremlins", "detail": 1, "status": "x", "metadata": {"a": 1}}, 500)).run()

    assert error.value.problem == Problem(error_class="gremlins", status=500, metadata={"a": 1})


@pytest.mark.parametrize("detail", [{"message": "Sorry.", "error_code": "timeout", "execution_log": []}, "Sorry."])
def test_the_sentence_of_an_error_is_read_in_both_forms(detail: object) -> None:
    answer = {"error_class": "timeout", "title": "Timed out", "detail": detail, "metadata": {"cost_usd": 1.5}}
    for played in (
        Played(ok(answer, 504)),
        Played(CUT, ok({"execution_id": ID, "status_code": 504, "answer": answer, "retained_at": "now"})),
    ):
        with fails("timeout", match="^Sorry.$") as error:
            played.run()
        assert (error.value.status, error.value.problem.metadata) == (504, {"cost_usd": 1.5})


@pytest.mark.parametrize("detail", [{}, {"message": 5}, {"message": None}, [], 5])
def test_an_error_without_a_sentence_says_its_title(detail: object) -> None:
    with fails("timeout", match="^Timed out$"):
        Played(ok({"error_class": "timeout", "title": "Timed out", "detail": detail}, 504)).run()


@pytest.mark.parametrize("name", ["a/b", "a?b", "a#b", "a%2Fb", "-a", "a b", "\N{SNOWMAN}"])
def test_an_id_is_one_part_of_a_path(name: str) -> None:
    played = Played(kept("now"))

    played.play("result", name)

    parts = played.requests[0].url.raw_path.split(b"/")
    assert (len(parts), parts[1:3], parts[4]) == (5, [b"api", b"executions"], b"result")


@pytest.mark.parametrize("url", ["http://agent/behind/a/proxy", "http://agent/behind/a/proxy/"])
def test_a_supervisor_may_lie_below_a_path(url: str) -> None:
    played = Played(ok({"state": "ready"}))
    played.play("token", url=url)

    assert str(played.requests[0].url) == "http://agent/behind/a/proxy/api/token"


def test_the_end_of_a_limit_is_an_instant() -> None:
    limited = failure(Problem(error_class="rate_limit", status=429, resets_at="2026-11-22T10:00:00Z"))
    unknown = failure(Problem(error_class="rate_limit", status=429))

    assert limited.resets_at is not None
    assert limited.resets_at.timestamp() == 1795341600
    assert unknown.resets_at is None


def test_the_fields_of_a_task_are_all_offered() -> None:
    assert set(TaskFields.__annotations__) == set(Task.__struct_fields__) - {"message", "execution_id", "async_result"}


def test_nothing_of_an_answer_shows_in_what_is_logged() -> None:
    answer = Played(ok({**SUCCESS, "execution_log": [{"text": "of the log"}]})).run()

    assert "of the log" not in repr(answer)
    assert "the answer" not in repr(StreamEvent("message", {"text": "the answer"}))


STREAM = (
    b': events\r\n\r\nevent: state\r\ndata: {"state": "running"}\n\n'
    b'event: message\nid: 1\ndata: {"n": "\xc3\xa4"}\n\n'
    b'id: 2\nevent: message\ndata: {"n":\ndata: 2}\n\n: keep-alive\n\n'
    b'event: end\rdata: {"type": "stream_end"}\r\r'
)


def test_events_may_be_cut_anywhere() -> None:
    whole = list(EventReader().feed(STREAM))
    assert [(name, number) for name, number, _ in whole] == [
        ("state", None),
        ("message", "1"),
        ("message", "2"),
        ("end", None),
    ]

    for cut in range(len(STREAM) + 1):
        reader = EventReader()
        assert [*reader.feed(STREAM[:cut]), *reader.feed(STREAM[cut:])] == whole
    reader = EventReader()
    assert [event for n in range(len(STREAM)) for event in reader.feed(STREAM[n : n + 1])] == whole


@pytest.mark.parametrize("between", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_what_ends_a_line_elsewhere_ends_none_of_a_stream(between: str) -> None:
    text = f"one{between}line"
    data = f"event: message\nid: 1\ndata: {text}\n\n".encode()

    assert list(EventReader().feed(data)) == [("message", "1", text.encode())]


def test_a_long_line_that_comes_in_many_chunks_takes_time_in_proportion() -> None:
    chunks, reader, began = 8192, EventReader(), time.process_time()
    for chunk in (b"data: ", *[b"x" * 4096] * chunks):
        assert list(reader.feed(chunk)) == []
    [(_, _, data)] = reader.feed(b"\n\n")

    assert len(data) == chunks * 4096
    assert time.process_time() - began < 2


def test_a_stream_that_is_cut_anywhere_brings_each_line_once() -> None:
    lines = [b'event: message\nid: %d\ndata: {"n": %d}\n\n' % (n, n) for n in range(1, 6)]
    for cut in range(len(b"".join(lines))):
        stream = StreamPosition(0)
        stream.reconnect()
        had = list(stream.feed(b"".join(lines)[:cut]))
        after = int(stream.reconnect().get("last-event-id", 0))
        had += stream.feed(b'event: state\ndata: {"state": "running"}\n\n' + b"".join(lines[after:]))
        assert [event.data["n"] for event in had if event.name == "message"] == [1, 2, 3, 4, 5]


def test_what_a_server_repeats_is_dropped_and_what_it_lost_is_told() -> None:
    stream = StreamPosition(3)
    told = stream.feed(
        b'event: message\nid: 3\ndata: {"n": 3}\n\nevent: state\ndata: {"s": 1}\n\nevent: state\ndata: {"s": 1}\n\n'
        b'event: gap\nid: 5\ndata: {"first": 4, "last": 5}\n\nevent: message\nid: 6\ndata: {"n": 6}\n\n'
    )

    assert [(event.name, event.id) for event in told] == [("state", None), ("gap", 5), ("message", 6)]


def test_a_transcript_that_is_shorter_than_what_was_seen_goes_on_after_the_gap() -> None:
    stream = StreamPosition(9)
    told = stream.feed(b'event: gap\ndata: {"first": 5, "last": 9}\n\nevent: message\nid: 5\ndata: {"new": true}\n\n')

    assert [(event.name, event.id) for event in told] == [("gap", None), ("message", 5)]
    assert stream.position == 5
