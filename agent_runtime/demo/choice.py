"""The choice of the CLI that the demo runs."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from agent_runtime.errors import SettingsInvalid
from agent_runtime.settings import load

VERSION_TIMEOUT_SECONDS = 20.0
VERSION_LIMIT = 60


@dataclass(frozen=True, slots=True)
class Cli:
    """
    The CLI of this run.

    Attributes:
        name: Its answer to ``--version``.
        command: As the setting ``AGENT_RUNTIME_CLAUDE`` takes it.
    """

    name: str
    command: str
    reason: str


def choose_cli(claude: str | None, *, scripted: bool) -> Cli:
    """
    Return the CLI that was asked for, else the real one where there is one, else the scripted one.

    Raises:
        SettingsInvalid: *claude* cannot be run, or contradicts *scripted*.
    """
    if claude is not None and scripted:
        raise SettingsInvalid("--claude: cannot be given together with --scripted")
    if scripted:
        return _scripted("asked for with --scripted")
    found = shutil.which("claude")
    if claude is not None:
        command, reason = load({}, {"claude": claude}).claude, "given by --claude"
    elif found is not None:
        command, reason = (found,), "found on PATH"
    else:
        return _scripted("there is no claude on PATH")
    if (version := _version(command)) is not None:
        return Cli(version, shlex.join(command), reason)
    if claude is not None:
        raise SettingsInvalid("--claude: this command does not answer --version; it must be the Claude Code CLI")
    return _scripted("the claude on PATH does not answer --version")


def _scripted(reason: str) -> Cli:
    command = shlex.join([sys.executable, "-m", "agent_runtime.standins.scripted_cli"])
    return Cli("the scripted stand-in of Claude Code", command, reason)


def _version(command: tuple[str, ...]) -> str | None:
    """Ask the CLI for its version, away from the user's own configuration; None: it does not say."""
    with tempfile.TemporaryDirectory(prefix="agent-runtime-demo-") as home:
        environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": home, "CLAUDE_CONFIG_DIR": home}
        environ["DISABLE_AUTOUPDATER"] = environ["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] = "1"
        try:
            asked = subprocess.run(
                [*command, "--version"],
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=VERSION_TIMEOUT_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
    text = " ".join(asked.stdout.decode(errors="replace").split())[:VERSION_LIMIT]
    return text if text.isprintable() and text else None
