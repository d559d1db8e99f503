"""
What schemathesis makes of the OpenAPI document is answered by a live supervisor as that says, in all its checks.

``schemathesis.toml`` has its settings and what is expected beside its defaults.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent_runtime.api.app import ROUTES
from agent_runtime.standins.messages_api import MessagesApi, serve
from tests.support.supervised import QUICK_CLI, Supervised, supervised

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")


def schemathesis(running: Supervised, *arguments: str) -> str:
    """Run it to the end and return what it prints; a failure of any check fails the test with that."""
    program = Path(sys.executable).with_name("schemathesis")
    assert program.exists(), "it comes with the extra fuzz"
    done = subprocess.run(
        [program, "--config-file", CONFIGURATION, "run", f"{running.url}/openapi.json", "--checks", "all", *arguments],
        cwd=running.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    key = "the-access-key-of-these-tests"
    (tmp_path / "key").write_text(key)
    flags = ("--access-key-file", str(tmp_path / "key"))
    header = ("--header", f"Authorization: Bearer {key}")
    claude = QUICK_CLI
    with serve(MessagesApi()) as api_url, supervised(tmp_path, api_url=api_url, claude=claude, flags=flags) as running:
        told = schemathesis(running, *header, "--exclude-operation-id", "startDrain")
        assert f"Tested: {len(ROUTES) - 2}\n" in told, told  # it leaves out the document's own path
        ended = running.client.get("/api/executions?outcome=success&limit=200", headers={"X-Agent-Token": key})
        assert len(ended.json()["executions"]) > 30, f"hardly a task was admitted\n{told}"

        # Last and once: a drain turns every task away.
        schemathesis(running, *header, "--include-operation-id", "startDrain", "--include-operation-id", "isReady")
