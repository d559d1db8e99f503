"""A process that outlives SIGKILL: counted, shown, and nobody else's burden."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.families import freezer
from tests.support.supervised import eventually, marked_processes, supervised


@pytest.mark.slow
@pytest.mark.parametrize("containment", ["auto", "scan"])
def test_its_slot_is_shown_as_unkillable_and_replaced(tmp_path: Path, containment: str) -> None:
    pid_file = tmp_path / "pid"
    script = [
        {"do": "init"},
        {"do": "spawn", "kind": "setsid", "pid_file": str(pid_file)},
        {"do": "hang"},
    ]
    flags = ("--slots", "1", "--stop-grace", "0.2", "--containment", containment)
    with freezer() as (freeze, thaw), supervised(tmp_path, flags=flags) as running:
        stuck = running.start({"script": script}, execution_id="stuck")
        # It writes the file itself, whenever it gets there.
        told = eventually(lambda: pid_file.exists() and pid_file.read_text().endswith("\n") and pid_file.read_text())
        pid = next(int(word) for word in told.split() if word.isdecimal())
        freeze(_outside(pid, "stuck"))

        running.client.post("/api/executions/stuck/terminate").raise_for_status()

        assert stuck.answer().json()["status"] == "cancelled"
        assert running.record("stuck")["attempts"][0]["survivors"] == 1
        assert running.get("/health")["slots"] == {"total": 1, "busy": 0, "unkillable": 1}
        assert running.post({"script": [{"do": "init"}, {"do": "result", "text": "free"}]}).json()["response"] == "free"

        thaw()
        eventually(lambda: running.get("/health")["slots"]["unkillable"] == 0)
        assert marked_processes("stuck") == []


def _outside(pid: int, execution_id: str) -> int:
    """Return the pid that a process of an execution has out here, whatever it has in a namespace of its own."""
    for candidate in marked_processes(execution_id):
        status = Path(f"/proc/{candidate.pid}/status").read_text()
        numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
        if int(numbers[-1]) == pid:
            return int(candidate.pid)
    raise AssertionError("not found")
