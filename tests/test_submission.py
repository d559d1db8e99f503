"""The client's decisions, without any network: what it asks, when it pauses, what it makes of what it hears."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from agent_runtime import client
from agent_runtime.client import (
    FAILURES,
    AuthFailed,
    Busy,
    Conflict,
    DeadlineExceeded,
    ExecutionFailed,
    Interrupted,
    NotFound,
    Problem,
    ProblemError,
    RateLimited,
    ResultNotKept,
    StreamEvent,
    UnexpectedAnswer,
    Unreachable,
)
from agent_runtime.client.calls import TaskFields
from agent_runtime.client.failures import failure
from agent_runtime.client.following import EventReader, Following
from agent_runtime.client.submission import HOLD_SECONDS, Order, result, submit
from agent_runtime.client.talk import Ask, NoReply, Patience, Pause, Reply, Talk
from agent_runtime.errors import STATUS_BY_CLASS, ErrorClass
from agent_runtime.task import Task

ID = "the-id"
BODY = b'{"message": "Do it."}'
SUCCESS = {"execution_id": ID, "status": "success", "response": "Done."}
CUT = NoReply("the connection broke (ReadError)")
REFUSED = NoReply("nobody listens there", was_sent=False)
POST, LOOK = "POST /api/task", f"GET /api/executions/{ID}/result"


class Clock:
    """Time that passes only when the client pauses, or a request takes its time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ok(content: dict[str, Any], status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(content).encode(), {name.replace("_", "-"): headers[name] for name in headers})


def problem(error_class: str, *, code: str | None = None, **headers: str) -> Reply:
    status = STATUS_BY_CLASS[ErrorClass(error_class)]
    return ok({"error_class": error_class, "status": status, "detail": "Sorry.", "code": code}, status, **headers)


def kept(at: str, error_class: str | None = None) -> Reply:
    answer = SUCCESS if error_class is None else {"error_class": error_class, "detail": "Sorry."}
    status = 200 if error_class is None else STATUS_BY_CLASS[ErrorClass(error_class)]
    return ok({"execution_id": ID, "status_code": status, "answer": answer, "retained_at": at})


RUNNING = ok({"execution_id": ID, "status": "accepted"}, 202)
UNKNOWN = problem("not_found")
NOT_KEPT = problem("not_found", code="no_retained_result")


class Played:
    """A call, played to its end against replies that were written before; the last one is repeated."""

    def __init__(
        self, *replies: Reply | NoReply, patience_seconds: float = 60.0, total_seconds: float = 3600.0
    ) -> None:
        self.clock = Clock()
        self.patience = Patience(self.clock, lambda: 1.0, patience_seconds, total_seconds)
        self.replies = list(replies)
        self.asked: list[str] = []
        self.asks: list[Ask] = []
        self.pauses: list[float] = []

    def play(self, talk: Talk[Any]) -> Any:
        heard: Reply | NoReply | None = None
        while True:
            try:
                step = talk.send(heard)
            except StopIteration as end:
                return end.value
            if isinstance(step, Pause):
                self.pauses.append(step.seconds)
                self.clock.now += step.seconds
                heard = None
            else:
                self.asks.append(step)
                self.asked.append(f"{step.method} {step.path}")
                heard = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def run(self, *, is_known: bool = False, waits: bool = True, max_resumes: int = 3) -> Any:
        order = Order(ID, BODY, is_known=is_known, waits=waits, max_resumes=max_resumes)
        return self.play(submit(order, self.patience))

    def result(self) -> Any:
        return self.play(result(ID, self.patience))


def test_a_task_that_nothing_happens_to_is_one_request() -> None:
    played = Played(ok(SUCCESS))

    answer = played.run()

    assert (answer.response, played.asked, played.pauses) == ("Done.", [POST], [])
    assert (played.asks[0].content, played.asks[0].reply_seconds) == (BODY, HOLD_SECONDS)


