"""``docs/architecture.md`` draws what the code does: phases, states of a token, packages; its examples apply."""

from __future__ import annotations

import re
from pathlib import Path

from agent_runtime.api.metrics import TOKEN_STATES
from agent_runtime.model.state import TRANSITIONS
from tests.test_layers import ORDER

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/architecture.md").read_text()


def drawing(heading: str) -> str:
    """Return the first Mermaid drawing under a heading."""
    return PAGE.partition(f"## {heading}\n")[2].partition("```mermaid\n")[2].partition("```")[0]


def edges(heading: str) -> set[tuple[str, str, str]]:
    """Return what a state diagram draws: from, to, by what."""
    return set(re.findall(r"(\w+) --> (\w+): (.+)", drawing(heading)))


def test_the_life_of_a_task_is_the_table_of_transitions() -> None:
    moves = [(phase, event, following) for phase, row in TRANSITIONS.items() for event, following in row.items()]
    table = {(str(phase), str(following), str(event)) for phase, event, following in moves}

    assert edges("The life of a task") == table


def test_the_life_of_a_token_has_every_state_a_way_in_and_a_way_out() -> None:
    drawn = edges("The life of a token")

    assert {begin for begin, _, _ in drawn} == set(TOKEN_STATES) == {end for _, end, _ in drawn}


def test_the_packages_are_listed_in_the_order_of_the_layers() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.partition("## The packages\n")[2], re.MULTILINE)

    assert listed == [name for name in ORDER if (ROOT / "agent_runtime" / name / "__init__.py").is_file() and name]


def test_every_name_of_the_code_that_the_page_says_exists() -> None:
    source = "".join(path.read_text() for path in (ROOT / "agent_runtime").rglob("*.py"))
    named = set(re.findall(r"`([A-Z][A-Za-z]+|[A-Z]+_?[A-Z]+|[a-z_]+\.py)`", PAGE))

    assert len(named) > 8
    known = set(re.findall(r"\w+", source)) | {path.name for path in (ROOT / "agent_runtime").rglob("*.py")}
    assert named - known == set()
