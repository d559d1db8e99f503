"""What an execution has used, as backends add it up: every count is a number, from the first moment on and for ever."""

from __future__ import annotations

import json
import sqlite3
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from agent_runtime.claude.frame_repair import read_frame
from agent_runtime.claude.run_stats import RunStats
from agent_runtime.model.records import COMPACT_EVENTS_KEPT, ExecutionRecord, Metadata, context_window_of, read_record
from tests.support.supervised import Supervised, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COUNTS = (
    *("cost_usd", "duration_ms", "num_turns", "tool_count", "input_tokens", "output_tokens", "cache_creation_tokens"),
    *("cache_read_tokens", "context_window", "background_tasks_pending_at_exit", "attempts", "resumes"),
)
INIT: dict[str, Any] = {"do": "init"}
HANG = {"script": [INIT, {"do": "hang"}]}


def tallied(*frames: dict[str, Any]) -> RunStats:
    run_stats = RunStats()
    for frame in frames:
        decoded = read_frame(json.dumps(frame).encode())
        assert decoded is not None
        run_stats.add(decoded)
    return run_stats


def boundary(**told: Any) -> dict[str, Any]:
    """Return the frame as all versions from 1.0.128 to 2.1.332 print it; what it tells differs."""
    return {"type": "system", "subtype": "compact_boundary", "session_id": "x", "uuid": "y", "compact_metadata": told}


def result(**told: Any) -> dict[str, Any]:
    frame = {"type": "result", "subtype": "success", "is_error": False, "result": "Done."}
    return {"do": "frame", "frame": frame | told}


def assert_counts(metadata: dict[str, Any]) -> None:
    for name in COUNTS:
        assert isinstance(metadata[name], int | float), f"{name}: {metadata[name]}"
    assert metadata["context_window"] > 0
    assert isinstance(metadata["compact_events"], list)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("metadata"), flags=("--stop-grace", "0.3")) as running:
        yield running


@pytest.mark.parametrize(
    ("script", "fields"),
    [
        ([INIT, {"do": "exit"}], {}),
        ([{"do": "kill"}], {}),
        ([INIT, {"do": "hang"}], {"timeout_seconds": 0.5}),
        ([INIT, result(usage=None, num_turns=None, total_cost_usd=None)], {}),
        ([INIT, result(modelUsage={}, duration_ms=None, session_id=None)], {}),
        ([INIT, result(total_cost_usd=-1, duration_ms=1e300, num_turns=-5)], {}),
    ],
    ids=["no result", "killed", "timeout", "nulls", "no usage", "numbers that are no counts"],
)
def test_every_count_of_an_answer_is_a_number(shared: Supervised, script: list[Any], fields: dict[str, Any]) -> None:
    answer = shared.post({"script": script}, **fields).json()

    assert answer.get("status") == "success" or answer["error_class"] in ("lost_result", "signal", "timeout"), answer
    assert "unknown" not in answer.get("detail", "")
    assert_counts(answer["metadata"])
    record = shared.record(answer["execution_id"])
    assert_counts(record["metadata"])
    assert record["metadata"]["session_id"] == record["session_id"]
    assert_counts(shared.get(f"/api/executions/{answer['execution_id']}/status")["metadata"])


def test_a_cancelled_execution_and_one_that_waits_have_counts_too(shared: Supervised) -> None:
    pending = shared.start(HANG, execution_id="cancelled", model="opus[1m]")
    [running] = eventually(lambda: shared.get("/api/executions/running")["executions"])
    assert_counts(running["metadata"])
    shared.client.post("/api/executions/cancelled/terminate")

    metadata = pending.answer().json()["metadata"]
    assert_counts(metadata)
    assert (metadata["context_window"], metadata["input_tokens"]) == (1_000_000, 0)
    assert metadata["session_id"] == shared.record("cancelled")["session_id"]
    for record in shared.get("/api/executions")["executions"]:
        assert_counts(record["metadata"])


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        (None, 200_000),
        ("sonnet", 200_000),
        ("opus[1m]", 1_000_000),
        ("claude-opus-4-8[1M]", 1_000_000),
        ("claude-sonnet-4-5-20250929", 200_000),
        ("1m", 200_000),
    ],
)
def test_the_context_window_is_what_the_name_of_the_model_says(model: str | None, tokens: int) -> None:
    assert context_window_of(model) == tokens


