"""
Find out from the installed CLI's own ``--help`` which options it has, because fields of a task become options.

Source: ``--help`` of 1.0.128, 2.0.76, 2.1.30, 2.1.114, 2.1.197, 2.1.330 and 2.1.332, compared with what each accepts.
An option in :data:`LISTED` is in the help of every version that accepts it. Some options are accepted but not in the
help (``--max-turns`` of all versions, ``--system-prompt`` of 1.0.128), so those are not checked.
"""

from __future__ import annotations

import functools
import re

import msgspec

from agent_runtime.errors import ErrorClass, InvalidRequest, plain_detail
from agent_runtime.model.task import CLI_FLAGS, DEFAULT_PERMISSION_MODE, Task

LISTED = (
    *("fallback_model", "effort", "permission_mode", "tools", "max_budget_usd", "json_schema", "agents", "agent"),
    *("fork_session", "strict_mcp_config", "setting_sources", "add_dirs"),
)
"""The fields whose option is listed in the help of every version that has it."""

_OF_ALL = {"--output-format", "--resume"}
"""Options in the help of every version: a text without them is not the CLI's help."""

_SNAPSHOT = "--system-prompt-snapshot"
_ENTRY = r"\n {1,4}(?=-)"
_NAMES = r"--[A-Za-z][\w-]*"
_QUOTED = r"\(choices: ([^)]*)\)"
_PLAIN = r"\(([a-z]+(?:, [a-z]+)+)\)"
_SAME_MODES = {"default", "manual"}


class CliOptions(msgspec.Struct, frozen=True, dict=True):
    """
    The options of one CLI.

    Attributes:
        version: As the CLI reports it.
        help: The text that the CLI prints on ``--help``.
    """

    version: str | None
    help: str

    @functools.cached_property
    def _texts(self) -> dict[str, str]:
        """The text of each option, its values included."""
        texts: dict[str, str] = {}
        for entry in re.split(_ENTRY, self.help)[1:]:
            text = " ".join(entry.split())
            head = re.split(r"\s[<\[]|\s{2}|\n", entry, maxsplit=1)[0]
            texts |= dict.fromkeys(re.findall(_NAMES, head), text)
        return texts

    @property
    def is_usable(self) -> bool:
        """Whether the text is the help of the CLI, and not that of a wrapper or an error."""
        return self._texts.keys() >= _OF_ALL

    @property
    def takes_agents_file(self) -> bool:
        """Whether agents may be given as a file, which keeps them out of the list of processes (2.1.330)."""
        return "<json-or-file>" in self._texts.get(CLI_FLAGS["agents"], "")

    def fault(self, task: Task) -> InvalidRequest | None:
        """Return the error for the first field of *task* that this CLI does not support; None: it supports all."""
        for field in LISTED:
            flag, value = CLI_FLAGS[field], getattr(task, field)
            if _asks_nothing(field, value):
                continue
            text, reason = self._texts.get(flag), None
            if text is None:
                reason = f"does not know {flag}; leave the field out, or install a later version"
            elif field in ("effort", "permission_mode") and not _is_choice(choices := _choices(text), value):
                reason = f"does not know this value, only {', '.join(choices)}"
            elif field == "fallback_model" and "," in value and "comma" not in text:
                reason = "takes one model; leave the others out, or install a later version"
            if reason is not None:
                version = "" if self.version is None else f", Claude Code {self.version},"
                words = plain_detail(ErrorClass.INVALID_REQUEST, f"the CLI in use{version} {reason}")
                return InvalidRequest(f"{field}: {words}")
        return None

    def further(self, task: Task) -> tuple[str, ...]:
        """
        Return additional options without which this CLI would ignore a field of *task*.

        2.1.330 and later send the system prompt that a session began with, whatever a resumed process is given.
        """
        return (f"{_SNAPSHOT}=off",) if _replaces_prompt(task) and _SNAPSHOT in self._texts else ()


def depends_on_cli(task: Task) -> bool:
    """Whether *task* has a field that some versions of the CLI do not support, so that the options must be checked."""
    return _replaces_prompt(task) or not all(_asks_nothing(field, getattr(task, field)) for field in LISTED)


def _replaces_prompt(task: Task) -> bool:
    """Whether the task gives an earlier session a system prompt."""
    return task.resume_session_id is not None and bool(task.system_prompt or task.replace_system_prompt)


def _asks_nothing(field: str, value: object) -> bool:
    nothing: dict[str, object] = {"permission_mode": DEFAULT_PERMISSION_MODE, "add_dirs": []}
    return value is None or value is False or value == nothing.get(field)


def _choices(text: str) -> list[str]:
    """Return the values that an option's *text* lists; empty: it lists none."""
    if (quoted := re.search(_QUOTED, text)) is not None:
        return re.findall(r'"([^"]+)"', quoted[1])
    plain = re.search(_PLAIN, text)
    return plain[1].split(", ") if plain is not None else []


def _is_choice(choices: list[str], value: str) -> bool:
    """Whether *choices* has the value, by this or its other name; True if the help lists none, and the CLI decides."""
    asked = _SAME_MODES if value in _SAME_MODES else {value}
    return not choices or bool(asked & set(choices))