def test_a_cut_post_is_followed_up_by_its_id_and_never_posted_again_while_it_is_known() -> None:
    played = Played(CUT, RUNNING, CUT, RUNNING, kept("now"))

    assert played.run().response == "Done."
    assert played.asked == [POST, LOOK, LOOK, LOOK, LOOK]


def test_a_post_that_never_arrived_is_sent_again_with_the_same_body() -> None:
    played = Played(CUT, UNKNOWN, ok(SUCCESS))

    assert played.run().response == "Done."
    assert played.asked == [POST, LOOK, POST]
    assert played.asks[0].content == played.asks[2].content


def test_where_nobody_listens_nothing_can_have_arrived() -> None:
    played = Played(REFUSED, REFUSED, ok(SUCCESS))

    played.run()

    assert played.asked == [POST] * 3
    assert played.pauses == sorted(played.pauses)


def test_a_failure_found_after_a_cut_is_the_answer_and_starts_nothing() -> None:
    played = Played(CUT, kept("now", "auth"))

    with pytest.raises(AuthFailed, match="Sorry"):
        played.run()
    assert played.asked == [POST, LOOK]


def test_an_answer_that_was_kept_before_is_no_answer_to_this_post() -> None:
    played = Played(kept("before", "auth"), CUT, kept("before", "auth"), ok(SUCCESS))

    assert played.run(is_known=True).response == "Done."
    assert played.asked == [LOOK, POST, LOOK, POST]


def test_a_new_failure_under_an_old_id_is_told_from_the_old_one() -> None:
    played = Played(kept("before", "auth"), CUT, kept("after", "auth"))

    with pytest.raises(AuthFailed):
        played.run(is_known=True)
    assert played.asked == [LOOK, POST, LOOK]


@pytest.mark.parametrize("turned_away", ["busy", "draining"])
def test_who_is_turned_away_comes_back_when_told(turned_away: str) -> None:
    played = Played(problem(turned_away, retry_after="7"), ok(SUCCESS))

    assert played.run().response == "Done."
    assert played.asked == [POST, POST]
    assert played.pauses == [7.0]


def test_who_is_turned_away_for_too_long_is_told_why() -> None:
    played = Played(problem("busy", retry_after="25"), patience_seconds=60)

    with pytest.raises(Busy) as error:
        played.run()
    assert played.pauses == [25.0, 25.0, 10.0]
    assert error.value.retry_after_seconds == 25


def test_pauses_grow_up_to_a_bound_and_the_last_try_is_at_the_end() -> None:
    played = Played(REFUSED, patience_seconds=30)

    with pytest.raises(Unreachable, match="nobody listens") as error:
        played.run()
    assert played.pauses[:6] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
    assert max(played.pauses) == 5.0
    assert sum(played.pauses) == pytest.approx(30)
    assert error.value.execution_id == ID


def test_a_run_may_be_long_but_trouble_may_not() -> None:
    ups_and_downs: list[Reply | NoReply] = [RUNNING, CUT]
    played = Played(CUT, *ups_and_downs * 300, kept("now"), patience_seconds=5)

    assert played.run().response == "Done."
    assert sum(played.pauses) > 60


def test_the_deadline_of_the_caller_ends_the_call_and_names_the_execution() -> None:
    played = Played(CUT, RUNNING, total_seconds=20)

    with pytest.raises(DeadlineExceeded) as error:
        played.run()
    assert error.value.execution_id == ID
    assert sum(played.pauses) == pytest.approx(20)


def test_who_never_got_in_before_the_deadline_is_told_why_and_not_that_it_goes_on() -> None:
    with pytest.raises(Busy):
        Played(problem("busy"), total_seconds=1).run()
    with pytest.raises(Unreachable):
        Played(REFUSED, total_seconds=1).run()
    with pytest.raises(DeadlineExceeded):
        Played(REFUSED, CUT, REFUSED, total_seconds=1).run()
    with pytest.raises(DeadlineExceeded):
        Played(RUNNING, total_seconds=1).result()


