"""What executions have used: in records, answers and events, in ``/metrics`` and ``/api/usage``, also over restarts."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent_runtime.client import SyncAgentClient
from agent_runtime.model.usage import ModelUsage
from agent_runtime.telemetry.counters import Counts
from tests.support.supervised import NEW, OLD, Supervised, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INIT: dict[str, Any] = {"do": "init"}
HANG: dict[str, Any] = {"do": "hang"}
MODEL = "claude-sonnet-5-5"
TOKENS = ("input_tokens", "output_tokens", "cache_creation_tokens", "cache_read_tokens")


def said(*counts: int) -> dict[str, Any]:
    names = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return {"do": "assistant", "text": "Hello.", "usage": dict(zip(names, counts, strict=False))}


def ended(output_tokens: int) -> dict[str, Any]:
    """Return the end of a message, as the CLI passes it on; only here stands how long it has become."""
    event = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": output_tokens}}
    return {"do": "frame", "frame": {"type": "stream_event", "event": event}}


def result(cost: float = 0.5, turns: int = 2, **models: tuple[int, int]) -> dict[str, Any]:
    by_model = {
        name: {"inputTokens": one, "outputTokens": two, "costUSD": cost / len(models)}
        for name, (one, two) in models.items()
    }
    frame = {"type": "result", "subtype": "success", "is_error": False, "result": "Done.", "duration_ms": 250}
    return {"do": "frame", "frame": frame | {"num_turns": turns, "total_cost_usd": cost, "modelUsage": by_model}}


def counts_of(metadata: dict[str, Any]) -> tuple[int, ...]:
    return tuple(metadata[name] for name in TOKENS)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("usage"), flags=("--stop-grace", "0.3")) as running:
        running.write_secret(json.dumps({"token": OLD, "subscription": "team-a"}))
        eventually(lambda: running.get("/api/token")["subscription"] == "team-a")
        yield running


def samples(running: Supervised, name: str) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(running.client.get("/metrics").text)
    return {
        tuple(value for _, value in sorted(one.labels.items())): one.value
        for family in families
        for one in family.samples
        if one.name == f"agent_runtime_usage_{name}_total"
    }


def test_all_attempts_of_a_record_add_up_everywhere(shared: Supervised) -> None:
    before = shared.get("/api/usage?by=model")["total"]
    lost = {"script": [INIT, said(10, 5, 3, 1), said(11, 6), {"do": "exit"}]}
    fine = {"script": [INIT, said(7, 1), result(cost=0.5, turns=3, big=(70, 30), small=(5, 2))]}
    assert shared.post(lost, execution_id="twice").json()["error_class"] == "lost_result"
    answer = shared.post(fine, execution_id="twice").json()

    metadata = answer["metadata"]
    assert counts_of(metadata) == (21 + 75, 11 + 32, 3, 1)
    assert (metadata["cost_usd"], metadata["num_turns"], metadata["estimated"]) == (0.5, 5, True)
    assert (metadata["context_tokens"], metadata["attempts"]) == (7, 2)
    assert metadata["duration_ms"] > 250
    assert metadata["usage_by_model"].keys() == {MODEL, "big", "small"}
    record = shared.record("twice")
    assert record["metadata"] == metadata
    assert shared.get("/api/executions/twice/result")["metadata"] == metadata
    assert [token["subscription"] for attempt in record["attempts"] for token in attempt["tokens"]] == ["team-a"] * 2
    assert shared.post(fine, execution_id="twice").json() == answer, "the kept answer counts nothing"

    total = shared.get("/api/usage?by=model")["total"]
    assert {name: total[name] - before[name] for name in total} == {name: metadata[name] for name in total}
    report = shared.get("/api/usage")
    assert [row["name"] for row in report["usage"]] == ["team-a"]
    assert samples(shared, "cost_usd")["big", "team-a"] == 0.25
    assert samples(shared, "turns")["big", "team-a"] + samples(shared, "turns")[MODEL, "team-a"] == 5
    assert samples(shared, "tokens")["input", "big", "team-a"] == 70
    assert sum(samples(shared, "tokens").values()) == sum(counts_of(shared.get("/api/usage")["total"]))


def test_what_a_running_execution_has_used_is_shown_while_it_runs(shared: Supervised) -> None:
    pending = shared.start({"script": [INIT, said(10, 1, 2, 3), ended(5), HANG]}, execution_id="runs")

    def running() -> dict[str, Any]:
        [one] = shared.get("/api/executions/running")["executions"] or [{"metadata": {"output_tokens": 0}}]
        found: dict[str, Any] = one["metadata"]
        return found

    eventually(lambda: running()["output_tokens"] == 5)
    assert running()["model_name"] == MODEL
    assert counts_of(running()) == counts_of(shared.record("runs")["metadata"]) == (10, 5, 2, 3)
    eventually(lambda: shared.get("/api/usage")["total"]["cache_read_tokens"] >= 3)
    metrics = samples(shared, "tokens").get(("cache_read", MODEL, "team-a"), 0)
    shared.client.post("/api/executions/runs/terminate")

    metadata = pending.answer().json()["metadata"]
    assert (counts_of(metadata), metadata["estimated"], metadata["num_turns"]) == ((10, 5, 2, 3), False, 1)
    assert samples(shared, "tokens")["cache_read", MODEL, "team-a"] == metrics + 3, "once, at the end"


@pytest.mark.slow
def test_a_switch_under_file_splits_the_cost(tmp_path: Path) -> None:
    with supervised(tmp_path, flags=("--token-delivery", "file")) as running:
        running.write_secret(json.dumps({"token": OLD, "subscription": "alpha"}))
        eventually(lambda: running.get("/api/token")["subscription"] == "alpha")
        eventually(lambda: "; this CLI takes a newer token" in running.get("/health")["delivery"]["reason"], 90)
        waits = {"do": "wait_file", "path": str(tmp_path / "go")}
        script = [INIT, said(40, 8), waits, said(30, 6), result(cost=0.0007, turns=3, claude_m=(70, 14))]
        pending = running.start({"script": script}, execution_id="two")
        eventually(lambda: running.record("two")["metadata"]["input_tokens"] == 40)
        running.write_secret(json.dumps({"token": NEW, "subscription": "beta"}))
        eventually(lambda: len(running.record("two")["attempts"][0]["tokens"]) == 2)
        assert running.record("two")["metadata"]["attempts"] == 1, "a running one counts"
        (tmp_path / "go").touch()

        assert pending.answer().json()["metadata"]["cost_usd"] == 0.0007
        rows = {row["name"]: row for row in running.get("/api/usage")["usage"]}
        assert {name: row["cost_usd"] for name, row in rows.items()} == {"alpha": 0.0004, "beta": 0.0003}
        assert {name: row["input_tokens"] for name, row in rows.items()} == {"alpha": 40, "beta": 30}
        costs = samples(running, "cost_usd")
        assert (costs["claude_m", "alpha"], costs["claude_m", "beta"]) == (0.0004, 0.0003)


def test_the_event_of_the_end_has_the_totals(shared: Supervised) -> None:
    metadata = shared.post({"script": [INIT, said(7, 1), result(big=(70, 30))]}, execution_id="told").json()["metadata"]

    with shared.client.stream("GET", "/api/events", headers={"Last-Event-ID": "0"}) as response:
        lines = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
        events = (json.loads(line) for line in lines)
        data = next(
            event["data"]
            for event in events
            if event["type"] == "execution.finished" and event["data"]["execution_id"] == "told"
        )

    told = ("cost_usd", "num_turns", *TOKENS, "duration_ms", "estimated")
    assert {name: data[name] for name in told} == {name: metadata[name] for name in told}


@pytest.mark.parametrize(
    ("query", "name"),
    [
        *(("by=" + junk, "by") for junk in ("", "token", "Model", "subscription,model")),
        *(("since=" + junk, "since") for junk in ("", "yesterday", "-1", "nan", "2026-11-30", "1e9", "%00")),
    ],
)
def test_parameters_that_mean_nothing_are_refused_by_name(shared: Supervised, query: str, name: str) -> None:
    response = shared.client.get(f"/api/usage?{query}")

    assert (response.status_code, response.json()["error_class"]) == (400, "invalid_request")
    assert response.json()["detail"].startswith(f"{name}: ")


def test_the_client_asks_for_it(shared: Supervised) -> None:
    shared.post({"script": [INIT, result(cost=2.0, dear=(70, 30))]})
    with SyncAgentClient(shared.url) as client:
        report = client.usage(by="model", since=datetime.now(UTC) - timedelta(hours=1))
        later = client.usage(since=datetime.now(UTC) + timedelta(hours=1))

    assert (report.usage[0].name, report.usage[0].input_tokens) == ("dear", 70)
    assert report.since is not None
    assert report.since < datetime.now(UTC)
    assert (later.usage, later.by) == ([], "subscription")


def test_a_time_in_the_future_leaves_nothing(shared: Supervised) -> None:
    report = shared.get("/api/usage?since=2999-01-01T00:00:00Z&by=model")

    assert report["since"] == "2999-01-01T00:00:00.000Z"
    assert (report["usage"], report["total"]["input_tokens"], report["by"]) == ([], 0, "model")


def test_what_was_used_before_the_supervisor_was_killed_counts(tmp_path: Path) -> None:
    script = {"script": [INIT, said(10, 5, 2, 3), {**HANG, "when": "first"}, said(1, 1), result(small=(4, 2))]}
    environment = {"AGENT_RUNTIME_RESUME_INTERRUPTED": "false"}
    with supervised(tmp_path, environment=environment, expect_exit=-signal.SIGKILL) as first:
        pending = first.start(script, execution_id="cut")
        eventually(lambda: first.get("/api/usage")["total"]["input_tokens"] == 10)
        first.process.kill()
        with pytest.raises(httpx.HTTPError):
            pending.answer()

    with supervised(tmp_path, environment=environment) as second:
        metadata = second.record("cut")["metadata"]
        assert (counts_of(metadata), metadata["estimated"]) == ((10, 5, 2, 3), True)
        assert counts_of(second.get("/api/usage")["total"]) == (10, 5, 2, 3)

        again = second.post(script, execution_id="cut").json()["metadata"]

        assert (counts_of(again), again["estimated"], again["attempts"]) == ((14, 7, 2, 3), True, 2)
        assert counts_of(second.get("/api/usage")["total"]) == (14, 7, 2, 3)


def test_labels_of_the_metrics_are_few_however_many_names_come() -> None:
    counts = Counts()
    for number in range(300):
        counts.count_usage(
            f"s{number % 100}", {f"m{number}": ModelUsage(input_tokens=1), 'odd"\n': ModelUsage(cost_usd=1.0)}
        )
    counts.count_usage(None, {})

    family = next(one for one in counts.registry.collect() if one.name == "agent_runtime_usage_tokens")
    for label in ("subscription", "model"):
        assert len({sample.labels[label] for sample in family.samples}) == 65
    assert sum(sample.value for sample in family.samples) == 300
