"""The help of each command besides its options, from ``help.toml``: purpose, examples, exit codes."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import msgspec

WIDTH = 78


class Field(msgspec.Struct, frozen=True):
    """
    A flag of ``run`` that sets a field of the task.

    Attributes:
        flag: The flag; None: it is made from the field's name.
        kind: How the flag's argument becomes a value; ``switch``: the flag has no argument.
        repeat: The flag may be given several times.
    """

    help: str
    metavar: str | None = None
    flag: str | None = None
    kind: str = "text"
    repeat: bool = False


class Page(msgspec.Struct, frozen=True):
    """
    The help of one command.

    Attributes:
        text: The purpose of the command.
        examples: What a command line does, by command line.
        exits: The meaning of an exit code, by exit code.
        more: Paragraphs at the end.
        fields: Of ``run``: the flags that set fields of the task, by field.
    """

    text: str
    examples: dict[str, str]
    exits: dict[int, str] = {}
    more: tuple[str, ...] = ()
    fields: dict[str, Field] = {}


PAGES = msgspec.toml.decode(Path(__file__).with_name("help.toml").read_bytes(), type=dict[str, Page], strict=False)
"""Pages by the words of the command as a person types it, such as ``token put``; ``""``: the program."""


def flag_of(name: str) -> str:
    """Return the flag for an option's name in :class:`argparse.Namespace`; for ``run`` that may be a task's field."""
    field = PAGES["run"].fields.get(name)
    return field.flag if field and field.flag else f"--{name.replace('_', '-')}"


def explain(parser: argparse.ArgumentParser, command: str = "") -> None:
    """Add the pages to a parser and to the parsers of its commands."""
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
