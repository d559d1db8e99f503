"""The help of each command besides its options, from ``help.toml``: purpose, examples, exit codes."""

from __future__ import annotations

import functools
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


@functools.cache
def pages() -> dict[str, Page]:
    """
    Return the pages by the words of the command as a person types it, such as ``token put``; ``""``: the program.

    They are read at the first call, because most commands need none of them.
    """
    return msgspec.toml.decode(Path(__file__).with_name("help.toml").read_bytes(), type=dict[str, Page], strict=False)


def flag_of(name: str) -> str:
    """Return the flag for an option's name in :class:`argparse.Namespace`; for ``run`` that may be a task's field."""
    field = pages()["run"].fields.get(name)
    return field.flag if field and field.flag else f"--{name.replace('_', '-')}"


def purpose(command: str) -> str:
    """Return what stands above the options in the help of a command."""
    return textwrap.fill(pages()[command].text, WIDTH)


def examples_and_exits(command: str) -> str:
    """Return what stands below the options in the help of a command."""
    page = pages()[command]
    lines = ["examples:"]
    for line, does in page.examples.items():
        lines += [f"  {line}", f"      {does}"]
    if page.exits:
        lines += ["", "exit codes:", *(f"  {code:>3}  {says}" for code, says in page.exits.items())]
    for paragraph in page.more:
        lines += ["", textwrap.fill(paragraph, WIDTH)]
    return "\n".join(lines)
