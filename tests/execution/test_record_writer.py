"""The record of an execution has one writer, and its state changes by transitions only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import agent_runtime
from agent_runtime.errors import ErrorClass, IllegalTransition
from agent_runtime.execution.record_writer import RecordWriter
from agent_runtime.model.records import AttemptRecord, ExecutionRecord, Metadata
from agent_runtime.model.state import Outcome, Phase, StopReason

ROOT = Path(agent_runtime.__file__).parent
WRITER = ROOT / "execution" / "record_writer.py"
FIELDS = {"record": ExecutionRecord.__struct_fields__, "metadata": Metadata.__struct_fields__}


def record(state: Phase) -> ExecutionRecord:
    return ExecutionRecord(execution_id="one", created_at=0.0, state=state, attempts=[AttemptRecord(pid=1)])


@pytest.mark.parametrize("state", [phase for phase in Phase if phase is not Phase.FINISHED])
def test_what_an_earlier_supervisor_has_left_is_interrupted_from_every_state(state: Phase) -> None:
    left = record(state)
    RecordWriter(left).interrupted()

    assert (left.state, left.outcome, left.error_class) == (Phase.FINISHED, Outcome.FAILED, ErrorClass.INTERRUPTED)
    assert left.attempts[0].stop_reason is StopReason.SHUTDOWN
    assert left.ended_at is not None
    assert left.attempts[0].ended_at == left.ended_at


def test_a_record_that_is_final_is_not_ended_again() -> None:
    with pytest.raises(IllegalTransition):
        RecordWriter(record(Phase.FINISHED)).interrupted()


def assigned(source: str) -> set[str]:
    """List the fields that a source assigns of something called ``record`` or ``metadata``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            of = node.value
            name = of.attr if isinstance(of, ast.Attribute) else of.id if isinstance(of, ast.Name) else ""
            if node.attr in FIELDS.get(name, ()):
                found.add(f"{name}.{node.attr}")
    return found


def test_nothing_but_the_writer_assigns_fields_of_a_record() -> None:
    others = [path for path in ROOT.rglob("*.py") if path != WRITER and path.parent != ROOT / "model"]

    found = {str(path.relative_to(ROOT)): assigned(path.read_text()) for path in others}

    # The store alone knows which of the records it returns is only in memory.
    assert {path: fields for path, fields in found.items() if fields} == {"store/records.py": {"metadata.retained"}}
    assert assigned("self.record.metadata.retained = False\nrecord.state = 1") == {"metadata.retained", "record.state"}
    assert "record.outcome" in assigned(WRITER.read_text())
