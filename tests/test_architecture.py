"""``docs/architecture.md`` draws what the code does: phases, states of a token, packages; its examples apply."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent_runtime.evidence.matching import Rule
from agent_runtime.model.state import TRANSITIONS, TokenState
from tests.test_layers import ORDER

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/architecture.md").read_text()
EXAMPLES = sorted((ROOT / "docs/examples").glob("*.diff"))
HOLD_EVERY_CHANGE = ("tests/test_docs.py", "tests/test_layers.py", "tests/api/test_submission.py")
"""What else an addition is most likely to break."""


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

    assert {begin for begin, _, _ in drawn} == set(TokenState) == {end for _, end, _ in drawn}


def test_the_packages_are_listed_in_the_order_of_the_layers() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.partition("## The packages\n")[2], re.MULTILINE)

    assert listed == [name for name in ORDER if (ROOT / "agent_runtime" / name / "__init__.py").is_file() and name]


def test_the_columns_of_an_evidence_rule_are_explained() -> None:
    table = PAGE.partition("The columns of an evidence rule.")[2].partition("\n\nThe examples")[0]
    columns = [row.split("|")[1] for row in table.splitlines() if row.startswith("| ")][1:]

    assert sorted(re.findall(r"`(\w+)`", "".join(columns))) == sorted(Rule.__struct_fields__)


def test_every_name_of_the_code_that_the_page_says_exists() -> None:
    source = "".join(path.read_text() for path in (ROOT / "agent_runtime").rglob("*.py"))
    named = set(re.findall(r"`([A-Z][A-Za-z]+|[A-Z]+_?[A-Z]+|[a-z_]+\.py)`", PAGE))

    assert len(named) > 8
    known = set(re.findall(r"\w+", source)) | {path.name for path in (ROOT / "agent_runtime").rglob("*.py")}
    assert named - known == set()


def apply(example: Path, checkout: Path, *options: str) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git to apply a diff with")
    # Without this a directory inside some other repository would be taken for a part of that one.
    git = ("git", "apply", *options, str(example))
    done = subprocess.run(
        git,
        cwd=checkout,
        env={"GIT_CEILING_DIRECTORIES": str(checkout.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def files_of(example: Path) -> list[str]:
    return re.findall(r"^\+\+\+ b/(.+)", example.read_text(), re.MULTILINE)


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_is_linked_applies_and_touches_at_most_three_files(example: Path) -> None:
    files = files_of(example)

    assert f"(examples/{example.name})" in PAGE
    assert len(files) <= 3
    assert any(name.startswith("tests/") for name in files)
    apply(example, ROOT, "--check")


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_is_all_that_its_addition_needs(example: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*_cache", "__pycache__", ".git", ".venv"))
    tests = [name for name in files_of(example) if name.startswith("tests/")]

    def run(*paths: str) -> tuple[int, str]:
        command = (sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *paths)
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, timeout=200)
        return done.returncode, done.stdout

    apply(example, checkout)
    code, told = run(*tests, *HOLD_EVERY_CHANGE)
    assert code == 0, told
    apply(example, checkout, "--reverse", *(f"--exclude={name}" for name in tests))
    assert run(*tests)[0] == 1, "its tests pass without it"