def test_what_a_shutdown_interrupted_is_posted_again() -> None:
    played = Played(problem("interrupted"), CUT, kept("one", "interrupted"), problem("draining"), ok(SUCCESS))

    assert played.run().response == "Done."
    assert played.asked == [POST, LOOK, LOOK, POST, POST]


def test_what_a_restart_interrupted_is_posted_again_and_not_because_it_was_interrupted_before() -> None:
    played = Played(CUT, kept("one", "interrupted"), CUT, kept("one", "interrupted"), ok(SUCCESS))

    assert played.run(max_resumes=1).response == "Done."
    assert played.asked == [POST, LOOK, POST, LOOK, POST]


def test_what_the_supervisor_resumed_by_itself_is_only_waited_for() -> None:
    played = Played(problem("interrupted"), RUNNING, RUNNING, kept("now"))

    assert played.run().response == "Done."
    assert played.asked == [POST, LOOK, LOOK, LOOK]


@pytest.mark.parametrize("max_resumes", [0, 2])
def test_what_is_interrupted_again_and_again_is_given_up(max_resumes: int) -> None:
    replies = [reply for n in range(5) for reply in (problem("interrupted"), kept(str(n), "interrupted"))]
    played = Played(*replies)

    with pytest.raises(Interrupted):
        played.run(max_resumes=max_resumes)
    assert played.asked.count(POST) == max_resumes + 1


def test_an_execution_that_was_admitted_and_is_then_unknown_is_not_run_twice() -> None:
    played = Played(CUT, RUNNING, UNKNOWN)

    with pytest.raises(NotFound):
        played.run()
    assert played.asked == [POST, LOOK, LOOK]


def test_an_answer_that_is_not_kept_is_told_and_not_made_again() -> None:
    played = Played(CUT, NOT_KEPT)

    with pytest.raises(ResultNotKept):
        played.run()
    assert played.asked == [POST, LOOK]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_a_proxy_says_is_not_taken_for_the_supervisor(status: int) -> None:
    played = Played(Reply(status, b"<html>Oops</html>"), RUNNING, kept("now"))

    assert played.run().response == "Done."
    assert played.asked == [POST, LOOK, LOOK]


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"status": 1}', b"\xff", b'{"execution_id": null}'])
def test_an_answer_that_cannot_be_read_is_asked_for_again(garbage: bytes) -> None:
    played = Played(Reply(200, garbage), Reply(200, garbage), kept("now"))

    assert played.run().response == "Done."
    assert played.asked == [POST, LOOK, LOOK]


@pytest.mark.parametrize("status", [302, 400, 403, 418])
def test_somebody_else_is_not_asked_again(status: int) -> None:
    played = Played(Reply(status, b"no"))

    with pytest.raises(UnexpectedAnswer, match=str(status)):
        played.run()
    assert played.asked == [POST]


def test_other_work_under_the_id_is_told_at_once() -> None:
    with pytest.raises(Conflict):
        Played(UNKNOWN, problem("conflict")).run(is_known=True)


def test_only_to_be_admitted_is_over_with_the_first_sign_of_it() -> None:
    played = Played(CUT, RUNNING)

    assert played.run(waits=False) is None
    assert played.asked == [POST, LOOK]
    assert played.asks[0].headers["prefer"] == "respond-async"
    assert Played(CUT, kept("now", "timeout")).run(waits=False) is None
    with pytest.raises(AuthFailed):
        Played(problem("auth")).run(waits=False)


def test_a_result_is_waited_for_and_nothing_is_started() -> None:
    played = Played(RUNNING, CUT, RUNNING, kept("now"))

    assert played.result().response == "Done."
    assert set(played.asked) == {LOOK}
    with pytest.raises(NotFound):
        Played(UNKNOWN).result()
    with pytest.raises(RateLimited):
        Played(kept("now", "rate_limit")).result()