def usage_of(**windows: int) -> dict[str, Any]:
    return {"type": "result", "modelUsage": {name: {"contextWindow": size} for name, size in windows.items()}}


@pytest.mark.parametrize(
    ("model", "windows", "tokens"),
    [
        ("big", {"small": 200_000, "big": 1_000_000}, 1_000_000),
        ("small", {"small": 200_000, "big": 1_000_000}, 200_000),
        ("small", {"small-20250929": 200_000, "big": 1_000_000}, 200_000),
        ("unknown", {"small": 200_000, "big": 1_000_000}, 1_000_000),
        ("big", {"big": 0}, None),
        ("big", {}, None),
        ("big[1m]", {}, 1_000_000),
    ],
)
def test_the_context_window_is_that_of_the_model_that_answered(
    model: str, windows: dict[str, int], tokens: int | None
) -> None:
    run_stats = tallied({"type": "system", "subtype": "init", "model": model}, usage_of(**windows))

    assert run_stats.usage.context_window == tokens


@pytest.mark.parametrize(
    ("frame", "seen"),
    [
        (boundary(trigger="auto", pre_tokens=167412), ("auto", 167412, None, None)),
        (
            boundary(
                trigger="manual", pre_tokens=9, post_tokens=3, duration_ms=31, preserved_segment={"head_uuid": "x"}
            ),
            ("manual", 9, 3, 31),
        ),
        (boundary(), (None, None, None, None)),
        (boundary(trigger="<script>", pre_tokens="many"), (None, None, None, None)),
        ({"type": "system", "subtype": "compact_boundary"}, (None, None, None, None)),
        ({"type": "system", "subtype": "compact_boundary", "compact_metadata": []}, (None, None, None, None)),
    ],
)
def test_each_time_the_cli_sums_a_conversation_up_is_told(frame: dict[str, Any], seen: tuple[Any, ...]) -> None:
    [event] = tallied(frame).compact_events

    assert (event.trigger, event.pre_tokens, event.post_tokens, event.duration_ms) == seen


def test_what_is_told_of_summing_up_is_bounded_and_adds_up_over_attempts(shared: Supervised) -> None:
    flood = [{"do": "frame", "frame": boundary(trigger="auto", pre_tokens=1), "times": COMPACT_EVENTS_KEPT + 5}]
    one = {"do": "frame", "frame": boundary(trigger="auto", pre_tokens=2, post_tokens=1)}
    lost: dict[str, Any] = {"do": "exit", "when": "first"}
    text: dict[str, Any] = {"do": "assistant", "text": "Hello."}

    flooded = shared.post({"script": [INIT, *flood, {"do": "result"}]}).json()
    task = {"script": [INIT, one, text, lost, one, {"do": "result"}]}
    assert shared.post(task, execution_id="summed-up").json()["error_class"] == "lost_result"
    twice = shared.post(task, execution_id="summed-up").json()

    assert len(flooded["metadata"]["compact_events"]) == COMPACT_EVENTS_KEPT
    event = {"trigger": "auto", "pre_tokens": 2, "post_tokens": 1, "duration_ms": None}
    assert twice["metadata"]["compact_events"] == [event, event]


def test_statistics_that_are_final_hold_no_line_of_the_output() -> None:
    run_stats = RunStats()
    message = {"content": [{"type": "text", "text": "x" * 10_000}]}
    line = json.dumps({"type": "assistant", "message": message}).encode()
    references = sys.getrefcount(line)
    frame = read_frame(line)
    assert frame is not None
    run_stats.add(frame)
    del frame
    assert sys.getrefcount(line) > references  # its text may become the answer

    run_stats.answer.redact(str)

    assert sys.getrefcount(line) == references


