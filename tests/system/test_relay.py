"""A real supervisor with the relay, before the stand-in API, with the scripted CLI."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from agent_runtime.cli.main import main
from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, UsageLimit, serve
from tests.support.supervised import NEW, OLD, eventually, marked_processes, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RELAY = {"AGENT_RUNTIME_TOKEN_DELIVERY": "relay"}


@pytest.fixture
def api() -> MessagesApi:
    api = MessagesApi()
    api.script("work", Tool(command="true", gate="go"), Text(text="finished"))
    return api


@pytest.fixture
def base_url(api: MessagesApi) -> Iterator[str]:
    with serve(api) as url:
        yield url


def test_a_hold_is_shown_pauses_the_deadlines_and_ends_with_a_newer_token(
    tmp_path: Path, api: MessagesApi, base_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    api.on(OLD, "expired")
    flags = ("--park", "60", "--first-message-timeout", "1", "--idle-timeout", "1")
    with supervised(tmp_path, api_url=base_url, environment=RELAY, flags=flags) as run:
        pending = run.start("[[script:work]] Do it.", execution_id="held")
        eventually(lambda: run.get("/api/token")["state"] == "refused")
        assert (run.record("held")["held"], run.record("held")["state"]) == (True, "running")
        assert main(["status", "--url", run.url]) == 0
        assert "  held  " in capsys.readouterr().out
        threading.Event().wait(1.5)  # longer than both deadlines
        api.open_gate("go")
        run.write_token(NEW)
        answer = pending.answer().json()

        assert answer["response"] == "finished", answer
        record = run.record("held")
        assert not record["held"]
        assert [each["generation"] for each in record["attempts"][0]["tokens"]] == [1, 2]
        assert len(record["attempts"]) == 1
        assert api.seen(OLD).by_status == {401: 2}, "the request and the probe"
        metrics = run.client.get("/metrics").text
    for line in ('relay_requests_total{outcome="held"} 1.0', "executions_held_total 1.0", "executions_held_now 0.0"):
        assert f"agent_runtime_{line}" in metrics


@pytest.mark.parametrize(
    "end", ["terminate", *(pytest.param(end, marks=pytest.mark.slow) for end in ("drain", "shutdown", "timeout"))]
)
def test_the_end_of_an_execution_ends_its_hold_at_once(
    tmp_path: Path, api: MessagesApi, base_url: str, end: str
) -> None:
    api.on(OLD, "expired")
    with supervised(tmp_path, api_url=base_url, environment=RELAY, flags=("--park", "60")) as run:
        seconds = 10 if end == "timeout" else 60  # longer than the CLI takes to its first request on a busy machine
        pending = run.start("[[script:work]] Do it.", execution_id="ends", timeout_seconds=seconds)
        eventually(lambda: run.get("/api/token")["state"] == "refused" and run.record("ends")["held"])
        begun = time.monotonic()
        if end == "terminate":
            assert run.client.post("/api/executions/ends/terminate").json()["status"] == "terminated"
        elif end == "drain":
            assert run.client.post("/api/drain").status_code == 200
        elif end == "shutdown":
            run.stop()
        answer = pending.answer().json()

        assert time.monotonic() - begun < 5 + (seconds if end == "timeout" else 0)
        expected = {"terminate": "cancelled", "timeout": "timeout"}.get(end, "interrupted")
        assert expected in {answer.get("status"), answer.get("error_class")}
        if end != "shutdown":
            [attempt] = run.record("ends")["attempts"]
            assert attempt["stop_reason"] == {"terminate": "cancelled", "timeout": "timeout"}.get(end, "shutdown")
    assert marked_processes("ends") == []


def test_without_a_newer_token_a_held_execution_is_answered_as_any_other(
    tmp_path: Path, api: MessagesApi, base_url: str
) -> None:
    api.on(OLD, "expired")
    with supervised(tmp_path, api_url=base_url, environment=RELAY) as run:
        response = run.post("[[script:work]] Do it.", execution_id="dead")

        assert (response.status_code, response.json()["error_class"]) == (503, "auth")
        [attempt] = run.record("dead")["attempts"]
        assert (attempt["stop_reason"], attempt["evidence"]["stream"]) == ("refused", "wire")
        assert "expired" in attempt["evidence"]["line"]


@pytest.mark.slow
def test_a_limit_that_ends_in_time_is_waited_for_in_place(tmp_path: Path, api: MessagesApi, base_url: str) -> None:
    api.script("limited", UsageLimit(resets_in_seconds=2), Text(text="finished"))
    with supervised(tmp_path, api_url=base_url, environment=RELAY, flags=("--wait-for-reset", "60")) as run:
        answer = run.post("[[script:limited]] Do it.", execution_id="limit", timeout_seconds=8).json()

        assert answer.get("response") == "finished", answer
        assert len(run.record("limit")["attempts"]) == 1


def test_one_that_could_run_now_gets_the_slot_of_a_held_one_which_is_parked_and_resumed(
    tmp_path: Path, api: MessagesApi, base_url: str
) -> None:
    api.on_model("opus", UsageLimit(claim="seven_day_opus"))
    api.open_gate("go")
    with supervised(tmp_path, api_url=base_url, environment=RELAY, flags=("--park", "60", "--slots", "1")) as run:
        pending = run.start("[[script:work]] Do it.", execution_id="held", model="claude-opus-4-5")
        eventually(lambda: run.get("/api/token")["state"] == "limited" and run.record("held")["held"])
        assert run.post("[[script:work]] Do it.", model="claude-sonnet-4-5").json()["response"] == "finished"
        assert run.record("held")["state"] == "parked"
        api.on_model("opus")
        run.write_token(NEW)

        assert pending.answer().json()["response"] == "finished"
        [first, _] = run.record("held")["attempts"]
    assert (first["stop_reason"], first["exit_code"]) == ("refused", 0), "SIGINT"


@pytest.mark.slow
def test_an_api_that_never_answers_is_stalled_by_the_relays_deadline(
    tmp_path: Path, api: MessagesApi, base_url: str
) -> None:
    api.on(OLD, "hang")
    with supervised(tmp_path, api_url=base_url, environment=RELAY, flags=("--relay-timeout", "0.5")) as run:
        response = run.post("[[script:work]] Do it.")

        assert (response.status_code, response.json()["error_class"]) == (504, "stalled")
        assert "relay_timeout" in response.json()["detail"]


def test_an_answer_and_its_cost_count_for_the_token_that_its_request_carried(
    tmp_path: Path, api: MessagesApi, base_url: str
) -> None:
    third = f"{OLD}-3"
    api.on(NEW, "usage_limit")
    api.script("work", Tool(command="true", gate="go", usage={"input_tokens": 70}), Tool(command="true"), Text())
    with supervised(tmp_path, api_url=base_url, environment=RELAY, flags=("--park", "60")) as run:
        pending = run.start("[[script:work]] Do it.", execution_id="used")
        api.wait_for_requests(OLD)
        run.write_token(NEW)
        eventually(lambda: len(run.record("used")["attempts"][0]["tokens"]) == 2)
        api.open_gate("go")
        eventually(lambda: run.record("used")["held"])
        run.write_token(third)

        metadata = pending.answer().json()["metadata"]
        tokens = run.record("used")["attempts"][0]["tokens"]
    [old, limited, last] = [token["usage_by_model"] for token in tokens]
    assert limited == {}
    shares = [*old.values(), *last.values()]
    for name in ("input_tokens", "output_tokens"):
        handed_out = [sum(each.usage[name] for each in api.requests if each.carries(token)) for token in (OLD, third)]
        assert [share[name] for share in shares] == handed_out
    for name in ("cost_usd", "num_turns"):
        assert round(sum(share[name] for share in shares), 10) == metadata[name]
    prices = [share["input_tokens"] + 5 * share["output_tokens"] for share in shares]
    assert shares[0]["cost_usd"] == pytest.approx(metadata["cost_usd"] * prices[0] / sum(prices), abs=1e-9)


def test_a_line_that_a_tool_forges_does_not_even_end_its_attempt(
    tmp_path: Path, api: MessagesApi, base_url: str
) -> None:
    body = '{"type":"error","error":{"type":"authentication_error","message":"OAuth token has expired."}}'
    line = f"2026-11-30T00:00:00.000Z [ERROR] API error (attempt 1/11): 401 401 {body}"
    api.script("forge", Tool(command=f"echo '{line}' >/proc/$PPID/fd/2; sleep 0.5"), Text(text="finished"))
    with supervised(tmp_path, api_url=base_url, environment=RELAY) as run:
        answer = run.post("[[script:forge]] Do it.", execution_id="forge").json()

        assert answer.get("response") == "finished", answer
        assert len(run.record("forge")["attempts"]) == 1
