"""
The parser of the command line, and the arguments of the commands that need a running supervisor.

Those commands are ``run``, ``status``, ``drain`` and ``token wait``. Their arguments are defined here and not in the
commands' modules, so that the parser is built without importing the HTTP client.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import grp
import importlib
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from agent_runtime.cli.pages import examples_and_exits, flag_of, pages, purpose
from agent_runtime.setting_slips import did_you_mean, masked, not_this
from agent_runtime.settings import PREFIX

EXECUTION_ID_FLAG = "--execution-id"

Subparsers = Any
"""The type of ``add_subparsers()``, which argparse does not name."""


_BAD_INTEGER = r"invalid int value: '(.*)'"


PROGRAM = "agent-runtime"


class Parser(argparse.ArgumentParser):
    """
    An argument parser whose errors suggest flags and commands, and never repeat a word that may be a secret.

    Attributes:
        add_more: Adds the arguments, once this command is given or explained, because each start builds all parsers.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.add_more: Callable[[], None] | None = None

    def complete(self) -> None:
        """Call :attr:`add_more`, once."""
        add_more, self.add_more = self.add_more, None
        if add_more is not None:
            add_more()

    def format_help(self) -> str:
        """Return the help, with the page of this command."""
        self.complete()
        command = self.prog.removeprefix(PROGRAM).strip()
        self.description, self.epilog = purpose(command), examples_and_exits(command)
        return super().format_help()

    def parse_known_args(  # type: ignore[override]  # it is called with these alone
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the arguments, and refuse those that are left while this command's flags are known for suggestions."""
        self.complete()
        options, left = super().parse_known_args(args, namespace)
        flags = [word.partition("=")[0] for word in left if word.startswith("-")]
        if flags and "--" not in (args or ()):
            self.error(
                "unknown: " + ", ".join(flag + did_you_mean(flag, self._option_string_actions) for flag in flags)
            )
        if left:
            self.error(f"words too many: {len(left)}; put what holds blanks in quotes, and flags before --")
        return options, left

    def error(self, message: str) -> NoReturn:
        """Exit with 2; explain how to pass a PROMPT that is taken for a flag, and show no value that may be secret."""
        more = "; one that begins with a dash comes last, behind --" if message.endswith("PROMPT") else ""
        more = "; --help lists them" if message.endswith(("COMMAND", "ACTION")) else more
        wrong = re.sub(_BAD_INTEGER, lambda bad: f"must be a whole number{not_this(bad[1])}", message) + more
        # Without the usage, which is so long that this line would be overlooked.
        self.exit(2, f"{self.prog}: error: {wrong}\nSee {self.prog} --help.\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), choices)
            raise argparse.ArgumentError(action, f"must be one of {', '.join(choices)}{not_this(str(value))}{hint}")


def default_url() -> str:
    """Return the URL of this container's supervisor, from the settings in the environment."""
    if url := os.environ.get(f"{PREFIX}URL"):
        return url
    host = os.environ.get(f"{PREFIX}HOST") or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{os.environ.get(f'{PREFIX}PORT') or 8000}"


def add_run(commands: Subparsers) -> None:
    """Add ``run PROMPT``."""
    parser = commands.add_parser("run", help="submit a task to a running supervisor and follow it")
    parser.add_more = functools.partial(_add_arguments_of_run, parser)
    parser.set_defaults(run=_command("run_task"))


def _add_arguments_of_run(parser: Parser) -> None:
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="the task; - reads it on stdin")
    _add_connection(parser)
    add(EXECUTION_ID_FLAG, metavar="ID", help="the same id joins, or gets the kept answer [a new one]")
    for name, field in pages()["run"].fields.items():
        if field.kind == "switch":
            add(flag_of(name), dest=name, action="store_true", default=None, help=field.help)
        else:
            action = "append" if field.repeat else "store"
            add(
                flag_of(name), dest=name, action=action, type=_KINDS[field.kind], metavar=field.metavar, help=field.help
            )
    add(
        "--patience",
        type=_amount,
        metavar="SECONDS",
        default=60.0,
        help="how long to keep trying when it does not answer, is full or drains [%(default)g]",
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--follow", action="store_true", help="show the model's text while it is written")
    way.add_argument("--detach", action="store_true", help="print the execution's id and leave it running")
    add("--json", action="store_true", help="one JSON object a line: events, then the answer")


def add_status(commands: Subparsers) -> None:
    """Add ``status``."""
    parser = commands.add_parser("status", help="show slots, token and executions of a running supervisor")
    _add_connection(parser)
    parser.add_argument("--limit", metavar="N", type=int, default=20, help="how many executions [%(default)s]")
    help_of_label = "only executions that have it; repeatable"
    parser.add_argument("--label", metavar="NAME=VALUE", type=_label, action="append", help=help_of_label)
    parser.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    parser.set_defaults(run=_command("status"))


def add_drain(commands: Subparsers) -> None:
    """Add ``drain``."""
    parser = commands.add_parser("drain", help="stop admission; for preStop hooks")
    _add_connection(parser)
    parser.add_argument("--wait", action="store_true", help="until all executions have ended")
    parser.add_argument("--timeout", metavar="SECONDS", type=_amount, help="for --wait [as long as it takes]")
    parser.add_argument("--call-off", action="store_true", help="let executions in again")
    parser.set_defaults(run=_command("waiting", "drain"))


def add_token_wait(actions: Subparsers) -> None:
    """Add ``token wait``."""
    parser = actions.add_parser("wait", help="wait until running executions hold no older token than this one")
    _add_connection(parser)
    parser.add_argument(
        "--fingerprint", metavar="F", type=_fingerprint, required=True, help="of the token, as token show prints it"
    )
    parser.add_argument("--timeout", metavar="SECONDS", type=_amount, help="give up after this [as long as it takes]")
    parser.set_defaults(run=_command("waiting", "token_wait"))


def add_file_access(parser: argparse.ArgumentParser) -> None:
    """Add the flags for a file's mode and group."""
    parser.add_argument("--mode", metavar="MODE", type=_file_mode, help="its permissions, in octal [as they are]")
    parser.add_argument("--group", metavar="GROUP", type=_group_id, help="its group, by name or number [as it is]")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")] if text.strip() else []


def _json_object(text: str) -> Any:
    """Parse a JSON object, or read it from the file of that name; errors do not repeat its content."""
    must_be = "must be a JSON object, or a file with one"
    is_file = not text.lstrip().startswith("{")
    try:
        found = json.loads(Path(text).read_bytes() if is_file else text)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{must_be}: {masked(text)}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        place = (
            f": {error.msg} (line {error.lineno}, column {error.colno})"
            if isinstance(error, json.JSONDecodeError)
            else ""
        )
        raise argparse.ArgumentTypeError(f"{must_be}{f': {text}' if is_file else ''}{place}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{must_be}{f': {text} holds something else' if is_file else ''}")
    return found


def _file_mode(text: str) -> int:
    """Parse octal permissions of a file, which must let its owner read it."""
    if not re.fullmatch("0?[4-7][0-7][0-7]", text):
        raise argparse.ArgumentTypeError(f"must be octal digits that let the owner read, such as 0640, not {text!r}")
    return int(text, 8)


def _group_id(text: str) -> int:
    """Return the id of a group, from the name of one on this machine or any number."""
    if re.fullmatch("[0-9]{1,9}", text):
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"no group of this machine is named {text!r}; its number is as good") from None


def _label(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError("must be NAME=VALUE")
    return name, value


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator and (found := os.environ.get(name)) is None:
        raise argparse.ArgumentTypeError("must be NAME=VALUE, or the NAME of a variable that is set here")
    return name, value if separator else found or ""


def _amount(text: str) -> float:
    """Parse seconds or dollars: a finite number, 0 or more."""
    with contextlib.suppress(ValueError):
        if 0 <= (amount := float(text)) < math.inf:
            return amount
    raise argparse.ArgumentTypeError(f"must be a number, 0 or more{not_this(text)}")


def _above_zero(text: str) -> float:
    """Parse seconds or dollars: a finite number above 0."""
    with contextlib.suppress(argparse.ArgumentTypeError):
        if amount := _amount(text):
            return amount
    raise argparse.ArgumentTypeError(f"must be a number above 0{not_this(text)}")


_KINDS: dict[str, Callable[[str], Any]] = {
    "text": str,
    "whole": int,
    "amount": _amount,
    "above_zero": _above_zero,
    "names": _names,
    "object": _json_object,
    "label": _label,
    "variable": _variable,
}
"""Functions that convert the argument of a flag to a field's value, by the kinds in ``help.toml``."""


def _fingerprint(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{12}", text):
        # The message does not repeat the text, which may be a token by mistake.
        raise argparse.ArgumentTypeError("must be the 12 hex digits that token show prints")
    return text


def _add_connection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default=default_url(), help=f"where it listens [%(default)s] ({PREFIX}URL)")
    key_file = os.environ.get(f"{PREFIX}ACCESS_KEY_FILE")
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        default=Path(key_file) if key_file else None,
        help=f"file with the access key ({PREFIX}ACCESS_KEY_FILE)",
    )


def _command(module: str, name: str = "main") -> Callable[[argparse.Namespace], int]:
    """Return a function that imports the module of a command and calls its function *name*."""

    def run(options: argparse.Namespace) -> int:
        # Imported here, so that the parser is built without the HTTP client.
        connection = importlib.import_module("agent_runtime.cli.connection")
        command = importlib.import_module(f"agent_runtime.cli.{module}")
        return int(connection.exit_code_of(getattr(command, name), options))

    return run
