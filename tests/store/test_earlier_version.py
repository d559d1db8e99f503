"""
What version 0.1.0 has left in its directories is joined, answered and resumed; it does not start on what this one left.

``tests/data/state-0.1.0`` was written by 0.1.0 (commit 7295ed3) with its scripted CLI under the token delivery ``env``:
four requests (``requests.json``), of which ``success`` succeeded, ``lost`` ended with ``lost_result``, ``turns`` with
``max_turns``, and the supervisor was killed while ``cut`` ran.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.model.task_reading import parse
from agent_runtime.store.tables import MIGRATIONS
from tests.support.supervised import Supervised, eventually, supervised

STATE = Path(__file__).parents[1] / "data/state-0.1.0"
REQUESTS: dict[str, dict[str, Any]] = json.loads((STATE / "requests.json").read_text())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Directories as 0.1.0 left them."""
    for name in ("config", "data"):
        shutil.copytree(STATE / name, tmp_path / name)
    return tmp_path


def post(running: Supervised, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = running.client.post("/api/task", json={"execution_id": name, **REQUESTS[name]}).json()
    return answer


def test_a_kept_answer_of_0_1_0_is_given_again_for_the_same_body_alone(home: Path) -> None:
    with supervised(home) as running:
        kept = running.get("/api/executions/success/result")["answer"]

        assert post(running, "success") == kept
        assert (kept["response"], len(running.record("success")["attempts"])) == ("Hello.", 1)
        assert running.post("x", execution_id="success").json()["error_class"] == "conflict"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lost", "turns", "cut"])
def test_an_execution_that_failed_under_0_1_0_goes_on_in_its_session(home: Path, name: str) -> None:
    with supervised(home) as running:
        before = running.record(name)

        answer = post(running, name)

        record = running.record(name)
        assert (answer["status"], answer["response"]) == ("success", "Resumed.")
        assert not (running.workspace / "tool-ran").exists(), "the tool call was finished"
        assert record["session_id"] == before["session_id"]
        assert [attempt["pid"] for attempt in record["attempts"]][:-1] == [one["pid"] for one in before["attempts"]]


@pytest.mark.slow
def test_what_0_1_0_had_running_goes_on_by_itself_and_is_joined_by_the_same_body(home: Path) -> None:
    with supervised(home, flags=("--resume-interrupted",)) as running:
        assert post(running, "cut")["response"] == "Resumed."

        record = eventually(lambda: (found := running.record("cut"))["outcome"] and found)
        assert (record["outcome"], len(record["attempts"])) == ("success", 2)


@pytest.mark.slow
def test_where_the_session_is_gone_it_begins_anew(home: Path) -> None:
    shutil.rmtree(home / "config")
    with supervised(home) as running:
        post(running, "lost")  # its script has the first process of a session end there

        record = running.record("lost")
        assert len(record["attempts"]) == 3
        assert record["metadata"]["session_restarted"] is True
        assert (running.workspace / "tool-ran").exists()


def test_the_digest_is_that_of_0_1_0_for_every_field_that_it_knew() -> None:
    known = {
        "message": "x",
        "model": "m",
        "system_prompt": "\u00e9",
        "allowed_tools": ["A"],
        "disallowed_tools": [],
        "max_turns": 3,
        "resume_session_id": "119fc5a3-9077-49b9-8b53-0279bf7c3381",
        "mcp_config": {"mcpServers": {"b": {"command": "x"}, "a": {"command": "y", "args": []}}},
        "images": [{"media_type": "image/png", "data": "aGk="}],
        "timeout_seconds": 3,
        "persist_session": False,
    }
    by_itself = "fa319e94f3cbcdfc8da21ca11afb16bd0d581f19f35420418d4b3f9703eabd5c"

    assert digest({"message": "x"}) == digest({"message": "x", "model": None, "fresh_session": True}) == by_itself
    assert digest(known) == "04418bec73f6c0f3a31445ab02b8184497ac1bd09ecb206720695c12182abcf8"


def digest(body: dict[str, Any]) -> str:
    return parse(json.dumps(body).encode(), strict=True)[0].digest


def test_0_1_0_is_told_by_the_version_of_the_file_that_it_cannot_read_it(home: Path) -> None:
    """It refuses a version above its own: 1. Tried with the code of commit 7295ed3: exit 3, "a later version"."""
    with supervised(home):
        pass

    with sqlite3.connect(home / "data/records.sqlite") as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    assert version == len(MIGRATIONS) > 1
