"""What README and docs/ say is what the code has: settings, commands, and the two commands that do all."""

from __future__ import annotations

import argparse
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from agent_runtime import __version__
from agent_runtime.api.app import ROUTES
from agent_runtime.cli.main import _parser
from agent_runtime.errors import ErrorClass
from agent_runtime.model.task import Task
from agent_runtime.settings import SETTINGS
from benchmarks.__main__ import MODULES as BENCHES
from tests.support.pages import blocks, section

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CONFIGURATION, GUARANTEES, HTTP_API, MEASUREMENTS, OPERATIONS = (
    ROOT / "docs" / f"{name}.md" for name in ("configuration", "guarantees", "http-api", "measurements", "operations")
)
NO_DEFAULT = "\N{EN DASH}"
CI = (ROOT / ".ci/run").read_text()


def rows(lines: list[str], first_cell_starts_with: str) -> list[list[str]]:
    """Return the cells of the tables' rows whose first cell begins so."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if row[0].startswith(first_cell_starts_with)]


def quoted(text: str) -> list[str]:
    """Return what stands in backticks."""
    return text.split("`")[1::2]


def shell_commands(lines: list[str]) -> list[str]:
    """Return the commands of the ``sh`` blocks, each as one line."""
    return "".join(blocks(lines, "sh", "bash")).replace("\\\n", "").splitlines()


def subcommands(parser: argparse.ArgumentParser) -> set[str]:
    """Return every command as a person types it: ``serve``, ``token put``."""
    found = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                deeper = subcommands(child)
                found |= {f"{name} {rest}" for rest in deeper} or {name}
    return found


def settings_rows(page: Path) -> list[list[str]]:
    return rows(section(page, "Settings"), "`AGENT_RUNTIME_")


def test_the_settings_table_lists_every_setting_once_and_in_order() -> None:
    documented = [quoted(row[0])[0] for row in settings_rows(CONFIGURATION)]

    assert documented == [setting.variable for setting in SETTINGS]


def test_the_settings_table_tells_the_default() -> None:
    for setting, row in zip(SETTINGS, settings_rows(CONFIGURATION), strict=True):
        if setting.default is None:
            assert row[1] == NO_DEFAULT or "".join(row[1].split("`")[::2]), (
                f"{setting.name} has no fixed default: a dash, or words beside the value"
            )
        else:
            assert row[1] == f"`{setting.default}`", setting.name


def test_every_command_is_in_the_table_and_no_other() -> None:
    listed = {
        " ".join(word for word in command.split()[1:] if word.islower() and word.isalpha())
        for row in rows(section(OPERATIONS, "Commands"), "`agent-runtime ")
        for command in quoted(row[0])
    }

    assert listed == subcommands(_parser())


def test_ci_runs_the_two_commands_of_the_readme_to_the_letter() -> None:
    typed = shell_commands(section(README, "Try it"))
    commands = [line for line in typed if line.startswith(("python3 -m venv", ".venv/"))]
    steps = {line.strip() for line in CI.splitlines()}

    assert [command.split()[-1] for command in commands] == ["demo", "pytest"]
    assert [command for command in commands if command not in steps] == []


def named_tests(lines: list[str]) -> list[str]:
    """Return every test that a table names, as ``tests/test_x.py`` or ``tests/test_x.py::test_name``."""
    return [name for line in lines for name in quoted(line) if name.startswith("tests/")]


TABLES_OF_TESTS = {
    "guarantees": section(GUARANTEES, "Guarantees, and the test that shows each"),
    "security": section(ROOT / "SECURITY.md", "Attackers, what they try, and what holds"),
}


@pytest.mark.parametrize("table", TABLES_OF_TESTS)
def test_every_test_that_a_guarantee_names_exists(table: str) -> None:
    for name in named_tests(TABLES_OF_TESTS[table]):
        path, _, function = name.partition("::")

        assert (ROOT / path).is_file(), name
        assert not function or f"def {function}(" in (ROOT / path).read_text(), name


@pytest.mark.parametrize("table", TABLES_OF_TESTS)
def test_every_guarantee_names_a_test(table: str) -> None:
    guarantees = rows(TABLES_OF_TESTS[table], "")[2:]

    assert len(guarantees) > 10
    assert [row for row in guarantees if not named_tests([row[-1]])] == []
    assert {len(row) for row in guarantees} == {len(rows(TABLES_OF_TESTS[table], "")[0])}


DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_links_within_the_documents_lead_somewhere(document: Path) -> None:
    for piece in document.read_text().split("](")[1:]:
        target, _, heading = piece.partition(")")[0].partition("#")
        if target.startswith("http"):
            continue
        path = document.parent / target if target else document
        assert path.is_file(), target
        if path.suffix != ".md":
            continue
        slugs = [
            "".join(letter for letter in line.lstrip("# ").lower() if letter.isalnum() or letter in " -").replace(
                " ", "-"
            )
            for line in path.read_text().splitlines()
            if line.startswith("#")
        ]
        assert not heading or heading in slugs


def test_every_check_of_the_doctor_is_explained_and_no_other() -> None:
    page = (ROOT / "docs/when-it-does-not-work.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "agent_runtime/doctor").glob("*.py"))
    made = set(re.findall(r'\b(?:ok|warning|problem|say|_directory)\(\s*"([a-z_ ]{1,20})"', source))
    explained = {name for row in rows(page.splitlines(), "`") for name in quoted(row[0])}
    explained |= {name for name in ("containment", "delivery") if f"`{name}` (" in page}

    assert explained == made


def own_words(line: str) -> list[str] | None:
    """Return what a line gives to ``agent-runtime``, in this container or by way of ``exec`` in another one."""
    words = shlex.split(line, comments=True)
    at = next((n for n, word in enumerate(words) if word.rpartition("/")[2] == "agent-runtime"), None)
    if at is None or "..." in words or not (at == 0 or "exec" in words[:at]):
        return None
    end = next((n for n, word in enumerate(words) if word in ("<", "&", "|", "&&")), len(words))
    return ["0123456789ab" if word == "F" else word for word in words[at + 1 : end]]  # F stands for a fingerprint


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_commands_in_the_documents_can_be_typed(document: Path) -> None:
    text = document.read_text()
    in_blocks = [words for line in shell_commands(text.splitlines()) if (words := own_words(line)) is not None]
    inline = [
        words for piece in re.findall(r"`((?:docker exec|agent-runtime) [^`]+)`", text) if (words := own_words(piece))
    ]
    names = [name.split() for name in subcommands(_parser())]

    for words in in_blocks + [words for words in inline if words not in names]:
        assert callable(_parser().parse_args(words).run), words
    assert in_blocks or document.name not in ("README.md", "when-it-does-not-work.md")


def test_a_default_that_depends_on_the_machine_is_the_same_in_the_help() -> None:
    shown = {row[0].strip("`"): row[1].replace("`", "") for row in settings_rows(CONFIGURATION)}

    assert shown == {setting.variable: setting.shown_default or NO_DEFAULT for setting in SETTINGS}


def test_the_readme_is_short_and_its_eight_settings_are_rows_of_the_whole_table() -> None:
    eight = settings_rows(README)

    assert len(README.read_text().splitlines()) <= 200
    assert len(eight) == 8
    assert [row for row in eight if row not in settings_rows(CONFIGURATION)] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = {piece.partition(")")[0].partition("#")[0] for piece in README.read_text().split("](")[1:]}

    assert {str(page.relative_to(ROOT)) for page in DOCUMENTS} - {"README.md"} <= linked


def test_the_table_of_routes_has_every_route_and_no_other() -> None:
    documented = {
        (method, path)
        for row in rows(section(HTTP_API, "Routes"), "`")
        for name in quoted(row[0])
        for method, path in [name.split() if " " in name else (quoted(row[0])[0].split()[0], name)]
    }

    assert documented == {(route.method, route.path) for route in ROUTES}


def test_the_table_of_fields_has_every_field_of_a_task_once() -> None:
    documented = [name for row in rows(section(HTTP_API, "Fields of a task"), "`") for name in quoted(row[0])]

    assert sorted(documented) == sorted(Task.__struct_fields__)


def test_the_table_of_errors_has_every_class_with_its_status() -> None:
    documented: dict[str, int] = {}
    for row in rows(section(HTTP_API, "Errors"), "")[2:]:
        statuses = [int(status) for status in row[1].split(", ")]
        classes = quoted(row[2])
        documented.update(zip(classes, statuses * len(classes) if len(statuses) == 1 else statuses, strict=True))

    assert documented == {error: error.status for error in ErrorClass}


def test_a_backend_that_recreates_containers_is_told_of_every_status_and_of_classes_that_have_it() -> None:
    answers = [row[0] for row in rows(section(OPERATIONS, "From a backend that recreates containers"), "")[2:]]
    statuses = {int(number) for answer in answers for number in re.findall(r"\b\d{3}\b", answer)}
    with_classes = {(int(answer[:3]), name) for answer in answers for name in quoted(answer) if name in set(ErrorClass)}

    assert statuses == {*(error.status for error in ErrorClass), 202}
    assert with_classes <= {(error.status, str(error)) for error in ErrorClass}


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_every_file_and_module_that_a_page_names_exists(document: Path) -> None:
    text = document.read_text()
    folders = r"agent_runtime|benchmarks|deploy|docs|examples|scripts|tests|\.ci"
    files = re.findall(rf"(?<![\w/.(-])((?:{folders})/[\w./-]*\w)", text)
    modules = re.findall(r"python -m\s+([a-z_]+(?:\.[a-z_]+)*)", text)

    assert [name for name in files if not (ROOT / name).exists()] == []
    assert [name for name in modules if name not in ("venv", "pytest") and find_spec(name) is None] == []


def test_what_a_person_runs_is_what_ci_runs() -> None:
    """CI runs the tests by the README's command."""
    steps = re.findall(r"^ +([a-z]+)\) \"\$python\" -m", (ROOT / "scripts/check").read_text(), re.MULTILINE)

    assert steps == ["lint", "format", "types", "tests"]
    assert [step for step in steps[:-1] if f"scripts/check {step}\n" not in CI] == []


def test_every_bench_that_a_page_names_can_be_run() -> None:
    named = re.findall(r"python -m benchmarks ([a-z_]+)", "".join(page.read_text() for page in DOCUMENTS))
    named += [quoted(row[0])[0] for row in rows(MEASUREMENTS.read_text().splitlines(), "`")]

    assert {"dead_token", "detection", "output"} <= set(named) <= set(BENCHES)


def test_the_changelog_begins_with_what_is_not_released_and_has_this_version() -> None:
    headings = [line[3:] for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]

    assert headings[0] == "Unreleased"
    assert __version__ in headings
