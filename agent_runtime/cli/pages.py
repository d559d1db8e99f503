"""The help of each command beyond its options, from ``help.toml``: purpose, examples, exit codes."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import msgspec

WIDTH = 78


class Field(msgspec.Struct, frozen=True):
    """
    A flag of ``run`` that is a field of a task.

    Attributes:
        flag: None: the field's name.
        kind: How a word becomes a value; ``switch``: there is no word.
        repeat: It may be given several times.
    """

    help: str
    metavar: str | None = None
    flag: str | None = None
    kind: str = "text"
    repeat: bool = False


class Page(msgspec.Struct, frozen=True):
    """
    The page of one command.

    Attributes:
        examples: A command line, and what it does.
        exits: The meaning of each exit code.
        more: Paragraphs at the end.
        fields: Of ``run``: its flags that are fields of a task, by field.
    """

    text: str
    examples: dict[str, str]
    exits: dict[int, str] = {}
    more: tuple[str, ...] = ()
    fields: dict[str, Field] = {}


PAGES = msgspec.toml.decode(Path(__file__).with_name("help.toml").read_bytes(), type=dict[str, Page], strict=False)
"""By the words of the command as a person types it."""


def flag_of(name: str) -> str:
    """Return the flag of an option, by the name that it has in the code; of ``run`` that is a field's."""
    field = PAGES["run"].fields.get(name)
    return field.flag if field and field.flag else f"--{name.replace('_', '-')}"


def explain(parser: argparse.ArgumentParser, command: str = "") -> None:
    """Give a parser, and those of its commands, their pages."""
    page = PAGES[command]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = textwrap.fill(page.text, WIDTH)
    parser.epilog = _after(page)
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to its commands
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            for name, child in action.choices.items():
                explain(child, f"{command} {name}".strip())


def _after(page: Page) -> str:
    lines = ["examples:"]
    for command, does in page.examples.items():
        lines += [f"  {command}", f"      {does}"]
    if page.exits:
        lines += ["", "exit codes:", *(f"  {code:>3}  {says}" for code, says in page.exits.items())]
    for paragraph in page.more:
        lines += ["", textwrap.fill(paragraph, WIDTH)]
    return "\n".join(lines)