def test_background_tasks_that_had_not_ended_are_counted(shared: Supervised) -> None:
    changed = {"type": "system", "subtype": "background_tasks_changed", "tasks": [{"task_id": "a"}, {"task_id": "b"}]}
    left = shared.post({"script": [INIT, {"do": "frame", "frame": changed}, {"do": "exit"}]}).json()
    none = {**changed, "tasks": []}
    steps = [INIT, {"do": "frame", "frame": changed}, {"do": "frame", "frame": none}, {"do": "result"}]
    ended = shared.post({"script": steps}).json()

    assert left["metadata"]["background_tasks_pending_at_exit"] == 2
    assert ended["metadata"]["background_tasks_pending_at_exit"] == 0


OF_0_1_0: dict[str, Any] = {
    **dict.fromkeys(("cost_usd", "duration_ms", "num_turns", "input_tokens", "output_tokens")),
    **dict.fromkeys(("cache_creation_tokens", "cache_read_tokens", "context_window")),
    **dict.fromkeys(("model_name", "token_generation", "token_fingerprint", "cli_version")),
    "tool_count": 0,
    "attempts": 1,
    "resumes": 0,
    "ignored_fields": [],
    "retained": True,
}
"""``metadata`` as version 0.1.0 wrote it of an execution that ended before the model said anything."""


@pytest.mark.parametrize(
    ("written", "window"),
    [
        (OF_0_1_0, 200_000),
        (OF_0_1_0 | {"model_name": "claude-opus-4-6[1m]"}, 1_000_000),
        (OF_0_1_0 | {"context_window": 400_000, "model_name": "x[1m]", "cost_usd": 0.5}, 400_000),
    ],
)
def test_a_record_of_an_earlier_version_is_read_with_counts(written: dict[str, Any], window: int) -> None:
    record = {"execution_id": "old", "state": "finished", "created_at": 1.0, "session_id": "s", "metadata": written}

    read = read_record(json.dumps(record).encode())

    assert (read.metadata.context_window, read.metadata.input_tokens) == (window, 0)
    assert (read.metadata.cost_usd, read.metadata.session_id) == (written["cost_usd"] or 0.0, "s")


def test_what_is_no_record_is_no_record() -> None:
    for damaged in (
        b"",
        b"[]",
        b"{}",
        b'{"metadata": null}',
        b'{"metadata": 1}',
        b'{"execution_id": 1, "metadata": {}}',
    ):
        with pytest.raises(msgspec.DecodeError):
            read_record(damaged)


def test_records_of_an_earlier_version_are_shown_with_counts(tmp_path: Path) -> None:
    with supervised(tmp_path) as first:
        first.post({"script": [INIT, {"do": "exit"}]}, execution_id="old")
    with sqlite3.connect(next((tmp_path / "data").glob("*.sqlite*"))) as database:
        (text,) = database.execute("SELECT record FROM executions").fetchone()
        record = json.loads(text) | {"metadata": OF_0_1_0}
        database.execute("UPDATE executions SET record = ?", (json.dumps(record).encode(),))
    database.close()

    with supervised(tmp_path) as second:
        assert_counts(second.record("old")["metadata"])
        assert_counts(second.get("/api/executions")["executions"][0]["metadata"])
        again = second.post({"script": [INIT, {"do": "result"}]}, execution_id="old")
        assert again.status_code == 200, again.text
        assert_counts(again.json()["metadata"])


def test_a_new_record_has_no_null_count() -> None:
    assert_counts(json.loads(msgspec.json.encode(Metadata())))
    assert ExecutionRecord(execution_id="x", created_at=0.0).metadata.context_window == 200_000
