"""P15: the wall clock moved by an hour, to either side, while an execution runs."""

from __future__ import annotations

from pathlib import Path

import pytest

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
