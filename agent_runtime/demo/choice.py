"""The choice of the CLI that the demo runs."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from dataclasses import dataclass

from agent_runtime.delivery.reload_check import CheckedCli
from agent_runtime.errors import AgentRuntimeError, SettingsInvalid
from agent_runtime.process.spawn import Spawner
from agent_runtime.settings import load


@dataclass(frozen=True, slots=True)
class Cli:
    """
    The CLI of this run.

    Attributes:
        name: The CLI's name and version.
        command: The value for the setting ``AGENT_RUNTIME_CLAUDE``.
        reason: Why this CLI was chosen.
    """

    name: str
    command: str
    reason: str


def choose_cli(claude: str | None, *, scripted: bool) -> Cli:
    """
    Return the CLI that was asked for, else the real one on PATH, else the scripted one.

    Raises:
        SettingsInvalid: *claude*, or the one on PATH, cannot be run.
    """
    found = claude or shutil.which("claude")
    if scripted or found is None:
        command = shlex.join([sys.executable, "-m", "agent_runtime.standins.scripted_cli"])
        reason = "asked for with --scripted" if scripted else "there is no claude on PATH"
        return Cli("the scripted stand-in of Claude Code", command, reason)
    words, version = load({}, {"claude": found}).claude, None
    with contextlib.suppress(AgentRuntimeError), contextlib.closing(Spawner()) as spawner:
        version = CheckedCli(spawner, words, os.environ).find_out().version
    if version is None:
        where = "the claude on PATH" if claude is None else "--claude: this command"
        raise SettingsInvalid(f"{where} does not answer --version; give the Claude Code CLI, or --scripted")
    reason = "found on PATH" if claude is None else "given by --claude"
    return Cli(f"Claude Code {version}", shlex.join(words), reason)
