"""Confinement with the real Claude Code: it works as ever, and its Bash tool finds no token."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.process.linux import landlock
from agent_runtime.standins.messages_api import MessagesApi, serve
from tests.support.hunted import assert_kept, hunted
from tests.support.tls_api import tls_api

pytestmark = [pytest.mark.real_cli, pytest.mark.slow, pytest.mark.timeout(300)]

MODES = [
    pytest.param(
        "landlock",
        marks=pytest.mark.skipif(landlock.version() < landlock.LEAST_ABI, reason="this kernel has no Landlock"),
    ),
    pytest.param("user", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root")),
]
WORK = "git init -q repo; echo made >$(mktemp -p .); node -e 'console.log(1+1)' >node; env >seen-by-tool"
EVENTS = ("SessionStart", "UserPromptSubmit", "PreToolUse", "PostToolUse", "Stop", "SessionEnd")


@pytest.mark.parametrize("mode", MODES)
def test_under_the_relay_the_hunt_of_a_tool_finds_no_token(claude: str, mode: str) -> None:
    _hunt(claude, mode)


@pytest.mark.newest_cli
def test_the_same_hunt_without_confinement_and_relay_finds_the_token(claude: str) -> None:
    _hunt(claude, "env")


def _hunt(claude: str, mode: str) -> None:
    api, is_old = MessagesApi(), Path(claude).resolve().suffix == ".js"
    # Not below /tmp, where a confined CLI could then make no files.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory, serve(api) as base_url:
        home = Path(directory)
        _plant(home / "workspace", no_shell=mode == "user")
        with tls_api(home / "tls", base_url) as tls:
            # A CLI that takes no socket reaches the relay's port whatever the base URL is.
            environment = {"ANTHROPIC_BASE_URL": base_url} if is_old else {"ANTHROPIC_BASE_URL": "", **tls.environ}
            hunt = hunted(home, mode, api, claude=claude, environment=environment, more=WORK)
        workspace = home / "workspace"

        assert_kept(hunt, mode)
        assert ("relay's socket" in hunt.way) is (mode != "env" and not is_old)
        assert (workspace / "repo/.git/HEAD").exists()
        assert (workspace / "node").read_text() == "2\n"
        assert list((home / "config/projects").rglob("*.jsonl")), "the session can be resumed"
        seen = {path.name: path.read_text() for path in workspace.glob("seen-by-*")}
        assert "seen-by-tool" in seen
        assert is_old or len(seen) == 2 + len(EVENTS) + (mode == "user"), sorted(seen)
        assert [name for name, text in seen.items() if "http://api.anthropic.com" in text] == [], "sent in clear"


def _plant(workspace: Path, *, no_shell: bool) -> None:
    """Write a repository whose hooks and MCP server write down their environment, one of them without a shell."""
    (workspace / ".claude").mkdir(parents=True)
    hooks: dict[str, list[dict[str, Any]]] = {
        event: [{"hooks": [{"type": "command", "command": f"env >>{workspace}/seen-by-{event}; true"}]}]
        for event in EVENTS
    }
    if no_shell:
        words = ["-c", f"env >>{workspace}/seen-by-program"]
        hooks["Stop"].append({"hooks": [{"type": "command", "command": "/bin/sh", "args": words}]})
    settings = {"enableAllProjectMcpServers": True, "hooks": hooks, "env": {"CLAUDE_CODE_SHELL_PREFIX": ""}}
    (workspace / ".claude/settings.json").write_text(json.dumps(settings))
    server = {"command": "sh", "args": ["-c", f"env >>{workspace}/seen-by-mcp"]}
    (workspace / ".mcp.json").write_text(json.dumps({"mcpServers": {"stdio": server}}))
