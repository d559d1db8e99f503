"""
Messages that begin with a slash: the CLI may take them for commands, and those of its own never reach the model.

Skills and custom commands do reach it, and so does any message with a blank in front.

Source: 1.0.128, 2.0.76, 2.1.30, 2.1.114, 2.1.197, 2.1.330 and 2.1.332 against the stand-in API. None of them looks for
a command where images come with the message. Of a name that is nobody's they say "Unknown command", "Unknown skill" or
nothing, and from 2.1.330 on they ask the model.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent_runtime.model.task import Task

_COMMAND = re.compile(r"/(\S*)(\s+\S)?")

CHANGING_COMMANDS = frozenset(
    {
        "autocompact",
        "clear",
        "color",
        "compact",
        "config",
        "effort",
        "fast",
        "heapdump",
        "logout",
        "mcp",
        "model",
        "output-style",
        "rename",
    }
)
"""
Commands of the CLI's own that change the session, the settings or the disk, or may: with text behind them, too.

Source: 2.1.332 run with each of its commands; ``clear`` and ``compact`` in all versions.
"""


def is_bare_command(task: Task) -> bool:
    """Whether the message is a command word and nothing else: what the CLI answers to it is what was asked for."""
    match = _COMMAND.match(task.message)
    return match is not None and match[2] is None and not task.images


def has_text_behind(task: Task) -> bool:
    """Whether the message is a command word with text behind it, which a person may have written to the model."""
    match = _COMMAND.match(task.message)
    return match is not None and match[2] is not None and not task.images


def would_change_something(task: Task, workspace: Path, config_dir: Path) -> bool:
    """Whether the CLI would do something to itself with a message that has text for the model."""
    match = _COMMAND.match(task.message)
    if match is None or match[1] not in CHANGING_COMMANDS or not has_text_behind(task):
        return False
    return not any(path.exists() for path in _definitions(match[1], workspace, config_dir))


def _definitions(name: str, workspace: Path, config_dir: Path) -> Iterator[Path]:
    """List where a custom command or a skill of that name, which comes before the CLI's own, would be defined."""
    for directory in (config_dir, *(parent / ".claude" for parent in (workspace, *workspace.parents))):
        yield directory / "commands" / f"{name}.md"
        yield directory / "skills" / name / "SKILL.md"
