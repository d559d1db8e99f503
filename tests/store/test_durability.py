"""No execution is lost: asynchronous, kept, joined, resumed, accounted for after a restart."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.supervised import Supervised, eventually, marked_processes, supervised
from tests.system.test_executions import OK, events, holding

if TYPE_CHECKING:
    from pathlib import Path

SUMS = {"script": [{"do": "init"}, {"do": "assistant", "text": "Two."}, {"do": "result", "text": "Two."}]}


def interrupted_then_done(path: Path) -> dict[str, Any]:
    """Hang in the first process, and finish in the one that resumes it."""
    steps = [
        {"do": "init"},
        {"do": "assistant", "text": "Begun."},
        {"do": "touch", "path": str(path)},
        {"do": "hang", "when": "first"},
        {"do": "result", "text": "Resumed."},
    ]
    return {"script": steps}


def kill(running: Supervised) -> None:
    running.process.send_signal(signal.SIGKILL)
    running.process.wait(30)


@pytest.mark.parametrize("asked_by", ["field", "header"])
def test_a_task_is_accepted_and_its_answer_fetched_later(tmp_path: Path, asked_by: str) -> None:
    go = tmp_path / "go"
    with supervised(tmp_path) as running:
        body = {"message": json.dumps(holding(go)), "execution_id": "later"}
        if asked_by == "field":
            accepted = running.client.post("/api/task", json={**body, "async_result": True})
        else:
            accepted = running.client.post("/api/task", json=body, headers={"Prefer": "respond-async, wait=5"})

        assert accepted.status_code == 202
        assert accepted.headers["location"] == "/api/executions/later"
        assert accepted.json() == {"execution_id": "later", "status": "accepted"}
        assert running.client.get("/api/executions/later/result").status_code == 202
        go.touch()
        result = eventually(lambda: fetched(running, "later"))
        assert result["status_code"] == 200
        assert result["answer"] == running.client.post("/api/task", json=body).json()


def fetched(running: Supervised, execution_id: str) -> Any:
    response = running.client.get(f"/api/executions/{execution_id}/result")
    return response.json() if response.status_code == 200 else None


@pytest.mark.slow
def test_answers_records_and_streams_outlive_the_supervisor(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        answer = running.post(OK, execution_id="kept").json()
        record = running.record("kept")
    with supervised(tmp_path) as running:
        assert running.record("kept") == record
        assert running.post(OK, execution_id="kept").json() == answer
        assert running.get("/api/executions/kept/result")["answer"] == answer
        assert running.post(SUMS, execution_id="kept").json()["error_class"] == "conflict"
        assert running.client.get("/api/executions/unknown/result").json()["error_class"] == "not_found"
        with running.client.stream("GET", "/api/executions/kept/stream", headers={"Last-Event-ID": "1"}) as response:
            seen = list(events(response))
        assert [event["id"] for event in seen if event["event"] == "message"] == ["2", "3"]
        assert seen[-1]["event"] == "end"


@pytest.mark.slow
def test_a_killed_supervisor_leaves_nothing_unaccounted_for(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with supervised(tmp_path, expect_exit=None) as running:
        running.post(interrupted_then_done(begun), execution_id="cut", async_result=True)
        eventually(begun.exists)
        assert marked_processes("cut")
        kill(running)
    eventually(lambda: not marked_processes("cut"))

    with supervised(tmp_path) as running:
        assert running.record("cut")["state"] == "finished"
        assert running.record("cut")["error_class"] == "interrupted"
        stored = fetched(running, "cut")
        assert (stored["status_code"], stored["answer"]["error_class"]) == (500, "interrupted")
        lines = next((running.data_dir / "transcripts").glob("cut*.jsonl")).read_text().splitlines()

        answer = running.post(interrupted_then_done(begun), execution_id="cut").json()

        assert answer["response"] == "Resumed."
        first, second = running.record("cut")["attempts"]
        assert first["pid"] != second["pid"]
        assert running.record("cut")["created_at"] <= first["started_at"] <= second["started_at"]
        with running.client.stream("GET", "/api/executions/cut/stream") as response:
            ids = [int(event["id"]) for event in events(response) if event["event"] == "message"]
        assert ids == list(range(1, len(ids) + 1))
        assert len(ids) > len(lines)


@pytest.mark.slow
def test_interrupted_executions_go_on_by_themselves_where_that_is_set(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with supervised(tmp_path, expect_exit=None) as running:
        running.post(interrupted_then_done(begun), execution_id="cut", async_result=True)
        eventually(begun.exists)
        kill(running)

    with supervised(tmp_path, flags=("--resume-interrupted",)) as running:
        result = eventually(lambda: (found := fetched(running, "cut")) and found["status_code"] == 200 and found)
        assert result["answer"]["response"] == "Resumed."


@pytest.mark.slow
def test_a_rolling_restart_loses_nothing(tmp_path: Path) -> None:
    flags = ("--drain-timeout", "0.5", "--stop-grace", "0.3", "--slots", "4")
    names = [f"rolled-{n}" for n in range(6)]
    with supervised(tmp_path, flags=flags) as running:
        for name in names:
            running.post(interrupted_then_done(tmp_path / name), execution_id=name, async_result=True)
        eventually(lambda: sum((tmp_path / name).exists() for name in names) == 4)
        assert running.stop() == 0
    assert not any(marked_processes(name) for name in names)

    with supervised(tmp_path, flags=flags) as running:
        assert {running.record(name)["error_class"] for name in names} == {"interrupted"}
        pending = [running.start(interrupted_then_done(tmp_path / name), execution_id=name) for name in names]
        # The two that had not begun hang in their first process, as they are told to.
        answers = [one.answer().json() for one in pending[:4]]
        for name in names[4:]:
            running.client.post(f"/api/executions/{name}/terminate")
        assert [answer["response"] for answer in answers] == ["Resumed."] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "error_class", "second", "resumes"),
    [
        ([{"do": "init"}, {"do": "assistant", "text": "x"}, {"do": "kill", "when": "first"}], "signal", None, True),
        (
            [{"do": "init"}, {"do": "assistant", "text": "x"}, {"do": "exit", "when": "first"}],
            "lost_result",
            None,
            True,
        ),
        ([{"do": "init"}, {"do": "result", "is_error": True}, {"do": "exit"}], "error", None, False),
        ([{"do": "init"}, {"do": "kill"}], "signal", SUMS, False),
    ],
    ids=["killed", "lost", "failed otherwise", "another body"],
)
def test_after_a_failure_the_same_id_begins_a_new_attempt(
    tmp_path: Path, first: list[Any], error_class: str, second: dict[str, Any] | None, resumes: bool
) -> None:
    with supervised(tmp_path) as running:
        script = {"script": [*first, {"do": "report", "path": str(tmp_path / "report")}, {"do": "result", "text": "2"}]}
        assert running.post(script, execution_id="again").json()["error_class"] == error_class

        answer = running.post(second or script, execution_id="again").json()

        record = running.record("again")
        assert (record["outcome"], len(record["attempts"])) == (
            ("success", 2) if error_class != "error" else ("failed", 2)
        )
        if resumes:
            argv = json.loads((tmp_path / "report").read_text())["argv"]
            assert any(word.startswith("--resume=") for word in argv)
            assert answer["metadata"]["attempts"] == 2


def test_a_drain_can_be_called_off(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        assert running.client.post("/api/drain").json()["draining"] is True
        assert running.client.get("/readyz").json()["reason"] == "draining"
        assert running.post(OK).json()["error_class"] == "draining"

        assert running.client.delete("/api/drain").json()["draining"] is False
        assert running.post(OK).status_code == 200


@pytest.mark.slow
def test_an_answer_carries_the_start_the_end_and_the_result_of_a_long_transcript(tmp_path: Path) -> None:
    script = {"script": [{"do": "init"}, {"do": "flood", "bytes": 3_000_000}, {"do": "result", "text": "x"}]}
    with supervised(tmp_path, flags=("--answer-log-limit", "65536")) as running:
        answer = running.post(script).json()

        assert answer["truncated_log"] is True
        assert [answer["execution_log"][0]["subtype"], answer["execution_log"][-1]["type"]] == ["init", "result"]
        assert len(json.dumps(answer["execution_log"])) < 200_000
