"""What the README tells a person to type, in an empty directory: without the CLI and an account, as it says."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.pages import README, blocks, section
from tests.support.supervised import DEADLINE_SECONDS, NEW, OLD

pytestmark = pytest.mark.slow


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def test_its_commands_run_a_task_and_switch_the_token_in_an_empty_directory(tmp_path: Path) -> None:
    port, api_port = free_ports(2)
    lines = section(README, "Run it")
    [run_it] = blocks(lines, "bash")
    inline = re.findall(r"`([^`]+)`", "\n".join(lines).replace(f"```bash\n{run_it}```", ""))
    [scripted] = [code for code in inline if code.startswith("AGENT_RUNTIME_CLAUDE=")]
    [stand_in] = [code for code in inline if "messages_api" in code]
    [ask] = [code for code in inline if code.startswith("agent-runtime run ")]
    [call_it] = blocks(section(README, "Call it"), "sh")
    [switch] = re.findall(r"`(agent-runtime token put [^`]+)`", "\n".join(section(README, "Switch the token")))
    without_account = re.sub(r"^claude setup-token.*\n", "", run_it, flags=re.MULTILINE)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("AGENT_", "CLAUDE", "ANTH"))}
    environ |= {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{environ['PATH']}",
        "AGENT_RUNTIME_PORT": str(port),
    }

    def typed(commands: str) -> list[str]:
        text = commands.replace("8001", str(api_port)).replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        return ["bash", "-euo", "pipefail", "-c", text]

    def type_in(commands: str) -> str:
        return subprocess.run(
            typed(commands),
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=True,
        ).stdout

    first = subprocess.Popen(
        typed(f"trap 'kill 0' ERR\nexport {scripted}\n{stand_in}\n{without_account}"),
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with first:
        try:
            assert first.stdin is not None
            assert first.stdout is not None
            first.stdin.write(f"{OLD}\n")
            first.stdin.close()
            assert any(line == f"listening on http://127.0.0.1:{port}\n" for line in first.stdout), "it ended"
            assert type_in(ask)
            assert json.loads(type_in(call_it))["metadata"]["token_generation"] == 1

            (tmp_path / "token.txt").write_text(f"{NEW}\n")
            type_in(switch)
            answer = json.loads(type_in(call_it.replace("hello-1", "hello-2")))
            assert (answer["status"], answer["metadata"]["token_generation"]) == ("success", 2)
        finally:
            os.killpg(first.pid, signal.SIGTERM)
