"""Answers that are kept: the same taken apart, in the form that is set now, also those of an earlier version."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.client import ClientError, SyncAgentClient
from tests.support.described import Description
from tests.support.supervised import OLD, Supervised, eventually, fails, supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

INIT: dict[str, Any] = {"do": "init"}
TEXT: dict[str, Any] = {"do": "assistant", "text": "Hello.", "usage": {"input_tokens": 7, "output_tokens": 5}}
OK = {"script": [INIT, TEXT, {"do": "result", "text": "Hello."}]}
LOST = {"script": [INIT, TEXT, {"do": "exit"}]}
TURNS = {"script": [INIT, TEXT, {"do": "result", "is_error": True, "fields": {"subtype": "error_max_turns"}}]}
DEAD = {"script": [INIT, {"do": "api_error", "status": 401}, {"do": "hang"}]}
HANG = {"script": [INIT, TEXT, {"do": "hang"}]}
OBJECT = {"AGENT_RUNTIME_ERROR_DETAIL": "object"}
PARTS = {"message", "error_code", "error_class", "metadata", "execution_log"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("text"), flags=("--stop-grace", "0.3", "--park", "0")) as running:
        yield running


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    flags = ("--stop-grace", "0.3", "--park", "0", "--slots", "1", "--queue", "0")
    with supervised(tmp_path_factory.mktemp("object"), environment=OBJECT, flags=flags) as running:
        yield running


def holding(said: Path) -> dict[str, Any]:
    """Say hello, write that into a file, and hang."""
    return {"script": [INIT, TEXT, {"do": "touch", "path": str(said)}, {"do": "hang"}]}


def types(frames: list[dict[str, Any]]) -> list[str]:
    return [frame["type"] for frame in frames]


def test_the_result_of_a_success_is_taken_apart(shared: Supervised) -> None:
    answer = shared.post(OK, execution_id="good").json()

    result = shared.get("/api/executions/good/result")

    assert (result["status_code"], result["answer"], result["status"]) == (200, answer, "success")
    for name in ("execution_id", "response", "metadata", "execution_log", "session_id", "truncated_log"):
        assert result[name] == answer[name]
    assert (result["error"], result["error_code"], result["terminal_reason"]) == (None, None, "completed")


@pytest.mark.parametrize(
    ("script", "fields", "error_class"),
    [(LOST, {}, "lost_result"), (TURNS, {}, "max_turns"), (HANG, {"timeout_seconds": 2}, "timeout")],
)
def test_the_result_of_a_failure_has_its_log_and_its_session(
    shared: Supervised, script: dict[str, Any], fields: dict[str, Any], error_class: str
) -> None:
    answer = shared.post(script, execution_id=error_class, **fields).json()

    result = shared.get(f"/api/executions/{error_class}/result")

    assert (result["status"], result["answer"], result["response"]) == ("failed", answer, None)
    assert (result["error_code"], result["terminal_reason"], result["error"]) == (
        *(error_class, error_class),
        answer["detail"],
    )
    assert types(result["execution_log"])[:2] == ["system", "assistant"]
    assert result["session_id"] == result["metadata"]["session_id"] == shared.record(error_class)["session_id"]
    assert (result["metadata"]["input_tokens"], result["truncated_log"]) == (7, False)


def test_the_result_of_one_that_was_cancelled_is_no_failure(shared: Supervised, tmp_path: Path) -> None:
    pending = shared.start(holding(tmp_path / "said"), execution_id="cancelled")
    eventually((tmp_path / "said").exists)
    assert shared.client.get("/api/executions/cancelled/result").status_code == 202
    shared.client.post("/api/executions/cancelled/terminate")
    pending.answer()

    result = shared.get("/api/executions/cancelled/result")

    assert (result["status"], result["terminal_reason"]) == ("cancelled", "cancelled")
    assert (result["error"], result["error_code"], result["response"]) == (None, None, None)
    assert types(result["execution_log"])[:2] == ["system", "assistant"]


def test_a_log_that_does_not_fit_says_so(tmp_path: Path) -> None:
    with supervised(tmp_path, flags=("--answer-log-limit", "4000")) as running:
        running.post({"script": [INIT, *[TEXT] * 40, {"do": "exit"}]}, execution_id="long")

        result = running.get("/api/executions/long/result")
        assert result["truncated_log"] is True
        assert 0 < len(json.dumps(result["execution_log"])) < 6000


def test_an_error_is_an_object_where_it_was_set_so(objects: Supervised) -> None:
    description = Description(objects.get("/openapi.json"))
    answer = description.check(objects.post(LOST, execution_id="lost"))

    problem = answer.json()
    detail = problem["detail"]
    assert (answer.status_code, set(detail)) == (502, PARTS)
    assert (detail["error_code"], detail["error_class"], problem["error_class"]) == ("lost_result",) * 3
    assert detail["message"].startswith("the CLI ended without a result")
    assert detail["metadata"] == problem["metadata"]
    assert detail["metadata"]["session_id"] == objects.record("lost")["session_id"]
    assert types(detail["execution_log"]) == ["system", "assistant"]
    result = description.check(objects.client.get("/api/executions/lost/result")).json()
    assert (result["answer"], result["error"]) == (problem, detail["message"])
    assert objects.record("lost")["detail"] == detail["message"]


def test_all_waiting_callers_get_the_object(objects: Supervised, tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = {"script": [INIT, TEXT, {"do": "wait_file", "path": str(go)}, {"do": "exit"}]}
    callers = [objects.start(script, execution_id="joined")]
    eventually(lambda: objects.client.get("/api/executions/joined").is_success)
    callers.append(objects.start(script, execution_id="joined"))
    eventually(lambda: objects.get("/api/health")["connections"]["open"] >= 3)
    go.touch()

    first, second = (caller.answer().json() for caller in callers)
    assert first == second
    assert types(first["detail"]["execution_log"]) == ["system", "assistant"]


def refusals(running: Supervised) -> Iterator[httpx.Response]:
    ask = running.client.request
    pending = running.start(HANG, execution_id="held")
    eventually(lambda: running.get("/api/executions/running")["executions"])
    yield running.post(OK)  # busy
    yield running.post(OK, execution_id="held")  # conflict
    yield ask("POST", "/api/task", content=b"{")
    yield running.post("x", max_turns="many")
    yield ask("GET", "/api/executions/unknown")
    yield ask("GET", "/nowhere")
    yield ask("DELETE", "/api/task")
    yield ask("POST", "/api/task", content=b" " * (17 << 20))
    yield ask("GET", "/livez", headers={"X-Long": "x" * 70_000})  # refused before there is a request
    ask("POST", "/api/drain")
    yield running.post(OK)  # draining
    ask("DELETE", "/api/drain")
    ask("POST", "/api/executions/held/terminate")
    pending.answer()


def test_a_refusal_is_an_object_too(objects: Supervised) -> None:
    seen = []
    for response in refusals(objects):
        problem = response.json()
        detail = problem["detail"]
        assert set(detail) == PARTS, problem
        assert (detail["error_class"], detail["error_code"]) == (problem["error_class"],) * 2
        assert isinstance(detail["message"], str)
        assert detail["metadata"]["context_window"] > 0
        assert (detail["metadata"]["cost_usd"], detail["metadata"]["input_tokens"], detail["execution_log"]) == (
            0,
            0,
            [],
        )
        seen.append(problem["error_class"])

    assert seen[:2] == ["busy", "conflict"]
    assert {"invalid_request", "not_found", "method", "too_large", "draining"} < set(seen)


@pytest.mark.slow
def test_the_code_of_an_answer_that_is_not_kept_is_in_the_object_too(tmp_path: Path) -> None:
    with supervised(tmp_path) as first:
        first.post(OK, execution_id="forgotten")
    with closing(sqlite3.connect(tmp_path / "data" / "records.sqlite")) as database:
        database.execute("DELETE FROM answers")
        database.commit()
    with supervised(tmp_path, environment=OBJECT) as second:
        problem = second.client.get("/api/executions/forgotten/result").json()

        assert (problem["code"], problem["detail"]["code"]) == ("no_retained_result",) * 2
        with SyncAgentClient(second.url) as agent, fails("not_found") as raised:
            agent.result("forgotten")
        assert raised.value.problem.code == "no_retained_result"


@pytest.mark.slow
def test_a_token_that_is_refused_is_told_as_an_object_at_admission_too(tmp_path: Path) -> None:
    with supervised(tmp_path, environment=OBJECT, flags=("--park", "0", "--probe", "off")) as running:
        met, turned_away = running.post(DEAD), running.post(OK)

        for response in (met, turned_away):
            assert (response.status_code, response.json()["detail"]["error_code"]) == (503, "auth")
            assert response.json()["detail"]["metadata"]["token_generation"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [({}, OBJECT), (OBJECT, {})], ids=["to object", "to text"])
def test_what_is_kept_takes_the_form_that_is_set_after_a_restart(
    tmp_path: Path, before: dict[str, str], after: dict[str, str]
) -> None:
    with supervised(tmp_path, environment=before) as first:
        first.post(LOST, execution_id="lost")
        first.post(OK, execution_id="good")
        good, was = first.get("/api/executions/good/result"), first.get("/api/executions/lost/result")
    with supervised(tmp_path, environment=after) as second:
        now = second.get("/api/executions/lost/result")

        assert second.get("/api/executions/good/result") == good
        assert second.post(OK, execution_id="good").json() == good["answer"]
        assert {**now, "answer": None} == {**was, "answer": None}
        forms = [result["answer"]["detail"] for result in (was, now)]
        text, shown = forms if before == {} else forms[::-1]
        assert (text, text) == (shown["message"], was["error"])
        assert types(shown["execution_log"]) == ["system", "assistant"]


@pytest.mark.slow
def test_an_interrupted_execution_is_answered_in_the_form_that_is_set(tmp_path: Path) -> None:
    with supervised(tmp_path, environment=OBJECT, expect_exit=None) as first:
        first.post(holding(tmp_path / "said"), execution_id="cut-off", async_result=True)
        eventually((tmp_path / "said").exists)
        first.process.kill()
    with supervised(tmp_path, environment=OBJECT) as second:
        result = second.get("/api/executions/cut-off/result")

        assert (result["status"], result["error_code"]) == ("failed", "interrupted")
        assert result["answer"]["detail"]["error_class"] == "interrupted"
        assert result["execution_log"] == result["answer"]["detail"]["execution_log"]
        assert "cut-off" in second.get("/api/executions/running")["recently_completed_ids"]


# -- what an earlier version has kept


def made_older(home: Path) -> None:
    """Turn what is kept into what 0.1.0 wrote: counts that may be null, no session in the metadata."""
    with closing(sqlite3.connect(home / "data" / "records.sqlite")) as database:
        for table, column in (("executions", "record"), ("answers", "answer")):
            query = f"SELECT execution_id, {column} FROM {table}"  # noqa: S608 - of the names above
            for execution_id, text in database.execute(query).fetchall():
                kept = json.loads(text)
                metadata = kept["metadata"]
                for name in ("cost_usd", "input_tokens", "cache_read_tokens", "context_window"):
                    metadata[name] = None
                for name in ("session_id", "compact_events", "background_tasks_pending_at_exit"):
                    del metadata[name]
                update = f"UPDATE {table} SET {column} = ? WHERE execution_id = ?"  # noqa: S608 - of the names above
                database.execute(update, (json.dumps(kept).encode(), execution_id))
        database.commit()


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, OBJECT], ids=["text", "object"])
def test_answers_of_an_earlier_version_are_shown_as_they_are_now(tmp_path: Path, environment: dict[str, str]) -> None:
    with supervised(tmp_path) as first:
        for execution_id, script in (("good", OK), ("lost", LOST)):
            first.post(script, execution_id=execution_id)
    made_older(tmp_path)
    with supervised(tmp_path, environment=environment) as second:
        good, lost = (second.get(f"/api/executions/{name}/result") for name in ("good", "lost"))
        again = second.post(OK, execution_id="good").json()

        for metadata in (good["metadata"], lost["metadata"], again["metadata"], lost["answer"]["metadata"]):
            assert (metadata["input_tokens"], metadata["context_window"], metadata["compact_events"]) == (
                0,
                200_000,
                [],
            )
        assert good["answer"] == again
        assert (good["response"], types(good["execution_log"])[-1]) == ("Hello.", "result")
        assert (lost["error_code"], types(lost["execution_log"])) == ("lost_result", ["system", "assistant"])
        assert lost["metadata"]["session_id"] == lost["session_id"] is not None


# -- the client


@pytest.mark.parametrize("form", ["shared", "objects"])
def test_the_client_reads_both_forms(form: str, request: pytest.FixtureRequest) -> None:
    running: Supervised = request.getfixturevalue(form)
    with SyncAgentClient(running.url) as agent:
        errors: list[ClientError] = []
        calls: list[tuple[str, Callable[[], object]]] = [
            ("lost_result", lambda: agent.run(json.dumps(LOST), execution_id="asked")),
            ("lost_result", lambda: agent.result("asked")),
            ("max_turns", lambda: agent.run(json.dumps(TURNS))),
            ("invalid_request", lambda: agent.run("x", max_turns=0)),
            ("not_found", lambda: agent.result("unknown")),
        ]
        for error_class, call in calls:
            with fails(error_class) as raised:
                call()
            errors.append(raised.value)

    assert (
        str(errors[0])
        == str(errors[1])
        == "the CLI ended without a result; send the same execution_id again to go on: exit code 0"
    )
    assert errors[0].problem.metadata is not None
    assert errors[0].problem.metadata["input_tokens"] == 7
    assert "max_turns" in str(errors[3])


@pytest.mark.slow
def test_the_client_reads_the_refusal_of_a_token_in_both_forms(tmp_path: Path) -> None:
    for environment in ({}, OBJECT):
        home = tmp_path / str(len(environment))
        home.mkdir()
        with supervised(home, environment=environment, flags=("--park", "0", "--probe", "off")) as running:
            with SyncAgentClient(running.url) as agent, fails("auth", match="refused the token"):
                agent.run(json.dumps(DEAD))
            running.write_token(OLD.replace("old", "new"))


# -- what ended lately


@pytest.mark.slow
def test_what_ended_before_a_restart_is_known_as_completed(tmp_path: Path) -> None:
    with supervised(tmp_path) as first:
        for number in range(3):
            first.post(OK if number else LOST, execution_id=f"ended-{number}")
    with closing(sqlite3.connect(tmp_path / "data" / "records.sqlite")) as database:
        long_ago = time.time() - 16 * 60
        database.execute("UPDATE executions SET ended_at = ? WHERE execution_id = 'ended-1'", (long_ago,))
        database.commit()

    with supervised(tmp_path) as second:
        assert second.get("/api/executions/running")["recently_completed_ids"] == ["ended-0", "ended-2"]
        second.post(LOST, execution_id="ended-0")
        assert second.get("/api/executions/running")["recently_completed_ids"] == ["ended-2", "ended-0"]
