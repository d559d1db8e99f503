"""The record of an execution has one writer, and its state changes by transitions only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import agent_runtime
from agent_runtime.errors import ErrorClass, IllegalTransition
from agent_runtime.execution.attempt_data import Reached, Spawned
from agent_runtime.execution.record_writer import RecordWriter
from agent_runtime.model.records import AttemptRecord, ExecutionRecord, Metadata
from agent_runtime.model.state import Outcome, Phase, Step, StopReason
from agent_runtime.model.tokens import Token
from agent_runtime.model.usage import AttemptUsage, ModelUsage
from agent_runtime.secret.generations import Generation

ROOT = Path(agent_runtime.__file__).parent
WRITER = ROOT / "execution" / "record_writer.py"
FIELDS = {"record": ExecutionRecord.__struct_fields__, "metadata": Metadata.__struct_fields__}


def record(state: Phase) -> ExecutionRecord:
    return ExecutionRecord(execution_id="one", created_at=0.0, state=state, attempts=[AttemptRecord(pid=1)])


@pytest.mark.parametrize("state", [phase for phase in Phase if phase is not Phase.FINISHED])
def test_what_an_earlier_supervisor_has_left_is_interrupted_from_every_state(state: Phase) -> None:
    left = record(state)
    left.held = state is Phase.RUNNING
    RecordWriter(left).finish_interrupted()

    assert (left.state, left.outcome, left.error_class) == (Phase.FINISHED, Outcome.FAILED, ErrorClass.INTERRUPTED)
    assert left.attempts[0].stop_reason is StopReason.SHUTDOWN
    assert left.ended_at is not None
    assert not left.held
    assert left.attempts[0].ended_at == left.ended_at
    assert (left.metadata.attempts, left.metadata.estimated) == (1, True)


def test_a_record_that_is_final_is_not_ended_again() -> None:
    with pytest.raises(IllegalTransition):
        RecordWriter(record(Phase.FINISHED)).finish_interrupted()


def generation(number: int, subscription: str) -> Generation:
    return Generation(number, Token(f"sk-ant-oat01-{number}-0000"), 0.0, subscription=subscription)


def used(cost_usd: float = 0.0, **by_generation: int) -> AttemptUsage:
    """Say what each generation has used, as ``g1=5``."""
    seen = {int(name[1:]): {"m": ModelUsage(output_tokens=tokens)} for name, tokens in by_generation.items()}
    total = sum(by_generation.values())
    return AttemptUsage(by_model={"m": ModelUsage(output_tokens=total, cost_usd=cost_usd)}, seen=seen)


def test_what_an_attempt_uses_counts_for_the_token_that_it_was_used_of() -> None:
    writer = RecordWriter(record(Phase.QUEUED))
    writer.record_spawn(Spawned(2, None, 1.0, generation(1, "a")))
    for usage in (used(g1=1), used(g1=5), used(g1=5)):
        writer.record_usage(usage)
    writer.record_token(Reached(generation(2, "b"), 2.0))
    writer.record_token(Reached(generation(3, "c"), 3.0))
    writer.record_usage(used(g1=6, g3=4))
    writer.record_usage(used(0.5, g1=6, g3=4))
    writer.record_usage(used(0.5, g1=6, g3=4))

    tokens = writer.record.attempts[-1].tokens
    assert [token.subscription for token in tokens] == ["a", "b", "c"]
    first, nothing, third = (token.usage_by_model for token in tokens)
    assert first == {"m": ModelUsage(output_tokens=6, cost_usd=0.3)}
    assert third == {"m": ModelUsage(output_tokens=4, cost_usd=0.2)}
    assert nothing == {}
    assert (writer.record.metadata.output_tokens, writer.record.attempts[-1].cost_usd) == (10, 0.5)


def test_the_model_is_known_while_an_attempt_runs_and_costs_can_be_read() -> None:
    writer = RecordWriter(record(Phase.QUEUED))
    for number in range(7):
        writer.record_spawn(Spawned(2, None, 1.0, generation(1, "a")))
        writer.record_usage(AttemptUsage())
        writer.record_usage(AttemptUsage(by_model={"m": ModelUsage(cost_usd=1e-05)}, model_name=f"m{number}"))
        writer.apply(Step.REQUEUED)
    writer.record.metadata.context_window = 1
    writer.record_usage(AttemptUsage(context_window=1_000_000))

    metadata = writer.record.metadata
    assert (metadata.model_name, metadata.context_window) == ("m6", 1_000_000)
    writer.record_usage(AttemptUsage(by_model={"m": ModelUsage(cost_usd=1e-05)}))
    assert repr(metadata.cost_usd) == repr(metadata.usage_by_model["m"].cost_usd) == "7e-05"


def test_totals_of_an_earlier_version_stay_and_those_of_attempts_are_added() -> None:
    left = record(Phase.QUEUED)
    left.metadata = Metadata(input_tokens=3, output_tokens=4, cost_usd=0.25, context_tokens=9)
    writer = RecordWriter(left)
    for number in (1, 2):
        writer.record_spawn(Spawned(number, None, 1.0, generation(1, "a")))
        writer.record_usage(used(0.5, g1=10))
        writer.apply(Step.REQUEUED)

    metadata = writer.record.metadata
    assert (metadata.input_tokens, metadata.output_tokens, metadata.cost_usd) == (3, 24, 1.25)
    assert metadata.usage_by_model == {"m": ModelUsage(output_tokens=20, cost_usd=1.0)}
    assert metadata.context_tokens == 9


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
