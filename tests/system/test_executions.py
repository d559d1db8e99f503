"""The whole supervisor over HTTP, with the scripted CLI: slots, answers, stops, deadlines, what callers see."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from agent_runtime.errors import RESERVED_WORDS
from agent_runtime.execution.stop import GIVE_UP_SECONDS
from tests.support.supervised import OLD, Supervised, eventually, marked_processes, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator

OK = {"script": [{"do": "init"}, {"do": "assistant", "text": "Hello."}, {"do": "result", "text": "Hello."}]}
DEAD = {"script": [{"do": "init"}, {"do": "api_error", "status": 401}, {"do": "hang"}]}


def holding(path: Path, *more: dict[str, Any]) -> dict[str, Any]:
    """Say hello, then wait until *path* exists."""
    steps = [{"do": "init"}, {"do": "assistant", "text": "Hello."}, *more, {"do": "wait_file", "path": str(path)}]
    return {"script": [*steps, {"do": "result", "text": "Done."}]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("shared"), flags=("--slots", "2", "--queue", "1")) as running:
        yield running


def test_a_task_is_answered_with_the_result_the_frames_and_the_counts(shared: Supervised) -> None:
    response = shared.post(OK)

    assert response.status_code == 200
    answer = response.json()
    assert answer["status"] == "success"
    assert answer["response"] == "Hello."
    assert [frame["type"] for frame in answer["execution_log"]][-1] == "result"
    assert answer["truncated_log"] is False
    assert answer["metadata"]["attempts"] == 1
    assert answer["metadata"]["token_generation"] == 1
    assert answer["metadata"]["cli_version"] == "2.1.330"
    assert answer["session_id"] == shared.record(answer["execution_id"])["session_id"]


def test_a_record_tells_the_attempt_and_the_token_by_its_fingerprint(shared: Supervised) -> None:
    execution_id = shared.post(OK).json()["execution_id"]

    record = shared.record(execution_id)
    [attempt] = record["attempts"]

    assert record["state"] == "finished"
    assert record["outcome"] == "success"
    assert attempt["exit_code"] == 0
    assert attempt["stop_reason"] is None
    assert attempt["tokens"][0]["generation"] == 1
    assert attempt["tokens"][0]["fingerprint"] == shared.get("/api/token")["fingerprint"]
    status = shared.get(f"/api/executions/{execution_id}/status")
    assert (status["running"], status["returncode"], status["outcome"]) == (False, 0, "success")


def test_the_first_refused_request_ends_the_child_and_is_told_as_auth(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        response = running.post(DEAD, execution_id="dead")

        problem = response.json()
        assert response.status_code == 503
        assert response.headers["content-type"] == "application/problem+json"
        assert problem["error_class"] == "auth"
        assert problem["token_generation"] == 1
        assert problem["token_stale"] is False
        [attempt] = running.record("dead")["attempts"]
        assert attempt["stop_reason"] == "refused"
        assert "401" in attempt["evidence"]["line"]
        assert attempt["evidence"]["seconds_to_signal"] < 0.5
        assert marked_processes("dead") == []
        assert running.get("/api/token")["state"] == "refused"

        turned_away = running.post(OK)
        assert (turned_away.status_code, turned_away.json()["error_class"]) == (503, "auth")
        assert running.client.get("/readyz").json()["reason"] == "token_refused"
        assert running.client.get("/readyz?ignore=token").json() == {"status": "ready"}
        assert running.client.get("/livez").status_code == 200

        running.write_token("sk-ant-oat01-another-token-that-is-good-0000000000")
        eventually(lambda: running.client.get("/readyz").status_code == 200)
        assert running.post(OK).json()["metadata"]["token_generation"] == 2


def test_a_stubborn_child_and_what_it_started_in_other_sessions_are_gone_after_the_grace(tmp_path: Path) -> None:
    script = [
        {"do": "stubborn"},
        {"do": "init"},
        {"do": "spawn", "kind": "setsid", "ignore_signals": True},
        {"do": "spawn", "kind": "double_fork", "ignore_signals": True},
        {"do": "spawn", "kind": "tree", "count": 6},
        {"do": "api_error", "status": 401},
        {"do": "hang"},
    ]
    with supervised(tmp_path, flags=("--stop-grace", "0.3")) as running:
        response = running.post({"script": script}, execution_id="stubborn")

        assert response.json()["error_class"] == "auth"
        assert running.record("stubborn")["attempts"][0]["exit_code"] == -signal.SIGKILL
        metrics = running.client.get("/metrics").text
        [seconds] = re.findall(r"(?m)^agent_runtime_signal_to_gone_seconds_sum (.*)$", metrics)
        assert 0.3 <= float(seconds) < 0.3 + GIVE_UP_SECONDS, "SIGKILL came with the end of the grace"
        assert marked_processes("stubborn") == []


def test_nobody_begins_with_a_refused_token_while_a_stubborn_child_has_its_grace(tmp_path: Path) -> None:
    script = [{"do": "stubborn"}, *DEAD["script"]]
    with supervised(tmp_path, flags=("--stop-grace", "1.5", "--park", "0")) as running:
        refused = running.start({"script": script}, execution_id="stubborn")
        eventually(lambda: running.get("/api/token")["state"] == "suspect")
        assert marked_processes("stubborn"), "it is still there"
        next_one = running.start(OK, execution_id="next")
        eventually(lambda: running.get("/api/executions/running")["pending_ids"] == ["next"])
        assert running.client.get("/readyz").json()["reason"] == "token_suspect"
        assert running.client.get("/readyz?ignore=token").status_code == 200
        assert running.record("stubborn")["state"] == "stopping"

        assert refused.answer().json()["error_class"] == next_one.answer().json()["error_class"] == "auth"
        assert running.record("next")["attempts"] == []


def test_an_execution_ends_though_a_grandchild_holds_its_pipes(shared: Supervised) -> None:
    script = [{"do": "init"}, {"do": "spawn", "kind": "setsid", "hold_pipes": True}, {"do": "result", "text": "x"}]

    response = shared.post({"script": script}, execution_id="holder")

    assert response.json()["status"] == "success"
    assert marked_processes("holder") == []


def test_look_alikes_stop_nothing(shared: Supervised) -> None:
    script = [{"do": "init"}, {"do": "lookalike"}, {"do": "result", "text": "API Error: 401 Invalid bearer token"}]

    answer = shared.post({"script": script}).json()

    assert answer["status"] == "success"
    assert shared.get("/api/token")["state"] == "ready"


def test_what_a_tool_forges_costs_its_own_attempt_and_condemns_no_token(shared: Supervised) -> None:
    script = [
        {"do": "init"},
        {"do": "tool", "command": "true", "when": "first"},
        {"do": "forge", "stream": "stderr", "when": "first"},
        {"do": "hang", "when": "first"},
        {"do": "result", "text": "Done."},
    ]

    answer = shared.post({"script": script}, execution_id="forged").json()

    first, second = shared.record("forged")["attempts"]
    assert (first["stop_reason"], second["stop_reason"]) == ("refused", None)
    assert (answer["status"], answer["metadata"]["resumes"]) == ("success", 1)
    assert shared.get("/api/token")["state"] == "ready"
    assert shared.get("/api/token")["last_refused_generation"] is None


@pytest.mark.parametrize(
    ("flag", "script", "reason"),
    [
        pytest.param("--init-timeout", [{"do": "hang"}], "init_timeout", marks=pytest.mark.slow),
        pytest.param(
            "--first-message-timeout",
            [{"do": "init"}, {"do": "hang"}],
            "first_message_timeout",
            marks=pytest.mark.slow,
        ),
        ("--idle-timeout", [{"do": "init"}, {"do": "assistant", "text": "x"}, {"do": "hang"}], "idle_timeout"),
        (
            "--tool-timeout",
            [{"do": "init"}, {"do": "tool_use", "command": "sleep 1000"}, {"do": "hang"}],
            "tool_timeout",
        ),
    ],
)
def test_silence_is_ended_as_stalled(tmp_path: Path, flag: str, script: list[Any], reason: str) -> None:
    with supervised(tmp_path, flags=(flag, "0.4", "--idle-timeout" if flag != "--idle-timeout" else flag, "0.4")) as it:
        response = it.post({"script": script}, execution_id="silent")

        assert (response.status_code, response.json()["error_class"]) == (504, "stalled")
        assert it.record("silent")["attempts"][0]["stop_reason"] == reason
        assert it.get("/api/token")["state"] == "ready"


@pytest.mark.slow
def test_a_deadline_takes_the_class_of_the_api_error_seen_last(tmp_path: Path) -> None:
    script = [{"do": "init"}, {"do": "api_error", "status": 529, "kind": "overloaded_error"}, {"do": "hang"}]
    with supervised(tmp_path, flags=("--first-message-timeout", "0.4")) as running:
        response = running.post({"script": script})

        assert (response.status_code, response.json()["error_class"]) == (502, "overloaded")


def test_the_total_time_of_one_task_is_its_own(shared: Supervised) -> None:
    response = shared.post({"script": [{"do": "init"}, {"do": "hang"}]}, timeout_seconds=0.5)

    assert (response.status_code, response.json()["error_class"]) == (504, "timeout")


@pytest.mark.parametrize(
    ("script", "status", "error_class"),
    [
        ([{"do": "init"}, {"do": "exit", "code": 0}], 502, "lost_result"),
        ([{"do": "init"}, {"do": "kill"}], 500, "signal"),
        (
            [{"do": "init"}, {"do": "give_up", "text": "Credit balance is too low", "error": "billing_error"}],
            503,
            "billing",
        ),
        (
            [{"do": "init"}, {"do": "result", "is_error": True, "fields": {"subtype": "error_max_turns"}}],
            422,
            "max_turns",
        ),
        ([{"do": "init", "fields": {"permissionMode": "default"}}, {"do": "hang"}], 500, "error"),
    ],
)
def test_every_end_has_its_class(shared: Supervised, script: list[Any], status: int, error_class: str) -> None:
    response = shared.post({"script": script})

    assert (response.status_code, response.json()["error_class"]) == (status, error_class)
    assert shared.get("/api/token")["state"] == "ready"


def test_a_usage_limit_is_told_with_its_end_and_closes_admission_while_it_lasts(tmp_path: Path) -> None:
    resets_at = int(time.time()) + 3600
    script = [
        {"do": "init"},
        {"do": "rate_limit", "status": "rejected", "limit_type": "five_hour", "resets_at": resets_at},
        {"do": "give_up", "text": "You've hit your 5-hour limit", "error": "rate_limit", "status": 429},
    ]
    with supervised(tmp_path) as running:
        met = running.post({"script": script})
        turned_away = running.post(OK)
        token = running.get("/api/token")

        for response in (met, turned_away):
            assert (response.status_code, response.json()["error_class"]) == (429, "rate_limit")
            assert 3500 < int(response.headers["retry-after"]) <= 3600
            assert response.json()["resets_at"] == token["limited_until"]
            assert (response.json()["token_generation"], response.json()["token_stale"]) == (1, False)
        assert (token["state"], token["limit_type"]) == ("limited", "five_hour")
        assert running.client.get("/readyz").json()["reason"] == "token_limited"
        assert running.client.get("/readyz?ignore=token").status_code == 200

        running.client.post("/api/credentials/reload-token").raise_for_status()
        assert running.post(OK).status_code == 200


def test_slots_and_queue_are_bounded_and_the_next_is_told_to_come_back(shared: Supervised, tmp_path: Path) -> None:
    go = tmp_path / "go"
    pending = [shared.start(holding(go), execution_id=f"held-{n}") for n in range(3)]
    eventually(lambda: len(shared.get("/api/executions/running")["executions"]) == 2)
    running = shared.get("/api/executions/running")

    refused = shared.post(OK)
    go.touch()
    answers = [one.answer() for one in pending]

    assert len(running["pending_ids"]) == 1
    assert (refused.status_code, refused.json()["error_class"]) == (409, "busy")
    assert int(refused.headers["retry-after"]) > 0
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert set(shared.get("/api/executions/running")["recently_completed_ids"]) >= {"held-0", "held-1", "held-2"}


def test_terminate_is_idempotent_and_leaves_nothing(shared: Supervised, tmp_path: Path) -> None:
    pending = shared.start(holding(tmp_path / "never", {"do": "spawn", "kind": "setsid"}), execution_id="cancelled")
    eventually(lambda: shared.client.get("/api/executions/cancelled").is_success and marked_processes("cancelled"))

    first = shared.client.post("/api/executions/cancelled/terminate")
    again = shared.client.post("/api/executions/cancelled/terminate")

    assert first.json()["status"] == "terminated"
    assert again.json()["status"] == "already_finished"
    assert marked_processes("cancelled") == []
    answer = pending.answer()
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


def test_a_client_that_hangs_up_changes_nothing(shared: Supervised, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=shared.url, timeout=0.5, trust_env=False) as impatient:
        impatient.post("/api/task", json={"message": json.dumps(holding(go)), "execution_id": "orphaned"})
    assert shared.record("orphaned")["state"] == "running"

    go.touch()

    eventually(lambda: shared.record("orphaned")["outcome"] == "success")


def test_the_same_id_joins_while_it_runs_and_gets_the_kept_answer_later(shared: Supervised, tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = shared.start(holding(go), execution_id="joined")
    eventually(lambda: shared.client.get("/api/executions/joined").is_success)
    second = shared.start(holding(go), execution_id="joined")
    other_body = shared.post(OK, execution_id="joined")
    go.touch()

    assert first.answer().json() == second.answer().json() == shared.post(holding(go), execution_id="joined").json()
    assert (other_body.status_code, other_body.json()["error_class"]) == (409, "conflict")
    assert len(shared.record("joined")["attempts"]) == 1


def events(response: httpx.Response) -> Iterator[dict[str, str]]:
    event: dict[str, str] = {}
    for line in response.iter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif event:
            yield event
            event = {}


def test_a_stream_replays_follows_and_ends(shared: Supervised, tmp_path: Path) -> None:
    go = tmp_path / "go"
    pending = shared.start(holding(go), execution_id="streamed")
    eventually(lambda: shared.client.get("/api/executions/streamed").is_success)
    seen = []
    with shared.client.stream("GET", "/api/executions/streamed/stream") as response:
        for event in events(response):
            seen.append(event)
            if event["event"] == "message" and json.loads(event["data"])["type"] == "assistant":
                go.touch()
    pending.answer()

    messages = [event for event in seen if event["event"] == "message"]
    assert [int(event["id"]) for event in messages] == list(range(1, len(messages) + 1))
    assert json.loads(messages[-1]["data"])["type"] == "result"
    assert seen[-1]["event"] == "end"
    assert json.loads(seen[-1]["data"]) == {"type": "stream_end", "outcome": "success", "error_class": None}
    after = {"Last-Event-ID": messages[-2]["id"]}
    with shared.client.stream("GET", "/api/executions/streamed/stream", headers=after) as response:
        assert [event["id"] for event in events(response) if event["event"] == "message"] == [messages[-1]["id"]]


@pytest.mark.parametrize(
    ("body", "status", "error_class", "word"),
    [
        (b"{", 400, "invalid_request", "JSON"),
        (b"[]", 400, "invalid_request", "object"),
        (b"{}", 400, "invalid_request", "message"),
        (b'{"message": 1}', 400, "invalid_request", "message"),
        (b'{"message": "x", "max_turns": "many"}', 400, "invalid_request", "max_turns"),
        (b'{"message": "x", "execution_id": "../../etc/passwd"}', 400, "invalid_request", "execution_id"),
        (b'{"message": "x", "resume_session_id": "--version"}', 400, "invalid_request", "resume_session_id"),
        (b'{"message": "' + b"x" * (16 * 1024 * 1024) + b'"}', 413, "too_large", "longer"),
        (b"\xff\xfe", 400, "invalid_request", "JSON"),
    ],
)
def test_a_bad_body_gets_a_typed_problem(
    shared: Supervised, body: bytes, status: int, error_class: str, word: str
) -> None:
    response = shared.client.post("/api/task", content=body)

    problem = response.json()
    assert (response.status_code, problem["status"], problem["error_class"]) == (status, status, error_class)
    assert word in problem["detail"]
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "path", "status", "error_class"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/api/executions/unknown", 404, "not_found"),
        ("GET", "/api/executions/unknown/status", 404, "not_found"),
        ("GET", "/api/executions/unknown/stream", 404, "not_found"),
        ("POST", "/api/executions/unknown/terminate", 404, "not_found"),
        ("GET", "/api/task", 405, "method"),
        ("DELETE", "/livez", 405, "method"),
        ("GET", "/api/executions?limit=0", 400, "invalid_request"),
        ("GET", "/api/executions?state=asleep", 400, "invalid_request"),
    ],
)
def test_every_refusal_is_a_problem(shared: Supervised, method: str, path: str, status: int, error_class: str) -> None:
    response = shared.client.request(method, path)

    assert (response.status_code, response.json()["error_class"]) == (status, error_class)


def test_unknown_fields_are_an_error_and_none_begins(shared: Supervised) -> None:
    """A field that is ignored in silence may be the one that keeps an agent from doing what it must not."""
    response = shared.post(OK, permission_mod="plan", execution_id="unknown-field")

    assert (response.status_code, response.json()["error_class"]) == (400, "invalid_request")
    assert "permission_mod" in response.json()["detail"]
    assert shared.client.get("/api/executions/unknown-field").status_code == 404
    assert "permission_mod" not in shared.get("/health")["task_fields"]
    assert {"message", "execution_id"} <= set(shared.get("/health")["task_fields"])


@pytest.mark.parametrize("strict", ["true", "false"])
def test_a_token_that_came_as_the_name_of_a_field_is_not_repeated(tmp_path: Path, strict: str) -> None:
    with supervised(tmp_path, flags=("--strict", strict)) as running:
        for padding in ("", "x" * 40):
            answer = running.post(OK, **{padding + OLD: 1})

            assert OLD[:20] not in answer.text
            said = answer.json()["detail"] if strict == "true" else str(answer.json()["metadata"]["ignored_fields"])
            assert "[token:" in said


def test_unknown_fields_are_named_and_ignored_where_asked_for(tmp_path: Path) -> None:
    with supervised(tmp_path, flags=("--strict", "false")) as running:
        assert running.post(OK, colour="blue").json()["metadata"]["ignored_fields"] == ["colour"]


def test_executions_are_listed_newest_first_and_page_by_page(shared: Supervised) -> None:
    ids = [shared.post(OK).json()["execution_id"] for _ in range(3)]

    page = shared.get("/api/executions?limit=2")
    rest = shared.get(f"/api/executions?limit=1&cursor={page['next_cursor']}")

    listed = [record["execution_id"] for record in page["executions"] + rest["executions"]]
    assert listed == ids[::-1]


@pytest.mark.parametrize(
    ("command", "word"), [("/nonexistent/claude", "not found"), ("{home}/not-executable", "not executable")]
)
def test_a_missing_cli_is_a_typed_error_and_unready(tmp_path: Path, command: str, word: str) -> None:
    (tmp_path / "not-executable").write_text("#!/bin/sh\n")
    with supervised(tmp_path, claude=command.format(home=tmp_path)) as running:
        response = running.post(OK)

        assert (response.status_code, response.json()["error_class"]) == (500, "spawn")
        assert word in response.json()["detail"]
        for query in ("", "?ignore=token"):
            assert running.client.get(f"/readyz{query}").json()["reason"] == "no_cli"
        assert running.get("/health")["slots"]["busy"] == 0


def test_a_missing_token_file_is_a_typed_error_and_unready(tmp_path: Path) -> None:
    with supervised(tmp_path, token=None) as running:
        response = running.post(OK)
        assert (response.status_code, response.json()["error_class"]) == (500, "no_token")
        assert running.client.get("/readyz").status_code == 503
        for query in ("ignore=token", "ignore=token&ignore=token"):
            assert running.client.get(f"/readyz?{query}").json() == {"status": "ready"}
        for query in ("ignore", "ignore=", "ignore=Token", "ignore=token,cli", "ignore=token&ignore=cli"):
            refused = running.client.get(f"/readyz?{query}")
            assert (refused.status_code, refused.json()["detail"]) == (400, "ignore: must be token")

        running.write_token(OLD)
        eventually(lambda: running.client.get("/readyz").status_code == 200)
        assert running.post(OK).status_code == 200


def test_an_expired_token_is_not_spawned_with(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        running.write_token(json.dumps({"token": OLD, "expires_at": "2020-01-01T00:00:00Z"}))
        eventually(lambda: running.get("/api/token")["state"] == "expired")
        assert running.client.get("/readyz").json()["reason"] == "token_expired"
        assert running.client.get("/readyz?ignore=token").status_code == 200

        response = running.post(OK)

        assert (response.status_code, response.json()["error_class"]) == (503, "auth")


def test_the_access_key_is_asked_for_and_re_read(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("first-access-key\n")
    with supervised(tmp_path, flags=("--access-key-file", str(key))) as running:
        ask = running.client.get
        assert ask("/api/token").status_code == 401
        assert ask("/api/token").json()["error_class"] == "access"
        assert ask("/api/token", headers={"Authorization": "Bearer first-access-key"}).status_code == 200
        assert ask("/api/token", headers={"X-Agent-Token": "first-access-key"}).status_code == 200
        assert ask("/livez").status_code == ask("/readyz").status_code == 200
        assert list(ask("/health").json()) == ["status"]

        key.write_text("second-access-key\n")
        assert ask("/api/token", headers={"X-Agent-Token": "first-access-key"}).status_code == 401
        assert ask("/api/token", headers={"X-Agent-Token": "second-access-key"}).status_code == 200


def test_sigterm_lets_the_running_finish_and_says_that_it_drains(tmp_path: Path) -> None:
    go = tmp_path / "go"
    with supervised(tmp_path) as running:
        pending = running.start(holding(go), execution_id="last")
        eventually(lambda: running.client.get("/api/executions/last").is_success)
        running.process.send_signal(signal.SIGTERM)
        eventually(lambda: running.client.get("/readyz").json().get("reason") == "draining")
        assert running.client.get("/readyz?ignore=token").json()["reason"] == "draining"
        assert running.post(OK).json()["error_class"] == "draining"

        go.touch()

        assert pending.answer().json()["status"] == "success"
        assert running.process.wait(30) == 0


@pytest.mark.parametrize("nohup", [False, True])
def test_a_closed_terminal_drains_unless_the_signal_is_ignored(tmp_path: Path, nohup: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)  # children begin with it
    try:
        with supervised(tmp_path) as running:
            running.process.send_signal(signal.SIGHUP)
            if nohup:
                assert running.post(OK).json()["status"] == "success"
            else:
                assert running.process.wait(30) == 0
                assert "draining on SIGHUP" in running.log.read_text()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_what_does_not_finish_in_time_is_interrupted_and_gone(tmp_path: Path, signals: int) -> None:
    drain = "0.5" if signals == 1 else "60"
    with supervised(tmp_path, flags=("--drain-timeout", drain, "--stop-grace", "0.3")) as running:
        pending = running.start(holding(tmp_path / "never", {"do": "stubborn"}), execution_id="cut")
        eventually(lambda: running.client.get("/api/executions/cut").is_success and marked_processes("cut"))
        for _ in range(signals):
            running.process.send_signal(signal.SIGTERM)
            eventually(lambda: running.process.poll() is not None or running.client.get("/readyz").status_code == 503)

        assert pending.answer().json()["error_class"] == "interrupted"
        assert running.process.wait(30) == 0
        assert marked_processes("cut") == []


@pytest.mark.slow
def test_a_second_supervisor_on_the_same_directories_does_not_start(tmp_path: Path) -> None:
    refused = pytest.raises(pytest.fail.Exception, match=r"(?s)exit 3.*another supervisor")
    with supervised(tmp_path), refused, supervised(tmp_path):
        pass


def test_the_private_files_of_a_child_are_for_nobody_else_and_go_with_it(shared: Supervised, tmp_path: Path) -> None:
    report, go = tmp_path / "report.json", tmp_path / "go"
    pending = shared.start(holding(go, {"do": "report", "path": str(report)}), execution_id="private")
    eventually(report.exists)
    files = [path for path in (shared.data_dir / "run").rglob("*") if path.is_file()]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in files}
    go.touch()
    pending.answer()

    assert modes == {0o600}
    assert [path for path in (shared.data_dir / "run").rglob("*") if path.is_file()] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run children as another user")
def test_children_run_as_another_user_and_cannot_read_what_is_the_supervisors() -> None:
    with tempfile.TemporaryDirectory(prefix="agent-runtime-test-") as name:
        home = Path(name)
        home.chmod(0o755)
        for part in ("config", "workspace"):
            (home / part).mkdir()
            shutil.chown(home / part, "nobody")
        cli = home / "cli"
        cli.write_text(
            f"""#!/bin/sh
            cat >/dev/null
            said=$({{ id -un; ls {home}/data {home}/data/transcripts; cat {home}/secret/token; }} 2>&1 | tr '\\n"' '  ')
            printf '{{"type":"system","subtype":"init","permissionMode":"bypassPermissions"}}\\n'
            printf '{{"type":"result","subtype":"success","is_error":false,"result":"%s"}}\\n' "$said"
            """
        )
        cli.chmod(0o755)
        with supervised(home, claude=str(cli), flags=("--child-user", "nobody")) as running:
            answer = running.post("x").json()

        assert answer["status"] == "success", answer
        assert answer["response"].startswith("nobody ")
        assert answer["response"].count("Permission denied") == 2


@pytest.mark.parametrize("place", ["result", "session_id", "model", "claude_code_version"])
def test_half_a_character_in_a_frame_hangs_nobody(shared: Supervised, place: str) -> None:
    """JavaScript writes a lone surrogate where it cuts a string inside an emoji."""
    broken = "cut \ud83d"
    frames: list[dict[str, Any]] = [
        {"type": "system", "subtype": "init", "permissionMode": "bypassPermissions"},
        {"type": "assistant", "message": {"model": "m", "content": [{"type": "text", "text": broken}]}},
        {"type": "result", "subtype": "success", "is_error": False, "result": "whole"},
    ]
    if place == "model":
        frames[1]["message"]["model"] = broken
    else:
        frames[2 if place == "result" else 0][place] = broken
    steps = [{"do": "write", "text": json.dumps(frame)} for frame in frames]

    answer = shared.post({"script": steps}, execution_id=f"surrogate-{place}").json()

    assert answer["status"] == "success", answer
    assert shared.record(f"surrogate-{place}")["outcome"] == "success"


@pytest.mark.parametrize(
    "said", ["Not logged in · Please run /login", "API Error: 401 OAuth token has expired.", "Invalid API key"]
)
def test_what_only_the_cli_says_is_told_as_auth_at_once_and_condemns_nothing(shared: Supervised, said: str) -> None:
    script = {"script": [{"do": "init"}, {"do": "result", "text": said, "is_error": True}, {"do": "exit"}]}

    response = shared.post(script, execution_id=f"said-{len(said)}")

    assert (response.status_code, response.json()["error_class"]) == (503, "auth")
    assert len(shared.record(f"said-{len(said)}")["attempts"]) == 1
    assert shared.get("/api/token")["state"] == "ready"


@pytest.mark.parametrize(
    "body",
    [
        {"message": "x", "images": [{"unauthorized": 1, "media_type": "image/png", "data": ""}]},
        {"message": "x", "execution_id": "running"},
        {"message": "x", "allowed_tools": ["Bash(" + "x" * 1000 + ")"] * 200},
        {"message": "x", "execution_id": "oauth 401"},
    ],
)
def test_an_error_text_never_repeats_what_would_call_for_another_token(
    shared: Supervised, body: dict[str, Any]
) -> None:
    response = shared.client.post("/api/task", json=body)

    assert (response.status_code, response.json()["error_class"]) == (400, "invalid_request")
    assert not any(word in response.json()["detail"].lower() for word in RESERVED_WORDS)


def test_a_path_with_a_slash_too_many_is_unknown_and_redirects_nowhere(shared: Supervised) -> None:
    response = shared.client.get("/api/token/")

    assert (response.status_code, response.json()["error_class"]) == (404, "not_found")
    assert "location" not in response.headers


@pytest.mark.parametrize(
    ("flag", "variable"),
    [
        ("--child-user=no-such-user", "CHILD_USER"),
        ("--workspace=/no/such/directory", "WORKSPACE"),
        ("--access-header=two words", "--access-header"),
        ("--port=many", "--port"),
        ("--token-delivery=proxy", "relay"),
    ],
)
def test_a_bad_setting_is_named_and_exits_with_2(tmp_path: Path, flag: str, variable: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=rf"(?s)exit 2.*{variable}"), supervised(tmp_path, flags=(flag,)):
        pass


@pytest.mark.slow
def test_relative_directories_are_those_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--data-dir", "data", "--config-dir", "config", "--token-file", "secret/token")
    with supervised(tmp_path, flags=flags) as running:
        assert running.post(OK).json()["status"] == "success"
        assert running.get("/health")["status"] == "ok"
    assert list((tmp_path / "workspace").iterdir()) == []
