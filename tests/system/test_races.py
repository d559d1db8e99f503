"""P12 and P13 with a real supervisor: one that was stopped for a while, and ends that come from all sides at once."""

from __future__ import annotations

import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.supervised import QUICK_CLI, eventually, marked_processes, supervised

if TYPE_CHECKING:
    from pathlib import Path

STOPPED_SECONDS = 5
SILENCE_SECONDS = 4


def phases(here: dict[str, Any], lives_on: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Reach each of the four silences, say so, and then give a sign of life every second."""
    pause: dict[str, Any] = {"do": "sleep", "seconds": 1}
    said = {"do": "assistant", "text": "x"}
    begun = {"do": "tool_use", "command": "make"}
    ended = {"do": "tool_result", "content": "done"}
    goes_on = [step for _ in range(STOPPED_SECONDS - 2) for step in (pause, said)]
    return {
        "init": [here, pause, {"do": "init"}, pause, said, *goes_on, *lives_on],
        "first-message": [{"do": "init"}, here, pause, said, pause, said, *goes_on, *lives_on],
        "idle": [{"do": "init"}, said, here, pause, said, pause, said, *goes_on, *lives_on],
        "tool": [{"do": "init"}, said, begun, here, pause, ended, pause, said, *goes_on, *lives_on],
    }


@pytest.mark.slow
def test_a_supervisor_that_was_stopped_for_five_seconds_ends_nobody_for_it(tmp_path: Path) -> None:
    here = {"do": "touch", "path": str(tmp_path / "here")}
    there = {"do": "touch", "path": str(tmp_path / "there")}
    lives_on = [there, {"do": "wait_file", "path": str(tmp_path / "go")}, {"do": "result", "text": "Done."}]
    scripts = phases(here, lives_on)
    # Its time is over while nobody looks, but it has ended long before.
    scripts["in-time"] = [{"do": "init"}, here, {"do": "sleep", "seconds": 0.5}, {"do": "result", "text": "Done."}]
    silences = ("--init-timeout", "--first-message-timeout", "--idle-timeout", "--tool-timeout")
    flags = [word for name in silences for word in (name, str(SILENCE_SECONDS))]
    with supervised(tmp_path, flags=("--slots", "8", *flags)) as running:
        for name, script in scripts.items():
            total = {"timeout_seconds": SILENCE_SECONDS} if name == "in-time" else {}
            running.post({"script": script}, execution_id=name, async_result=True, **total)
        eventually(lambda: count_of(tmp_path / "here") == len(scripts))
        running.process.send_signal(signal.SIGSTOP)
        eventually(lambda: count_of(tmp_path / "there") == len(scripts) - 1)  # which takes them five seconds
        running.process.send_signal(signal.SIGCONT)
        (tmp_path / "go").touch()

        for name in scripts:
            eventually(lambda name=name: running.record(name)["state"] == "finished")  # type: ignore[misc]
            record = running.record(name)
            assert (record["outcome"], record["error_class"]) == ("success", None), record
            [attempt] = record["attempts"]
            assert (attempt["stop_reason"], attempt["exit_code"]) == (None, 0)


def count_of(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
def test_a_stop_at_any_moment_from_two_sides_is_idempotent_and_leaves_one_final_state(tmp_path: Path) -> None:
    rng = random.Random(20261122)
    times = 200
    outcomes: set[str] = set()
    with (
        supervised(tmp_path, claude=QUICK_CLI, flags=("--token-delivery", "env", "--log-level", "info")) as running,
        ThreadPoolExecutor(3) as pool,
        httpx.Client(base_url=running.url, timeout=60, trust_env=False) as client,
    ):

        def terminate(name: str, after_seconds: float) -> dict[str, Any]:
            threading.Event().wait(after_seconds)
            answer: dict[str, Any] = client.post(f"/api/executions/{name}/terminate").json()
            return answer

        for number in range(times):
            name = f"x-{number}"
            accepted = running.post("x", execution_id=name, async_result=True)
            assert accepted.status_code == 202
            # From before the spawn until after the natural end.
            moment = rng.uniform(0, 0.05)
            stops = [pool.submit(terminate, name, moment + extra) for extra in (0, rng.choice([0, 0.005]))]
            told = [stop.result(60) for stop in stops]
            record = running.record(name)
            answer = running.get(f"/api/executions/{name}/result")
            again = terminate(name, 0)

            assert {one["status"] for one in told} <= {"terminated", "already_finished"}, told
            assert again["status"] == "already_finished"
            assert record["state"] == "finished"
            assert record["outcome"] in ("success", "cancelled")
            assert len(record["attempts"]) <= 1
            assert answer["answer"]["status"] == record["outcome"]
            assert (running.record(name), running.get(f"/api/executions/{name}/result")) == (record, answer)
            outcomes.add(record["outcome"])
        assert outcomes == {"success", "cancelled"}
        assert running.get("/health")["slots"]["busy"] == 0
        assert not any(marked_processes(f"x-{number}") for number in range(times))
