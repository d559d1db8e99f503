"""
A switch of the token loses nothing: real supervisors, the scripted CLI, an API that is told what it thinks of tokens.

Work is counted by tool calls that have run to their end. One that was cut short by the stop is answered as interrupted
in the resumed session by newer versions; Claude Code up to 2.1.114 runs it again (measured on the real ones).
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.model.tokens import Token
from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, UsageLimit
from tests.support.supervised import (
    NEW,
    OLD,
    SCRIPTED,
    SUPERVISOR_WITH,
    Supervised,
    eventually,
    marked_processes,
    supervised,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROMPT = "[[script:work]] Do it."
PLAIN = "Say hello."
WAITING = ("--park", "600")
ANSWERED_WITHIN_SECONDS = 20.0
"""Ten times what is asked of an answer that needs no work."""


class Work:
    """
    A task with a tool in the middle that says it runs, waits to be let go, and then counts as done.

    Args:
        after: What the API says once the tool has run.
    """

    def __init__(self, api: MessagesApi, directory: Path, name: str = "work", *after: Any) -> None:
        self._began, self._done, self._go = (directory / f"{name}.{what}" for what in ("began", "done", "go"))
        waiting = f"until test -e {self._go}; do sleep 0.02; done"
        command = f"echo x >>{self._began}; {waiting}; echo x >>{self._done}"
        api.script(name, Tool(command=command), *(after or (Text(text="finished"),)))

    def wait_until_under_way(self, count: int = 1) -> None:
        """Wait until so many tools run."""
        eventually(lambda: self._count(self._began) >= count)

    def let_go(self) -> None:
        """Let the tools end, and the executions ask the API again."""
        self._go.touch()

    @property
    def done(self) -> int:
        """How many tool calls have run to their end."""
        return self._count(self._done)

    @staticmethod
    def _count(path: Path) -> int:
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def work(api: MessagesApi, tmp_path: Path) -> Work:
    return Work(api, tmp_path)


@contextlib.contextmanager
def switching(home: Path, *, delivery: str = "env", flags: tuple[str, ...] = (), **more: Any) -> Iterator[Supervised]:
    """Run a supervisor whose delivery is known: what ``auto`` chooses depends on what has been proved so far."""
    with supervised(home, flags=("--token-delivery", delivery, *flags), **more) as running:
        if delivery == "file":
            eventually(lambda: "; this CLI takes a newer token" in running.get("/health")["delivery"]["reason"], 90)
        yield running


def told(running: Supervised, *, finished: int, refused: int = 0) -> list[dict[str, Any]]:
    """
    Read the events until so many executions have finished and so many tokens were refused.

    A refusal is verified beside the work: where that went on, it may have finished before.
    """
    found: list[dict[str, Any]] = []
    with running.client.stream("GET", "/api/events", headers={"Last-Event-ID": "0"}) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line.removeprefix("data: ")))
                kinds = [event["type"] for event in found]
                if kinds.count("execution.finished") >= finished and kinds.count("token.refused") >= refused:
                    return found
    raise AssertionError("the stream ended early")


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event["data"] for event in events if event["type"] == kind]


def state(running: Supervised, execution_id: str) -> str:
    response = running.client.get(f"/api/executions/{execution_id}")
    return str(response.json()["state"]) if response.is_success else ""


def states(running: Supervised, ids: list[str]) -> list[str]:
    return [state(running, execution_id) for execution_id in ids]


def token(running: Supervised) -> dict[str, Any]:
    found: dict[str, Any] = running.get("/api/token")
    return found


def generations(running: Supervised, execution_id: str) -> list[list[int]]:
    """Tell which generations each attempt was given."""
    attempts = running.record(execution_id)["attempts"]
    return [[given["generation"] for given in attempt["tokens"]] for attempt in attempts]


# One answer out of two attempts.


@pytest.mark.slow
def test_work_that_met_a_dead_token_goes_on_in_its_session_on_the_one_written_after(
    tmp_path: Path, api: MessagesApi, url: str, work: Work
) -> None:
    with switching(tmp_path, api_url=url) as running:
        pending = running.start(PROMPT, execution_id="work", park_seconds=60)
        work.wait_until_under_way()
        api.on(OLD, "expired")
        work.let_go()
        eventually(lambda: state(running, "work") == "parked")
        assert marked_processes("work") == []
        running.write_token(NEW)
        response = pending.answer()
        record = running.record("work")
        events = told(running, finished=1)

    answer = response.json()
    assert (response.status_code, answer["response"]) == (200, "finished")
    assert work.done == 1, "what was done is not done again"
    first, second = record["attempts"]
    assert (first["stop_reason"], second["stop_reason"]) == ("refused", None)
    assert first["evidence"]["rule"]
    assert second["evidence"] is None
    assert [given["generation"] for given in first["tokens"] + second["tokens"]] == [1, 2]
    assert first["pid"] != second["pid"]
    log = answer["execution_log"]
    assert {frame["session_id"] for frame in log if "session_id" in frame} == {answer["session_id"]}
    assert [frame["subtype"] for frame in log if frame["type"] == "system"].count("init") == 2
    metadata, results = answer["metadata"], [frame for frame in log if frame["type"] == "result"]
    assert (metadata["attempts"], metadata["resumes"], metadata["tool_count"]) == (2, 1, 1)
    assert metadata["token_generation"] == 2
    # One that is stopped while it prints has no last word; what it cost is then not known, and the rest still adds up.
    assert metadata["num_turns"] >= sum(result["num_turns"] for result in results)
    assert metadata["cost_usd"] == pytest.approx(sum(result["total_cost_usd"] for result in results))
    assert metadata["cost_usd"] >= results[-1]["total_cost_usd"] > 0
    for kind in ("input_tokens", "output_tokens"):
        handed_out = sum(request.usage[kind] for request in api.requests)
        assert metadata[kind] == handed_out > 0, "two requests were answered, one in each attempt"
    kinds = [event["type"] for event in events]
    course = ["token.refused", "execution.parked", "execution.resumed", "execution.finished"]
    assert [kind for kind in kinds if kind in course] == course
    assert Token(OLD).fingerprint in json.dumps(events)
    assert not any(secret in json.dumps(events) for secret in (OLD, NEW))


@pytest.mark.slow
def test_what_has_no_progress_yet_is_begun_again(tmp_path: Path, api: MessagesApi, url: str) -> None:
    api.on(OLD, "expired")
    with switching(tmp_path, api_url=url) as running:
        pending = running.start(PLAIN, execution_id="new", park_seconds=60)
        eventually(lambda: state(running, "new") == "parked")
        running.write_token(NEW)
        answer = pending.answer().json()

    assert answer["status"] == "success"
    sessions = [frame["session_id"] for frame in answer["execution_log"] if frame.get("subtype") == "init"]
    assert len(set(sessions)) == 2
    assert answer["session_id"] == sessions[-1]


@pytest.mark.slow
@pytest.mark.parametrize("had_tool", [False, True])
def test_a_session_that_the_cli_did_not_keep_is_begun_again_or_honestly_given_up(
    tmp_path: Path, url: str, had_tool: bool
) -> None:
    said = {"do": "tool", "command": "true"} if had_tool else {"do": "assistant", "text": "Hello."}
    steps = [{"do": "init"}, said, {"do": "api_error", "status": 401}, {"do": "hang"}]
    with switching(tmp_path, api_url=url, environment={"AGENT_RUNTIME_PROBE": "on_refusal"}) as running:
        pending = running.start({"keep_session": False, "script": steps}, execution_id="lost", timeout_seconds=60)
        response = pending.answer()
        attempts = running.record("lost")["attempts"]

    problem = response.json()
    if had_tool:
        assert (response.status_code, problem["error_class"]) == (500, "error")
        assert "no conversation found" in problem["detail"]
        assert len(attempts) == 4, "begun anew once, which runs the tool once more"
    else:
        assert (response.status_code, problem["error_class"]) == (502, "upstream"), "good by the probe, refused again"
        assert len(attempts) > 2


@pytest.mark.slow
def test_a_newer_token_that_is_loaded_already_is_gone_on_with_at_once_and_is_not_refused(
    tmp_path: Path, api: MessagesApi, url: str, work: Work
) -> None:
    """S17: the failure of generation 1 arrives after generation 2 was loaded."""
    with switching(tmp_path, api_url=url) as running:
        pending = running.start(PROMPT, execution_id="work")
        work.wait_until_under_way()
        running.write_token(NEW)
        eventually(lambda: token(running)["generation"] == 2)
        api.on(OLD, "expired")
        work.let_go()
        answer = pending.answer().json()
        eventually(lambda: token(running)["last_refused_generation"] == 1)

        assert answer["status"] == "success"
        assert generations(running, "work") == [[1], [2]]
        assert (token(running)["state"], running.post(PLAIN).status_code) == ("ready", 200)
        events = told(running, finished=2, refused=1)

    assert of(events, "execution.parked") == []
    assert [event["generation"] for event in of(events, "token.refused")] == [1]
    assert work.done == 1


# Parked.


@pytest.mark.slow
def test_by_default_the_first_answers_and_the_others_park_without_a_slot_until_the_file_changes(
    tmp_path: Path, api: MessagesApi, url: str, work: Work
) -> None:
    ids = [f"work-{n}" for n in range(3)]
    with switching(tmp_path, api_url=url, flags=("--slots", "3", "--queue", "0")) as running:
        pending = {name: running.start(PROMPT, execution_id=name) for name in ids}
        work.wait_until_under_way(3)
        api.on(OLD, "expired")
        work.let_go()
        eventually(lambda: sorted(states(running, ids)) == ["finished", "parked", "parked"])
        [first] = [name for name in ids if state(running, name) == "finished"]
        parked = [name for name in ids if name != first]
        listed, health = running.get("/api/executions/running"), running.get("/health")
        turned_away = running.post(PLAIN)

        running.write_token(NEW)
        answers = {name: one.answer() for name, one in pending.items()}

        assert listed["executions"] == []
        assert sorted(listed["pending_ids"]) == parked
        assert health["slots"]["busy"] == health["queue"]["length"] == 0
        assert (turned_away.status_code, turned_away.json()["error_class"]) == (503, "auth")
        assert (answers[first].status_code, answers[first].json()["error_class"]) == (503, "auth")
        assert [answers[name].json()["response"] for name in parked] == ["finished", "finished"]
        assert [event["execution_id"] for event in of(told(running, finished=3), "execution.parked")] == unordered(
            parked
        )

        again = running.post(PROMPT, execution_id=first)
        assert again.json()["response"] == "finished"
        assert again.json()["session_id"] == running.record(first)["session_id"]
        assert generations(running, first) == [[1], [2]]
    assert work.done == 3, "nothing was done twice, by the one that was posted again neither"


class unordered:  # noqa: N801 - reads as a word in an assertion
    """Equal to a list of the same things in any order."""

    def __init__(self, things: list[Any]) -> None:
        self._things = things

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list) and sorted(other) == sorted(self._things)

    __hash__ = None  # type: ignore[assignment]  # equal to many

    def __repr__(self) -> str:
        return f"unordered({self._things})"


@pytest.mark.slow
def test_a_parked_one_can_be_ended_by_its_caller_its_timeout_and_a_drain(
    tmp_path: Path, api: MessagesApi, url: str
) -> None:
    api.on(OLD, "expired")
    flags = (*WAITING, "--drain-timeout", "0.5", "--stop-grace", "0.3")
    with switching(tmp_path, api_url=url, flags=flags) as running:
        first = running.start(PLAIN, execution_id="cancelled")
        eventually(lambda: state(running, "cancelled") == "parked")
        terminated = running.client.post("/api/executions/cancelled/terminate").json()
        late = running.post(PLAIN, execution_id="late", park_seconds=600, timeout_seconds=0.3)
        last = running.start(PLAIN, execution_id="last", park_seconds=600)
        eventually(lambda: state(running, "last") == "parked")
        running.process.send_signal(signal.SIGTERM)
        interrupted = last.answer()

        assert terminated["status"] == "terminated"
        assert first.answer().json()["status"] == "cancelled"
        assert (late.status_code, late.json()["error_class"]) == (504, "timeout")
        assert (interrupted.status_code, interrupted.json()["error_class"]) == (500, "interrupted")
        assert running.process.wait(30) == 0


@pytest.mark.slow
def test_at_admission_a_refused_token_is_answered_at_once_unless_the_request_will_wait(
    tmp_path: Path, api: MessagesApi, url: str
) -> None:
    api.on(OLD, "expired")
    with switching(tmp_path, api_url=url, flags=("--slots", "1", "--queue", "0")) as running:
        running.post(PLAIN, execution_id="first")
        asked = api.seen(OLD).requests
        begun = time.monotonic()
        assert [running.post(PLAIN, execution_id="none").status_code for _ in range(20)] == [503] * 20
        assert time.monotonic() - begun < ANSWERED_WITHIN_SECONDS
        assert running.client.get("/api/executions/none").status_code == 404, "it was never admitted"

        pending = [running.start(PLAIN, execution_id=f"waits-{n}", park_seconds=60) for n in range(3)]
        ids = [f"waits-{n}" for n in range(3)]
        eventually(lambda: states(running, ids) == ["parked"] * 3)
        assert api.seen(OLD).requests == asked, "nothing was spawned or asked"
        running.write_token(NEW)

        assert [one.answer().status_code for one in pending] == [200] * 3
        assert [generations(running, name) for name in ids] == [[[2]]] * 3


# Bursts.


def test_a_burst_of_refusals_is_one_refusal_and_all_but_the_one_that_answered_go_on(
    tmp_path: Path, api: MessagesApi, url: str, work: Work
) -> None:
    """A8: all slots fail within 10 ms."""
    ids = [f"work-{n}" for n in range(4)]
    with switching(tmp_path, api_url=url) as running:
        pending = [running.start(PROMPT, execution_id=name) for name in ids]
        work.wait_until_under_way(4)
        api.on(OLD, "expired")
        work.let_go()
        eventually(lambda: states(running, ids).count("parked") == 3)
        running.write_token(NEW)
        statuses = sorted(one.answer().status_code for one in pending)
        records = [running.record(name) for name in ids]
        events = told(running, finished=4)

    assert statuses == [200, 200, 200, 503]
    assert [event["generation"] for event in of(events, "token.refused")] == [1]
    assert [record["attempts"][0]["stop_reason"] for record in records] == ["refused"] * 4
    assert work.done == 4


@pytest.mark.slow
def test_a_burst_at_the_usage_limit_is_one_429_and_one_event_and_the_first_one_continues_when_posted_again(
    tmp_path: Path, api: MessagesApi, url: str, work: Work
) -> None:
    ids = [f"work-{n}" for n in range(4)]
    with switching(tmp_path, api_url=url) as running:
        pending = {name: running.start(PROMPT, execution_id=name) for name in ids}
        work.wait_until_under_way(4)
        api.on(OLD, "usage_limit")
        work.let_go()
        eventually(lambda: states(running, ids).count("parked") == 3)
        limited = token(running)
        running.write_token(NEW)
        answers = {name: one.answer() for name, one in pending.items()}
        [first] = [name for name in ids if answers[name].status_code != 200]
        events = told(running, finished=4)
        before = running.record(first)
        again = running.post(PROMPT, execution_id=first)
        after = running.record(first)

    met = answers[first]
    assert (met.status_code, met.json()["error_class"]) == (429, "rate_limit")
    assert 3000 < int(met.headers["retry-after"]) <= 3600
    # Each of the four was told an hour from then, and the second may have changed in between.
    told_at = [datetime.fromisoformat(text) for text in (met.json()["resets_at"], limited["limited_until"])]
    assert abs((told_at[0] - told_at[1]).total_seconds()) <= 10
    assert (limited["state"], limited["limit_type"]) == ("limited", "five_hour")
    assert len(of(events, "token.limited")) == 1
    assert of(events, "token.refused") == []
    assert again.json()["response"] == "finished"
    assert len(before["attempts"]) == 2, "a tool had run before it was met, so it had to be met again to be believed"
    assert (after["session_id"], len(after["attempts"])) == (before["session_id"], 3)
    assert work.done == 4


@pytest.mark.slow
def test_a_limit_of_one_model_closes_for_that_model_only(tmp_path: Path, api: MessagesApi, url: str) -> None:
    api.script("opus", UsageLimit(claim="seven_day_opus"))
    with switching(tmp_path, api_url=url) as running:
        met = running.post("[[script:opus]] Do it.", model="claude-opus-4-1")
        closed = running.post(PLAIN, model="claude-opus-4-1")
        other = running.post(PLAIN, model="claude-sonnet-4-5")

        assert [met.status_code, closed.status_code, other.status_code] == [429, 429, 200]
        assert token(running)["limit_model"] == "opus"
        assert running.client.get("/readyz").status_code == 200


@pytest.mark.slow
def test_a_limit_ends_at_its_time_and_the_next_one_is_answered_again(
    tmp_path: Path, api: MessagesApi, url: str
) -> None:
    api.on(OLD, UsageLimit(resets_in_seconds=4))
    with switching(tmp_path, api_url=url) as running:
        first = running.post(PLAIN)
        eventually(lambda: token(running)["state"] == "ready")
        again = running.post(PLAIN)
        events = told(running, finished=2)

    assert (first.status_code, again.status_code) == (429, 429), "the second limit has nobody who answered yet"
    assert len(of(events, "token.limited")) == 2


# What condemns no token.


FORGERIES = {
    "stderr": '2026-01-01T00:00:00.000Z [ERROR] API error (attempt 1/11): 401 401 {"type":"error","error":'
    '{"type":"authentication_error","message":"OAuth token has expired."},"request_id":"req_1"}',
    "stdout": '{"type":"system","subtype":"api_retry","attempt":1,"max_retries":10,"retry_delay_ms":500,'
    '"error_status":401,"error":"authentication_failed"}',
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("probe", "stream"),
    [
        ("on_refusal", "stderr"),
        ("off", "stdout"),
        ("off", "stderr"),
    ],
)
def test_what_a_tool_forges_stops_its_own_attempts_and_condemns_no_token(
    tmp_path: Path, url: str, probe: str, stream: str
) -> None:
    """A9, by a tool that does it every time."""
    descriptor = {"stdout": 1, "stderr": 2}[stream]
    forgery = {"do": "tool", "command": f"echo '{FORGERIES[stream]}' >>/proc/$PPID/fd/{descriptor}; sleep 60"}
    steps = [{"do": "init"}, *[forgery] * 9, {"do": "result"}]
    with switching(tmp_path, api_url=url, environment={"AGENT_RUNTIME_PROBE": probe}) as running:
        response = running.post({"script": steps}, execution_id="forger")
        attempts = running.record("forger")["attempts"]
        unharmed = running.post(PLAIN)
        events = told(running, finished=2)
        status = token(running)

    assert (response.status_code, response.json()["error_class"]) == (502, "upstream")
    assert [attempt["stop_reason"] for attempt in attempts] == ["refused"] * 4
    assert unharmed.status_code == 200
    assert (status["state"], status["last_refused_generation"]) == ("ready", None)
    assert of(events, "token.refused") == []


@pytest.mark.parametrize(("refusals", "status"), [pytest.param(1, 200, marks=pytest.mark.slow), (2, 502)])
def test_a_refusal_of_one_request_with_a_good_token_is_resumed_so_often_and_then_upstream(
    tmp_path: Path, api: MessagesApi, url: str, refusals: int, status: int
) -> None:
    Work(api, tmp_path, "work", *["expired"] * refusals, Text(text="finished")).let_go()
    with switching(tmp_path, api_url=url, flags=("--max-resumes", "1")) as running:
        response = running.post(PROMPT, execution_id="work")

        assert response.status_code == status
        assert response.json().get("response" if status == 200 else "error_class") in {"finished", "upstream"}
        assert generations(running, "work") == [[1], [1]]
        assert token(running)["state"] == "ready"


def test_without_the_probe_the_first_request_of_the_next_attempt_decides(
    tmp_path: Path, api: MessagesApi, url: str, work: Work
) -> None:
    with switching(tmp_path, api_url=url, environment={"AGENT_RUNTIME_PROBE": "off"}) as running:
        pending = running.start(PROMPT, execution_id="work")
        work.wait_until_under_way()
        api.on(OLD, "expired")
        work.let_go()
        response = pending.answer()

        assert (response.status_code, response.json()["error_class"]) == (503, "auth")
        assert generations(running, "work") == [[1], [1]]
        assert token(running)["state"] == "refused"
        assert len(of(told(running, finished=1), "token.refused")) == 1
    assert api.seen(OLD).by_status[401] == 2, "one request each, and no question"


@pytest.mark.slow
def test_while_it_is_being_found_out_new_executions_wait_and_a_newer_token_lets_all_go_on(
    tmp_path: Path, api: MessagesApi, url: str
) -> None:
    api.on(OLD, "hang")
    steps = [{"do": "init"}, {"do": "api_error", "status": 401, "when": "first"}, {"do": "hang", "when": "first"}]
    steps += [{"do": "result", "text": "finished"}]
    again = [{"do": "init"}, {"do": "wait_file", "path": str(tmp_path / "go")}, {"do": "result", "text": "finished"}]
    (tmp_path / "go").touch()
    with switching(tmp_path, api_url=url) as running:
        tool = {"do": "assistant", "text": "Hello."}
        suspecting = running.start({"script": [steps[0], tool, *steps[1:]]}, execution_id="suspecting")
        eventually(lambda: running.client.get("/readyz").json().get("reason") == "token_suspect")
        held = running.start({"script": again}, execution_id="held")
        eventually(lambda: state(running, "held") == "queued")
        assert token(running)["state"] == "suspect"
        assert running.get("/health")["slots"]["busy"] == 1

        running.write_token(NEW)

        assert suspecting.answer().json()["response"] == "finished"
        assert held.answer().json()["response"] == "finished"
        assert generations(running, "held") == [[2]]


# A refused token stays refused.


@pytest.mark.slow
def test_a_refusal_outlives_the_supervisor_and_a_change_to_and_fro_until_the_api_takes_the_token_again(
    tmp_path: Path, api: MessagesApi, url: str
) -> None:
    api.on(OLD, "expired")
    with switching(tmp_path, api_url=url) as running:
        assert running.post(PLAIN).status_code == 503
    with switching(tmp_path, api_url=url, token=None) as running:
        assert (token(running)["state"], token(running)["generation"]) == ("refused", 1)
        running.write_token(NEW)
        eventually(lambda: token(running)["state"] == "ready")
        running.write_token(OLD)
        eventually(lambda: token(running)["generation"] == 3)
        assert token(running)["state"] == "refused"

        asked = api.seen(OLD).requests
        reloaded = running.client.post("/api/credentials/reload-token", json={}).json()
        assert (reloaded["state"], reloaded["reloaded"]) == ("refused", False)
        assert api.seen(OLD).requests == asked + 1, "tried at once, by the probe"
        assert running.post(PLAIN, execution_id="none").status_code == 503
        assert running.client.get("/api/executions/none").status_code == 404, "and closed as before"

        api.accept(OLD)
        assert running.client.post("/api/credentials/reload-token").json()["state"] == "ready"
        assert running.post(PLAIN).status_code == 200


@pytest.mark.slow
def test_without_the_probe_one_execution_tries_a_refused_token_that_is_reloaded(
    tmp_path: Path, api: MessagesApi, url: str, work: Work
) -> None:
    api.on(OLD, "expired")
    with switching(tmp_path, api_url=url, environment={"AGENT_RUNTIME_PROBE": "off"}) as running:
        assert running.post(PLAIN).status_code == 503
        api.accept(OLD)
        assert running.client.post("/api/credentials/reload-token").json()["state"] == "refused"
        trying = running.start({"script": [{"do": "init"}, {"do": "hang"}]}, execution_id="trying")
        eventually(lambda: state(running, "trying") == "running")
        assert running.post(PLAIN).status_code == 503, "one at a time"
        running.client.post("/api/executions/trying/terminate")
        trying.answer()

        assert running.post(PLAIN).status_code == 200, "a try that showed nothing gives way to the next"
        assert token(running)["state"] == "ready"
        assert work.done == 0


@pytest.mark.slow
def test_where_the_probe_cannot_tell_an_execution_finds_out(tmp_path: Path, api: MessagesApi, url: str) -> None:
    api.on(OLD, "expired")
    with switching(tmp_path, api_url=url) as running:
        assert running.post(PLAIN).status_code == 503
        api.on(OLD, "server_error")
        assert running.client.post("/api/credentials/reload-token").json()["state"] == "refused"
        api.accept(OLD)

        assert running.post(PLAIN).status_code == 200
        assert token(running)["state"] == "ready"


@pytest.mark.slow
def test_what_is_posted_again_keeps_its_session_though_the_next_token_is_dead_too(
    tmp_path: Path, api: MessagesApi, url: str, work: Work
) -> None:
    [third] = tokens_named(1)
    api.accept(third)
    api.on(NEW, "expired")
    with switching(tmp_path, api_url=url) as running:
        pending = running.start(PROMPT, execution_id="work")
        work.wait_until_under_way()
        api.on(OLD, "expired")
        work.let_go()
        assert pending.answer().status_code == 503
        running.write_token(NEW)
        eventually(lambda: token(running)["state"] == "ready")
        pending = running.start(PROMPT, execution_id="work", park_seconds=60)
        eventually(lambda: state(running, "work") == "parked")
        running.write_token(third)

        assert pending.answer().json()["response"] == "finished"
        assert generations(running, "work") == [[1], [2], [3]]
    assert work.done == 1


@pytest.mark.parametrize("probe", [pytest.param("on_load", marks=pytest.mark.slow), "before_dispatch"])
def test_a_dead_token_can_be_found_out_before_any_execution_meets_it(
    tmp_path: Path, api: MessagesApi, url: str, probe: str
) -> None:
    with switching(tmp_path, api_url=url, environment={"AGENT_RUNTIME_PROBE": probe}) as running:
        api.on(NEW, "expired")
        running.write_token(NEW)
        response = running.post(PLAIN)  # at once: nobody has noticed the new one yet

        assert (response.status_code, response.json()["error_class"]) == (503, "auth")
        assert token(running)["state"] == "refused"
    assert api.seen(NEW).requests == 1, "the question, and no request of an execution"


HURRIED = (*SUPERVISOR_WITH, "agent_runtime.tokens.status:FIRST_RETRY_SECONDS=3.0")
"""Tries a refused token again after three seconds; that it is a minute otherwise stands in test_statuses."""


@pytest.mark.slow
def test_a_refused_token_is_tried_again_by_the_probe_after_a_pause(tmp_path: Path, api: MessagesApi, url: str) -> None:
    api.on(OLD, "expired")
    with switching(tmp_path, api_url=url, program=HURRIED) as running:
        posted_at = time.monotonic()
        assert running.post(PLAIN).status_code == 503
        asked = api.seen(OLD).requests
        api.accept(OLD)
        eventually(lambda: token(running)["state"] == "ready")

        assert time.monotonic() - posted_at >= 3.0
        assert api.seen(OLD).requests == asked + 1


# The three reproductions.


class Backend:
    """What a backend does: it gives agents subscriptions, by writing their files, and switches on 429 and 503."""

    def __init__(self, subscriptions: list[str]) -> None:
        self._subscriptions = subscriptions
        self._agents: list[Supervised] = []
        self.switches = 0

    def assign(self, agent: Supervised) -> None:
        self._agents.append(agent)

    def reassign(self) -> None:
        """Give all agents the next subscription."""
        self.switches += 1
        for agent in self._agents:
            agent.write_token(self._subscriptions[self.switches])

    def run(self, agent: Supervised, message: str, execution_id: str) -> dict[str, Any]:
        """Have a task done, switching as often as there are subscriptions."""
        while True:
            response = agent.post(message, execution_id=execution_id)
            if response.status_code not in {429, 503} or self.switches + 1 >= len(self._subscriptions):
                answer: dict[str, Any] = response.json()
                return answer
            self.reassign()
            eventually(lambda: token(agent)["generation"] == self.switches + 1)


def test_scenario_a_a_long_execution_outlives_the_reassignment_of_its_agents_subscription(
    tmp_path: Path, api: MessagesApi, url: str, work: Work
) -> None:
    backend = Backend([OLD, NEW])
    with switching(tmp_path, api_url=url) as agent:
        backend.assign(agent)
        long = agent.start(PROMPT, execution_id="long")
        work.wait_until_under_way()
        backend.reassign()
        api.on(OLD, "revoked")
        assert agent.client.post("/api/credentials/reload-token").json()["generation"] == 2
        short = agent.post(PLAIN)
        work.let_go()
        answer = long.answer()

    assert short.status_code == 200
    assert (answer.status_code, answer.json()["response"]) == (200, "finished")
    assert work.done == 1


@pytest.mark.slow
def test_scenario_b_a_second_task_meets_the_limit_and_the_first_one_does_not_die_of_the_switch(
    tmp_path: Path, api: MessagesApi, url: str
) -> None:
    backend = Backend([OLD, NEW])
    first_works = [Work(api, tmp_path, f"first-{n}") for n in range(2)]
    flags = ("--slots", "2")
    with (
        switching(tmp_path / "one", api_url=url, flags=flags) as one,
        switching(tmp_path / "two", api_url=url, flags=flags) as two,
    ):
        agents = (one, two)
        for agent in agents:
            backend.assign(agent)
        firsts = [agent.start(f"[[script:first-{n}]] Do it.", execution_id="first") for n, agent in enumerate(agents)]
        for work in first_works:
            work.wait_until_under_way()
        api.on(OLD, "usage_limit")
        second = backend.run(one, PLAIN, "second")
        for work in first_works:
            work.let_go()
        answers = [first.answer() for first in firsts]

    assert second["status"] == "success"
    assert backend.switches == 1
    assert [(answer.status_code, answer.json()["response"]) for answer in answers] == [(200, "finished")] * 2
    assert [work.done for work in first_works] == [1, 1]


@pytest.mark.slow
def test_scenario_c_scheduled_executions_meet_an_expired_token_and_are_answered_at_once(
    tmp_path: Path, api: MessagesApi, url: str
) -> None:
    api.on(OLD, "expired")
    expired = json.dumps({"token": OLD, "expires_at": "2020-01-01T00:00:00Z"})
    with switching(tmp_path, api_url=url, token=expired, flags=("--park", "0")) as agent:
        for n in range(5):
            begun = time.monotonic()
            response = agent.post(PLAIN, execution_id=f"scheduled-{n}")
            assert time.monotonic() - begun < ANSWERED_WITHIN_SECONDS
            assert (response.status_code, response.json()["error_class"]) == (503, "auth")
            assert agent.get("/health")["slots"]["busy"] == 0
        agent.write_token(OLD)  # the same without its date: the API is who says so now
        eventually(lambda: token(agent)["state"] == "ready")
        pending = [agent.start(PLAIN, execution_id=f"together-{n}") for n in range(4)]
        assert [one.answer().status_code for one in pending] == [503] * 4
        assert agent.get("/health")["slots"]["busy"] == 0

        agent.write_token(NEW)
        eventually(lambda: token(agent)["state"] == "ready")
        assert [agent.post(PLAIN).status_code for _ in range(3)] == [200] * 3


# Many at once.


def tokens_named(count: int) -> list[str]:
    return [f"sk-ant-oat01-switch-number-{n:02d}-of-these-tests-00000000000" for n in range(count)]


def many(executions: int, api: MessagesApi, directory: Path, steps: int) -> list[list[Work]]:
    """Scripts of so many tools each; every tool waits to be let go."""
    all_works = []
    for n in range(executions):
        works, tools = [], []
        for step in range(steps):
            work = Work(api, directory, f"part-{n}-{step}")
            began, done, go = (directory / f"part-{n}-{step}.{what}" for what in ("began", "done", "go"))
            command = f"echo x >>{began}; until test -e {go}; do sleep 0.02; done; echo x >>{done}"
            tools.append(Tool(command=command))
            works.append(work)
        api.script(f"many-{n}", *tools, Text(text="finished"))
        all_works.append(works)
    return all_works


def switch_five_times(
    home: Path, api: MessagesApi, url: str, delivery: str, claude: str = SCRIPTED
) -> tuple[list[list[Work]], list[dict[str, Any]], set[int], list[float]]:
    """
    Let eight executions run through five switches, with tool calls in flight at each.

    Returns:
        Their work, their answers, the generations that were refused, and when each token was written (monotonic).
    """
    secrets = tokens_named(6)
    for secret in secrets:
        api.accept(secret)
    works = many(8, api, home, 5)
    written_at = []
    with switching(home, api_url=url, token=secrets[0], flags=("--slots", "8"), delivery=delivery, claude=claude) as it:
        pending = [it.start(f"[[script:many-{n}]] Do it.", execution_id=f"many-{n}") for n in range(8)]
        for switch in range(5):
            for parts in works:
                parts[switch].wait_until_under_way()
            it.write_token(secrets[switch + 1])
            written_at.append(time.monotonic())
            api.on(secrets[switch], "expired")
            for parts in works:
                parts[switch].let_go()
        answers = [one.answer() for one in pending]
        refused = {event["generation"] for event in of(told(it, finished=8), "token.refused")}
    assert [(answer.status_code, answer.json().get("response")) for answer in answers] == [(200, "finished")] * 8
    return works, [answer.json() for answer in answers], refused, written_at


@pytest.mark.slow
def test_under_env_eight_executions_finish_by_resume_over_five_switches_with_the_old_token_refused_at_once(
    tmp_path: Path, api: MessagesApi, url: str
) -> None:
    works, answers, refused, _ = switch_five_times(tmp_path, api, url, "env")

    assert [answer["metadata"]["attempts"] for answer in answers] == [6] * 8
    assert [part.done for parts in works for part in parts] == [1] * 40, "no tool call was repeated"
    assert refused <= {1, 2, 3, 4, 5}


@pytest.mark.slow
def test_under_file_eight_executions_finish_in_their_first_attempt_over_five_switches(
    tmp_path: Path, api: MessagesApi, url: str
) -> None:
    works, answers, refused, written_at = switch_five_times(tmp_path, api, url, "file")

    assert [answer["metadata"]["attempts"] for answer in answers] == [1] * 8
    assert [part.done for parts in works for part in parts] == [1] * 40
    assert refused == set(), "nobody had to find out about the older ones"
    assert older_than_two_seconds(api, written_at) == []


@pytest.mark.slow
@pytest.mark.real_cli
def test_on_the_real_cli_eight_executions_finish_in_their_first_attempt_over_five_switches(
    tmp_path: Path, api: MessagesApi, url: str, claude: str
) -> None:
    if any(f"/{version}/" in claude for version in ("1.0.128", "2.0.76")):
        pytest.skip("this version never reads the file again; that it then goes by env is shown in test_delivery")
    works, answers, refused, written_at = switch_five_times(tmp_path, api, url, "file", claude)

    assert [answer["metadata"]["attempts"] for answer in answers] == [1] * 8
    assert [part.done for parts in works for part in parts] == [1] * 40
    assert refused == set()
    if "/2.1.30/" not in claude:  # it takes the newer one when the older one is refused, however late it asks
        assert older_than_two_seconds(api, written_at) == []


def older_than_two_seconds(api: MessagesApi, written_at: list[float]) -> list[float]:
    """Return how late requests came that carried an older token than the one written two seconds before them."""
    fingerprints = [Token(secret).fingerprint for secret in tokens_named(6)]
    late = []
    for number, at in enumerate(written_at):
        old = set(fingerprints[: number + 1])
        late += [seen.at - at for seen in api.requests if seen.fingerprint in old and seen.at > at + 2]
    return late


@pytest.mark.slow
@pytest.mark.every_cli
@pytest.mark.real_cli
def test_on_the_real_cli_a_running_execution_takes_the_newer_token_in_its_first_attempt(
    tmp_path: Path, api: MessagesApi, url: str, claude: str, work: Work
) -> None:
    if any(f"/{version}/" in claude for version in ("1.0.128", "2.0.76")):
        pytest.skip("this version never reads the file again; that it then goes by env is shown in test_delivery")
    with switching(tmp_path, api_url=url, claude=claude, delivery="file") as running:
        pending = [running.start(PROMPT, execution_id=f"work-{n}") for n in range(2)]
        work.wait_until_under_way(2)
        running.write_token(NEW)
        api.on(OLD, "expired")
        work.let_go()
        answers = [one.answer() for one in pending]
        tokens = [generations(running, f"work-{n}") for n in range(2)]

    assert [(answer.status_code, answer.json().get("response")) for answer in answers] == [(200, "finished")] * 2
    assert tokens == [[[1, 2]]] * 2
    assert work.done == 2


@pytest.mark.slow
@pytest.mark.parametrize("delivery", ["env", "file"])
def test_eight_executions_wait_five_seconds_for_the_newer_token_and_finish_by_resume(
    tmp_path: Path, api: MessagesApi, url: str, work: Work, delivery: str
) -> None:
    ids = [f"work-{n}" for n in range(8)]
    with switching(tmp_path, api_url=url, flags=("--slots", "8"), delivery=delivery) as running:
        pending = [running.start(PROMPT, execution_id=name, park_seconds=60) for name in ids]
        work.wait_until_under_way(8)
        api.on(OLD, "expired")
        refused_at = time.monotonic()
        work.let_go()
        eventually(lambda: states(running, ids) == ["parked"] * 8)
        eventually(lambda: time.monotonic() >= refused_at + 5)
        assert states(running, ids) == ["parked"] * 8
        running.write_token(NEW)
        answers = [one.answer() for one in pending]

    assert [answer.json()["response"] for answer in answers] == ["finished"] * 8
    assert [answer.json()["metadata"]["attempts"] for answer in answers] == [2] * 8
    assert work.done == 8


REPEATS = {"SCRIPTED_CLI_VERSION": "2.1.114"}
"""A version that repeats a refused request for minutes, and has the token of its file each time."""


@pytest.mark.slow
def test_a_cli_that_repeats_its_refused_request_is_left_alone_where_its_execution_may_wait(
    tmp_path: Path, api: MessagesApi, url: str, work: Work
) -> None:
    waiting = ["held-1", "held-2"]
    with switching(tmp_path, api_url=url, environment=REPEATS, flags=("--park", "60"), delivery="file") as running:
        pending = [running.start(PROMPT, execution_id=name) for name in waiting]
        cancelled = running.start(PROMPT, execution_id="cancelled")
        at_once = running.start(PROMPT, execution_id="at-once", park_seconds=0)
        work.wait_until_under_way(4)
        api.on(OLD, "expired")
        refused_at = time.monotonic()
        work.let_go()
        assert at_once.answer().json()["error_class"] == "auth"
        assert time.monotonic() - refused_at < 5
        assert running.record("at-once")["attempts"][0]["stop_reason"] == "refused"
        eventually(lambda: token(running)["state"] == "refused")
        eventually(lambda: all(running.record(name)["held"] for name in (*waiting, "cancelled")))
        assert states(running, waiting) == ["running"] * 2
        stopped = running.client.post("/api/executions/cancelled/terminate").json()
        assert (stopped["status"], cancelled.answer().json()["status"]) == ("terminated", "cancelled")
        running.write_token(NEW)
        answers = [one.answer().json() for one in pending]

        assert [answer["response"] for answer in answers] == ["finished"] * 2
        assert [generations(running, name) for name in waiting] == [[[1, 2]]] * 2
        assert [answer["metadata"]["resumes"] for answer in answers] == [0, 0]
        events = told(running, finished=4)
        assert token(running)["last_refused_generation"] == 1
    assert work.done == 4, "no tool ran twice"
    held = [event["execution_id"] for event in of(events, "execution.held")]
    assert sorted(held) == ["cancelled", *waiting], "once each, though each request was refused more than once"
    assert len(of(events, "execution.released")) == 3
    assert of(events, "execution.parked") == []


@pytest.mark.slow
def test_where_the_first_answers_at_once_it_is_stopped_at_once_and_the_others_are_left_alone(
    tmp_path: Path, api: MessagesApi, url: str, work: Work
) -> None:
    with switching(tmp_path, api_url=url, environment=REPEATS, delivery="file") as running:
        pending = [running.start(PROMPT, execution_id="other")]
        work.wait_until_under_way()
        api.on(OLD, "expired")
        first = running.post("Say hello.", execution_id="first")
        assert (first.status_code, first.json()["error_class"]) == (503, "auth")
        [attempt] = running.record("first")["attempts"]
        assert attempt["evidence"]["seconds_to_signal"] < 0.5
        work.let_go()
        eventually(lambda: running.record("other")["held"])
        running.write_token(NEW)

        assert pending[0].answer().json()["response"] == "finished"
        assert generations(running, "other") == [[1, 2]]
    assert work.done == 1


@pytest.mark.slow
def test_a_cli_that_gives_up_repeating_its_request_is_parked_as_any_other(
    tmp_path: Path, api: MessagesApi, url: str, work: Work
) -> None:
    environment = {**REPEATS, "SCRIPTED_CLI_PAUSE_FACTOR": "0.01"}
    with switching(tmp_path, api_url=url, environment=environment, delivery="file") as running:
        pending = running.start(PROMPT, execution_id="work", park_seconds=60)
        work.wait_until_under_way()
        api.on(OLD, "expired")
        work.let_go()
        eventually(lambda: state(running, "work") == "parked")
        assert not running.record("work")["held"]
        running.write_token(NEW)

        assert pending.answer().json()["response"] == "finished"
        assert generations(running, "work") == [[1], [2]]
        [parked] = of(told(running, finished=1), "execution.parked")
        assert parked["seconds"] < 60, "what it has waited in its process counts"
    assert work.done == 1


# On the real CLI.


@pytest.mark.real_cli
@pytest.mark.slow
def test_on_the_real_cli_executions_wait_for_a_late_token_in_their_first_attempt(
    tmp_path: Path, api: MessagesApi, url: str, claude: str
) -> None:
    if not any(f"/{version}/" in claude for version in ("2.1.30", "2.1.114")):
        pytest.skip("this version does not repeat a refused request for long, or never reads the file again")
    ids = [f"late-{n}" for n in range(4)]
    works = many(4, api, tmp_path, 2)
    with switching(tmp_path, api_url=url, flags=("--park", "60"), delivery="file", claude=claude) as running:
        pending = [running.start(f"[[script:many-{n}]] Do it.", execution_id=ids[n]) for n in range(4)]
        for first, _ in works:
            first.wait_until_under_way()
        api.on(OLD, "expired")
        for first, _ in works:
            first.let_go()
        eventually(lambda: all(running.record(name)["held"] for name in ids))
        threading.Event().wait(5)
        running.write_token(NEW)
        for _, second in works:
            second.let_go()
        answers = [one.answer().json() for one in pending]

        assert [answer["response"] for answer in answers] == ["finished"] * 4
        assert [generations(running, name) for name in ids] == [[[1, 2]]] * 4
    assert [part.done for parts in works for part in parts] == [1] * 8, "no tool ran twice"


def forgets(answer: dict[str, Any]) -> bool:
    """
    Whether this version may have lost a tool's last result when it is stopped.

    Source: 2.1.30 had not written a result to its session that it had got some 10 ms before SIGINT, so the resumed
    session ran the tool again; 2.1.114 and 2.1.330 had.
    """
    version = answer["metadata"]["cli_version"]
    return tuple(map(int, version.split("."))) < (2, 1, 114)


@pytest.mark.every_cli
@pytest.mark.real_cli
@pytest.mark.slow
def test_the_real_cli_goes_on_in_its_session_on_the_newer_token(
    tmp_path: Path, api: MessagesApi, url: str, claude: str, work: Work
) -> None:
    with switching(tmp_path, api_url=url, claude=claude) as running:
        pending = [running.start(PROMPT, execution_id=f"work-{n}") for n in range(2)]
        work.wait_until_under_way(2)
        running.write_token(NEW)
        eventually(lambda: token(running)["generation"] == 2)
        api.on(OLD, "expired")
        work.let_go()
        answers = [one.answer() for one in pending]
        eventually(lambda: token(running)["last_refused_generation"] == 1)
        tokens = [generations(running, f"work-{n}") for n in range(2)]
        events = told(running, finished=2, refused=1)
        assert token(running)["state"] == "ready"

    assert [(answer.status_code, answer.json().get("response")) for answer in answers] == [(200, "finished")] * 2
    assert tokens == [[[1], [2]]] * 2
    assert work.done == 2 or forgets(answers[0].json()), "the tool had run, and its result was in the session"
    assert [event["generation"] for event in of(events, "token.refused")] == [1]
    for answer in answers:
        log = answer.json()["execution_log"]
        assert len({frame["session_id"] for frame in log if frame.get("subtype") == "init"}) == 1


@pytest.mark.real_cli
@pytest.mark.slow
@pytest.mark.newest_cli
@pytest.mark.parametrize(("fault", "status"), [("expired", 503), ("usage_limit", 429)])
def test_a_burst_on_the_real_cli_is_answered_once_and_everything_continues(  # noqa: PLR0917 - fixtures
    tmp_path: Path, api: MessagesApi, url: str, claude: str, work: Work, fault: str, status: int
) -> None:
    ids = [f"work-{n}" for n in range(3)]
    with switching(tmp_path, api_url=url, claude=claude) as running:
        pending = {name: running.start(PROMPT, execution_id=name) for name in ids}
        work.wait_until_under_way(3)
        api.on(OLD, fault)
        work.let_go()
        eventually(lambda: states(running, ids).count("parked") == 2)
        running.write_token(NEW)
        answers = {name: one.answer() for name, one in pending.items()}
        [first] = [name for name in ids if answers[name].status_code != 200]
        events = told(running, finished=3)
        again = running.post(PROMPT, execution_id=first)

    assert answers[first].status_code == status
    assert len(of(events, "token.limited" if fault == "usage_limit" else "token.refused")) == 1
    assert again.json()["response"] == "finished"
    assert work.done == 3 or forgets(again.json())
