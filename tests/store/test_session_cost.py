"""What the CLI had counted of a session that is resumed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from agent_runtime.claude.run_stats import SessionCost
from agent_runtime.model.usage import ModelUsage
from agent_runtime.store import session_cost as module
from agent_runtime.store.session_cost import session_cost

if TYPE_CHECKING:
    from pathlib import Path

SESSION = UUID("6c1c7ea8-3b6e-4a0c-8d38-1c2d3e4f5a6b")


def state(cost: Any = 0.5, session: str = str(SESSION), **models: Any) -> str:
    """Return the line as 2.1.332 writes it, without what is not read."""
    used = {"inputTokens": 23, "outputTokens": 43, "cacheReadInputTokens": 1, "costUSD": cost}
    line = {"type": "cost-state", "sessionId": session, "totalCostUSD": cost, "modelUsage": {"m": used} | models}
    return json.dumps(line, separators=(",", ":"))


KNOWN = SessionCost(0.5, {"m": ModelUsage(cost_usd=0.5, input_tokens=23, output_tokens=43, cache_read_tokens=1)})
QUOTED = json.dumps({"type": "user", "text": state(9.0)}, separators=(",", ":"))
NESTED = '{"type":"user","toolUseResult":' + state(9.0) + "}"


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], SessionCost(is_known=False)),
        (['{"type":"user"}'], SessionCost()),
        ([state()], KNOWN),
        ([state(0.1), '{"type":"user"}', state(), '{"type":"assistant"}'], KNOWN),
        ([state(), QUOTED, NESTED], KNOWN),
        ([state(), state("much"), '{"type":"cost-state"', state(9.0, session=str(UUID(int=1)))], KNOWN),
        ([state(), '{"type":"cost-state","sess'], KNOWN),
    ],
    ids=["empty", "none", "one", "the last", "in other lines", "that are none", "torn"],
)
def test_the_last_line_about_it_counts(tmp_path: Path, lines: list[str], found: SessionCost) -> None:
    directory = tmp_path / "projects" / "-workspace"
    directory.mkdir(parents=True)
    (directory / f"{SESSION}.jsonl").write_text("\n".join(lines))

    assert session_cost(tmp_path, SESSION) == found


def test_a_session_without_a_file_has_cost_nothing(tmp_path: Path) -> None:
    assert session_cost(tmp_path, SESSION) == SessionCost()
    (tmp_path / "projects").mkdir()
    assert session_cost(tmp_path, SESSION) == SessionCost()


def test_of_a_long_file_the_end_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "projects" / "-workspace"
    directory.mkdir(parents=True)
    (directory / f"{SESSION}.jsonl").write_text(f"{state()}\n" + '{"type":"user"}\n' * 100)

    assert session_cost(tmp_path, SESSION) == KNOWN
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    assert session_cost(tmp_path, SESSION) == SessionCost(is_known=False)


def test_what_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    directory = tmp_path / "projects" / "-workspace" / f"{SESSION}.jsonl"
    directory.mkdir(parents=True)

    assert session_cost(tmp_path, SESSION) == SessionCost(is_known=False)
