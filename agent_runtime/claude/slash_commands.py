"""
Messages that begin with a slash: the CLI may read them as commands, and its own commands never reach the model.

Skills and custom commands do reach the model, and so does any message with a blank in front.

Source: 1.0.128, 2.0.76, 2.1.30, 2.1.114, 2.1.197, 2.1.330 and 2.1.332 against the stand-in API. None of them reads a
message with images as a command. To an unknown name they answer "Unknown command", "Unknown skill" or nothing, and from
2.1.330 on they ask the model.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from agent_runtime.model.task import Task

_COMMAND = re.compile(r"/(\S*)(\s+\S)?")

_CHANGING = re.compile(
    "autocompact|clear|color|compact|config|effort|fast|heapdump|logout|mcp|model|output-style|rename"
)
"""
The CLI's own commands that change, or may change, the session, the settings or the disk, even with text behind them.

Source: 2.1.332 run with each of its commands; ``clear`` and ``compact`` in all versions.
"""


def is_bare_command(task: Task) -> bool:
    """Whether the message is only a command word: then the CLI's own answer is the requested one."""
    match = _COMMAND.match(task.message)
    return match is not None and match[2] is None and not task.images


def has_text_behind(task: Task) -> bool:
    """Whether the message is a command word with text behind it, which may be meant for the model."""
    match = _COMMAND.match(task.message)
    return match is not None and match[2] is not None and not task.images


def would_change_something(task: Task, workspace: Path, cwd: Path, config_dir: Path) -> bool:
    """Whether the CLI would change itself because of a message that has text for the model."""
    match = _COMMAND.match(task.message)
    if match is None or _CHANGING.fullmatch(match[1]) is None or not has_text_behind(task):
        return False
    added = [workspace / path for path in task.add_dirs or ()]  # heeded since 2.1.114
    places = (config_dir, *(place / ".claude" for place in (cwd, *cwd.parents, *added)))
    return not any(path.exists() for path in _definitions(match[1], places))


def _definitions(name: str, places: Iterable[Path]) -> Iterator[Path]:
    """List the files of a custom command or skill of that name, which overrides the CLI's own."""
    for directory in places:
        yield directory / "commands" / f"{name}.md"
        yield directory / "skills" / name / "SKILL.md"
