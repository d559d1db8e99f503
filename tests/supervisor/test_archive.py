"""What several executions that end at the same time store."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from agent_runtime.errors import ErrorClass
from agent_runtime.model.records import Answer, ExecutionRecord
from agent_runtime.model.state import Outcome, Phase
from agent_runtime.settings import Settings
from agent_runtime.store.records import RecordStore
from agent_runtime.store.tasks import TaskStore
from agent_runtime.store.transcripts import TranscriptStore
from agent_runtime.store.workspaces import Workspaces
from agent_runtime.supervisor import archive as archive_module
from agent_runtime.supervisor.archive import Archive
from agent_runtime.telemetry.redaction import Redactor

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

THREADS = 8
EACH = 400


class NoDisk(RecordStore):
    """Takes no time, so that the threads meet where the archive itself does something."""

    def conclude(self, record: ExecutionRecord, answer: Answer) -> None:
        """Store nothing."""


def ended(number: int) -> ExecutionRecord:
    return ExecutionRecord(
        execution_id=f"execution-{number}",
        created_at=1.0,
        ended_at=float(number),
        state=Phase.FINISHED,
        outcome=Outcome.FAILED,
        error_class=ErrorClass.INTERRUPTED,
        request_digest="d" * 64,
    )


def test_executions_may_end_in_many_threads_at_once_while_the_recent_ones_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "RECENT_KEPT", 10)
    monkeypatch.setattr(archive_module, "RECENT_SECONDS", 1e12)
    with NoDisk(tmp_path / "records.sqlite") as records:
        tasks, settings = TaskStore(tmp_path / "tasks", Redactor()), Settings(workspace=tmp_path)
        workspaces = Workspaces(settings, tmp_path)
        archive = Archive(records, TranscriptStore(tmp_path / "t"), tasks, workspaces, settings)

        def end_some(thread: int) -> None:
            for number in range(EACH):
                assert archive.conclude(ended(thread * EACH + number), Answer(500, b"{}"))
                assert len(archive.recently_completed_ids) <= 10

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(end_some, range(THREADS)))
        finally:
            sys.setswitchinterval(interval)
    assert len(archive.recently_completed_ids) == 10
