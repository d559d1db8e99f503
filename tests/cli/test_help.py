"""``--help`` of every command needs no README: what it does, examples to type, exit codes, defaults, units."""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
from typing import TYPE_CHECKING

import pytest

from agent_runtime.cli import exit_codes
from agent_runtime.cli.main import EXIT_CODES, _parser
from agent_runtime.cli.pages import pages
from agent_runtime.model.task import TaskFields
from agent_runtime.settings import SETTINGS, Setting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_runtime.cli.arguments import Parser

COMMANDS = sorted(pages())
EXAMPLES = [(command, line) for command in COMMANDS for line in pages()[command].examples]
OF_THE_SHELL = {"<", "|", "&&"}
STARTS_OTHERS = {"", "token"}
"""Commands that do nothing by themselves, so they have no exit codes of their own."""


def parsers(parser: Parser, command: str = "") -> Iterator[tuple[str, Parser]]:
    parser.complete()
    yield command, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from parsers(child, f"{command} {name}".strip())


def help_of(command: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        _parser().parse_args([*command.split(), "--help"])
    assert ended.value.code == 0
    return out.getvalue()


def own_words(line: str) -> list[str]:
    """Return what an example gives to ``agent-runtime``, without what the shell, or another program, does with it."""
    words = shlex.split(line)
    words = words[words.index("agent-runtime") + 1 :]
    return words[: next((n for n, word in enumerate(words) if word in OF_THE_SHELL), len(words))]


def test_every_command_has_a_page_and_no_other() -> None:
    assert sorted(command for command, _ in parsers(_parser())) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_says_what_it_does_and_how_it_is_used_and_ends(command: str) -> None:
    text = help_of(command)

    assert len(pages()[command].text) > 50
    assert "\nexamples:\n  " in text
    assert ("\nexit codes:\n" in text) == (command not in STARTS_OTHERS)
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "%(" not in text


@pytest.mark.parametrize(("command", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_an_example_can_be_typed(command: str, line: str) -> None:
    words = own_words(line)

    assert " ".join(words).startswith(command)
    assert callable(_parser().parse_args(words).run)


@pytest.mark.parametrize(("command", "parser"), list(parsers(_parser())), ids=[name for name, _ in parsers(_parser())])
def test_every_option_says_what_it_means(command: str, parser: argparse.ArgumentParser) -> None:
    silent = [
        action.dest for action in parser._actions if not action.help and action.metavar not in ("COMMAND", "ACTION")
    ]

    assert silent == []


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.name for setting in SETTINGS])
def test_serve_names_the_variable_and_the_default_of_every_setting(setting: Setting) -> None:
    text = " ".join(help_of("serve").split())

    assert f"({setting.variable})" in text
    if setting.shown_default is not None:
        assert f"[{setting.shown_default}] ({setting.variable})" in text


def test_the_flags_of_run_are_fields_of_a_task() -> None:
    assert set(pages()["run"].fields) < set(TaskFields.__annotations__)


def test_durations_and_sizes_tell_their_unit() -> None:
    units = {setting.name: setting.metavar for setting in SETTINGS}

    assert {units[name] for name in units if name.endswith(("_timeout", "_age", "_grace", "_after"))} == {"SECONDS"}
    assert {units[name] for name in ("body_limit", "frame_limit", "retain_bytes", "execution_memory")} == {"BYTES"}
    assert units["park"] == "SECONDS"


def test_the_exit_codes_of_the_commands_that_ask_a_supervisor_are_those_they_have() -> None:
    known = {value for name, value in vars(exit_codes).items() if name.startswith("EXIT_")}
    for command in ("run", "status", "drain", "token wait"):
        assert set(pages()[command].exits) < known


def test_the_exit_codes_of_serve_are_those_it_has() -> None:
    assert set(pages()["serve"].exits) == {0, *EXIT_CODES.values()}
