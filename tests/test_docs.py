"""What the README says is what the code has: settings, commands, and the two commands that do all."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from agent_runtime.cli import _parser
from agent_runtime.settings import SETTINGS, Setting

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NO_DEFAULT = "\N{EN DASH}"
CI = (ROOT / ".ci/run").read_text()


def section(heading: str) -> list[str]:
    """Return the lines under a heading of the second level, up to the next one."""
    lines = README.splitlines()
    begin = lines.index(f"## {heading}") + 1
    end = next((n for n, line in enumerate(lines[begin:], begin) if line.startswith("## ")), len(lines))
    return lines[begin:end]


def rows(lines: list[str], first_cell_starts_with: str) -> list[list[str]]:
    """Return the cells of the tables' rows whose first cell begins so."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if row[0].startswith(first_cell_starts_with)]


def quoted(text: str) -> list[str]:
    """Return what stands in backticks."""
    return text.split("`")[1::2]


def shell_commands(lines: list[str]) -> list[str]:
    """Return the lines of the ``sh`` blocks."""
    found, inside = [], False
    for line in lines:
        if line.startswith("```"):
            inside = line == "```sh"
        elif inside:
            found.append(line)
    return found


def subcommands(parser: argparse.ArgumentParser) -> set[str]:
    """Return every command as a person types it: ``serve``, ``token put``."""
    found = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                deeper = subcommands(child)
                found |= {f"{name} {rest}" for rest in deeper} or {name}
    return found


def test_the_settings_table_lists_every_setting_once_and_in_order() -> None:
    documented = [quoted(row[0])[0] for row in rows(section("Settings"), "`AGENT_RUNTIME_")]

    assert documented == [setting.variable for setting in SETTINGS]


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.name for setting in SETTINGS])
def test_the_settings_table_tells_the_default(setting: Setting) -> None:
    [row] = [row for row in rows(section("Settings"), "`AGENT_RUNTIME_") if quoted(row[0]) == [setting.variable]]

    if setting.default is None:
        assert row[1] == NO_DEFAULT or "".join(row[1].split("`")[::2]), (
            "no fixed default: a dash, or words beside the value"
        )
    else:
        assert row[1] == f"`{setting.default}`"


def test_every_command_is_in_the_readme_and_no_other() -> None:
    listed = {
        " ".join(word for word in command.split()[1:] if word.islower() and word.isalpha())
        for row in rows(section("Run it"), "`agent-runtime ")
        for command in quoted(row[0])
    }

    assert listed == subcommands(_parser())


def test_ci_runs_the_two_commands_of_the_readme_to_the_letter() -> None:
    commands = shell_commands(section("Try it"))
    steps = {line.strip() for line in CI.splitlines()}

    assert [command.split()[-1] for command in commands] == ["demo", "pytest"]
    assert [command for command in commands if command not in steps] == []
