"""The choice of the CLI that the demo runs."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
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
        name: The CLI's answer to ``--version``.
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
    words = load({}, {"claude": found}).claude
    # In a home of its own, so that the user's configuration is not touched.
    with tempfile.TemporaryDirectory(prefix="agent-runtime-demo-") as home:
        environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": home, "CLAUDE_CONFIG_DIR": home}
        environ["DISABLE_AUTOUPDATER"] = environ["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] = "1"
        try:
            asked = subprocess.run(
                [*words, "--version"],
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=VERSION_TIMEOUT_SECONDS,
                check=True,
            )
            version = textwrap.shorten(asked.stdout.decode(errors="replace"), VERSION_LIMIT)
        except (OSError, subprocess.SubprocessError):
            version = ""
    if not version.isprintable() or not version:
        where = "the claude on PATH" if claude is None else "--claude: this command"
        raise SettingsInvalid(f"{where} does not answer --version; give the Claude Code CLI, or --scripted")
    return Cli(version, shlex.join(words), "found on PATH" if claude is None else "given by --claude")
