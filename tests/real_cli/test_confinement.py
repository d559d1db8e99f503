"""Confinement with the real Claude Code: it works as ever, and its Bash tool finds no token."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_runtime.process.linux import landlock
from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, serve
from tests.support.supervised import OLD, eventually, supervised
from tests.support.tls_api import tls_api

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.supervised import Supervised

pytestmark = [
    pytest.mark.real_cli,
    pytest.mark.slow,
    pytest.mark.skipif(landlock.version() < landlock.LEAST_ABI, reason="this kernel has no Landlock"),
]


@pytest.fixture
def home() -> Iterator[Path]:
    """Yield a directory that is not below /tmp, where a confined CLI could then make no files."""
    path = Path(tempfile.mkdtemp(dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("mode", ["landlock", "off"])
def test_under_the_relay_the_hunt_of_a_tool_finds_no_token_and_the_same_hunt_without_does(
    home: Path, claude: str, mode: str
) -> None:
    hunt = (
        f"for f in {home}/secret/* {home}/data/* {home}/data/run/*/* /proc/[0-9]*/environ "
        f"/proc/[0-9]*/root/{home}/secret/*; "
        "do cat $f >>found 2>/dev/null; done; git init -q repo; echo made >$(mktemp -p .); node -e 'console.log(1+1)' "
        '>node; echo $CLAUDE_CONFIG_DIR >config; printf %s "$ANTHROPIC_BASE_URL" >base-url; true'
    )
    api = MessagesApi()
    api.script("hunt", Tool(command=hunt), Text(text="hunted"))
    with serve(api) as base_url, tls_api(home / "tls", base_url) as tls:
        own = {"AGENT_RUNTIME_TOKEN_DELIVERY": "relay", "AGENT_RUNTIME_CONFINE": mode, "ANTHROPIC_BASE_URL": ""}
        with supervised(home, claude=claude, environment=own | tls.environ) as run:
            way = eventually(lambda: _way_in(run), 90)
            answer = run.post("[[script:hunt]] Hunt.").json()
            shown = run.get("/health")["confinement"]

    workspace = home / "workspace"
    assert answer.get("response") == "hunted", answer
    assert (OLD.encode() in (workspace / "found").read_bytes()) is (mode == "off")
    assert b"relay-" in (workspace / "found").read_bytes(), "its own identity"
    assert (workspace / "repo/.git/HEAD").exists()
    assert (workspace / "node").read_text() == "2\n"
    assert list((home / "config/projects").rglob("*.jsonl")), "the session can be resumed"
    assert (workspace / "base-url").read_text() == "" or "relay's socket" not in way
    assert (shown["mode"], any(shown["reached"].values())) == (mode, False)


def _way_in(run: Supervised) -> str | None:
    reason: str = run.get("/health")["delivery"]["reason"]
    return None if "yet" in reason else reason
