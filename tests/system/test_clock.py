"""P15: the wall clock moved by an hour, to either side, while an execution runs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agent_runtime.model.records import ExecutionRecord
from agent_runtime.model.state import Outcome, Phase
from agent_runtime.settings import Settings
from agent_runtime.store.records import RecordStore
from agent_runtime.store.tasks import TaskStore
from agent_runtime.store.transcripts import TranscriptStore
from agent_runtime.store.workspaces import Workspaces
from agent_runtime.supervisor.archive import Archive
from agent_runtime.telemetry.redaction import Redactor
from agent_runtime.tokens.status import UNKNOWN_LIMIT_SECONDS, Limit
from tests.support.supervised import eventually, supervised

PROGRAM = (str(Path(__file__).parents[1] / "support/jumping_supervisor.py"),)
LIMITS = ("--init-timeout", "20", "--first-message-timeout", "20", "--idle-timeout", "20", "--timeout", "60")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_clock_that_is_moved_ends_nothing_and_spares_nothing(tmp_path: Path, seconds: int) -> None:
    jump, begun, go = tmp_path / "jump", tmp_path / "begun", tmp_path / "go"
    script = [{"do": "init"}, {"do": "touch", "path": str(begun)}, {"do": "wait_file", "path": str(go)}]
    environment = {"JUMP_FILE": str(jump)}
    with supervised(tmp_path, flags=LIMITS, environment=environment, program=PROGRAM) as running:
        pending = running.start({"script": [*script, {"do": "result", "text": "in time"}]}, execution_id="moved")
        eventually(begun.exists)
        jump.write_text(str(seconds))
        silent = running.start({"script": [{"do": "init"}, {"do": "hang"}]}, execution_id="late", timeout_seconds=1)

        assert silent.answer().json()["error_class"] == "timeout"
        go.touch()

        assert pending.answer().json()["response"] == "in time"
        moved = running.record("late")["created_at"] > running.record("moved")["created_at"]
        assert moved == (seconds > 0), "or the clock was not moved at all"


YEAR_SECONDS = 366 * 86400.0
MONTH_SECONDS = 30 * 86400.0


@pytest.mark.parametrize(("at_start", "later"), [(0.0, YEAR_SECONDS), (YEAR_SECONDS, 0.0)], ids=["ahead", "back"])
def test_a_clock_that_is_set_deletes_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_start: float, later: float
) -> None:
    right = time.time
    with RecordStore(tmp_path / "records.sqlite") as records, monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: right() + at_start)
        settings = Settings(workspace=tmp_path, retain_age=MONTH_SECONDS, retain_bytes=1 << 40)
        tasks, workspaces = TaskStore(tmp_path / "tasks", Redactor()), Workspaces(settings, tmp_path)
        archive = Archive(records, TranscriptStore(tmp_path / "t"), tasks, workspaces, settings)
        for name, age in (("new", 0.0), ("old", 2 * YEAR_SECONDS)):
            at = right() - age
            records.save(
                ExecutionRecord(
                    execution_id=name, created_at=at, ended_at=at, state=Phase.FINISHED, outcome=Outcome.SUCCESS
                )
            )
        patched.setattr(time, "time", lambda: right() + later)

        archive.prune(in_use=())

        assert [record.execution_id for record in records.list()[0]] == ["new"]


def test_a_limit_whose_end_was_guessed_does_not_grow_when_the_clock_is_set_back() -> None:
    now = time.time()
    guessed = Limit(None, None, now + UNKNOWN_LIMIT_SECONDS, has_known_end=False)
    reported = Limit("five_hour", None, now + 3600)

    assert [guessed.lasts(now + moved) for moved in (0, 59, 61, -3600)] == [True, True, False, False]
    assert [reported.lasts(now + moved) for moved in (0, 3601, -3600)] == [True, False, True]