@pytest.mark.parametrize("error_class", ErrorClass)
def test_every_class_has_its_exception(error_class: ErrorClass) -> None:
    if error_class is ErrorClass.CANCELLED:  # a cancelled one is an answer
        assert str(error_class) not in FAILURES
        return
    error = failure(Problem(error_class=error_class, status=STATUS_BY_CLASS[error_class], detail="Sorry."), 3.0)

    assert type(error) is not ProblemError
    assert (error.error_class, error.status, str(error)) == (error_class, STATUS_BY_CLASS[error_class], "Sorry.")
    assert type(error).__name__ in client.__all__
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - written one line above
    assert (type(again), again.problem, again.retry_after_seconds) == (type(error), error.problem, 3.0)


def test_a_class_of_a_newer_supervisor_is_a_failure_with_its_problem() -> None:
    with pytest.raises(ExecutionFailed) as error:
        Played(ok({"error_class": "gremlins", "detail": 1, "status": "x", "metadata": {"a": 1}}, 500)).run()

    assert error.value.problem == Problem(error_class="gremlins", status=500, metadata={"a": 1})


def test_the_end_of_a_limit_is_an_instant() -> None:
    limited = failure(Problem(error_class="rate_limit", status=429, resets_at="2026-11-22T10:00:00Z"))
    unknown = failure(Problem(error_class="rate_limit", status=429))

    assert isinstance(limited, RateLimited)
    assert limited.resets_at is not None
    assert limited.resets_at.timestamp() == 1795341600
    assert isinstance(unknown, RateLimited)
    assert unknown.resets_at is None


def test_the_fields_of_a_task_are_all_offered() -> None:
    assert set(TaskFields.__annotations__) == set(Task.__struct_fields__) - {"message", "execution_id", "async_result"}


def test_nothing_of_a_task_shows_in_what_is_logged() -> None:
    order = Order(ID, b"the prompt", is_known=False)
    answer = Reply(200, b"the answer")

    assert "the prompt" not in repr((order, order.post(Played().patience)))
    assert "the answer" not in repr(answer)
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


def test_a_stream_that_is_cut_anywhere_brings_each_line_once() -> None:
    lines = [b'event: message\nid: %d\ndata: {"n": %d}\n\n' % (n, n) for n in range(1, 6)]
    for cut in range(len(b"".join(lines))):
        following = Following(ID, 0, Played().patience)
        following.connect()
        had = list(following.received(b"".join(lines)[:cut]))
        after = int(following.connect().headers.get("last-event-id", 0))
        had += following.received(b'event: state\ndata: {"state": "running"}\n\n' + b"".join(lines[after:]))
        assert [event.data["n"] for event in had if event.name == "message"] == [1, 2, 3, 4, 5]


def test_what_a_server_repeats_is_dropped_and_what_it_lost_is_told() -> None:
    following = Following(ID, 3, Played().patience)
    told = following.received(
        b'event: message\nid: 3\ndata: {"n": 3}\n\nevent: state\ndata: {"s": 1}\n\nevent: state\ndata: {"s": 1}\n\n'
        b'event: gap\nid: 5\ndata: {"first": 4, "last": 5}\n\nevent: message\nid: 6\ndata: {"n": 6}\n\n'
    )

    assert [(event.name, event.id) for event in told] == [("state", None), ("gap", 5), ("message", 6)]


def test_a_transcript_that_is_shorter_than_what_was_seen_goes_on_after_the_gap() -> None:
    following = Following(ID, 9, Played().patience)
    told = following.received(
        b'event: gap\ndata: {"first": 5, "last": 9}\n\nevent: message\nid: 5\ndata: {"new": true}\n\n'
    )

    assert [(event.name, event.id) for event in told] == [("gap", None), ("message", 5)]
    assert following.position == 5
