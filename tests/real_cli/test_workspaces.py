"""Directories and variables of tasks on the real CLI: what its tools find, and what the API is asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, serve
from tests.real_cli.test_hostile_repository import Stranger
from tests.support.supervised import OLD, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.real_cli, pytest.mark.slow, pytest.mark.timeout(300)]

OWN = {"AGENT_RUNTIME_WORKSPACES": "per_execution", "AGENT_RUNTIME_SLOTS": "8"}


@pytest.fixture
def api() -> MessagesApi:
    api = MessagesApi()
    api.accept(OLD)
    return api


@pytest.fixture
def base_url(api: MessagesApi) -> Iterator[str]:
    with serve(api) as url:
        yield url


def tool_results(answer: Any) -> str:
    """Return what the tools gave the model, as the transcript has it."""
    assert answer["status"] == "success", answer
    frames = [frame for frame in answer["execution_log"] if frame["type"] == "user"]
    return "\n".join(
        str(block["content"]) for frame in frames for block in frame["message"]["content"] if isinstance(block, dict)
    )


@pytest.mark.newest_cli
def test_eight_tasks_at_once_see_nothing_of_each_other(
    tmp_path: Path, api: MessagesApi, base_url: str, claude: str
) -> None:
    barrier = tmp_path / "all-there"
    waits = f"for i in $(seq 1200); do test -e {barrier} && break; sleep 0.05; done"
    for number in range(8):
        commands = ("pwd", "env", "ls -A", f"echo word-of-{number} >mine", waits, "cat mine")
        api.script(f"task{number}", Tool(command="; ".join(commands)), Text(text=f"done {number}"))
    with supervised(tmp_path, api_url=base_url, claude=claude, environment=OWN) as running:
        started = [
            running.start(
                f"[[script:task{number}]] Look.",
                execution_id=f"task:{number}.x",
                env={"WORD": f"word-of-{number}", f"ONLY_{number}": "1"},
                **({"cwd": f"given/{number}", "create_cwd": True} if number % 2 else {}),
            )
            for number in range(8)
        ]
        eventually(lambda: len(list(running.workspace.glob("*/*/mine"))) == 8, within_seconds=60)
        barrier.touch()
        for number, pending in enumerate(started):
            answer = pending.answer().json()
            printed = tool_results(answer)
            expected = f"given/{number}" if number % 2 else f"executions/task:{number}.x"
            [init] = [frame for frame in answer["execution_log"] if frame.get("subtype") == "init"]
            assert init["cwd"] == str(running.workspace / expected)
            assert printed.startswith(f"{running.workspace / expected}\n")
            assert f"WORD=word-of-{number}\n" in printed
            assert [n for n in range(8) if n != number and (f"word-of-{n}" in printed or f"ONLY_{n}" in printed)] == []
            assert answer["response"] == f"done {number}"
            assert running.record(f"task:{number}.x")["cwd"] == expected
        assert (running.workspace / "given" / "7" / "mine").read_text() == "word-of-7\n"


@pytest.mark.every_cli
def test_a_session_goes_on_in_its_directory_also_after_a_restart(
    tmp_path: Path, api: MessagesApi, base_url: str, claude: str
) -> None:
    api.script("first", Tool(command="echo first >made; pwd"), Text(text="one"))
    api.script("second", Tool(command="cat made; pwd"), Text(text="two"))
    with supervised(tmp_path, api_url=base_url, claude=claude, environment=OWN) as running:
        session = running.post("[[script:first]] Do it.", execution_id="owner").json()["session_id"]
    shared = {"AGENT_RUNTIME_WORKSPACES": "shared"}
    for name, environment in (("under-own", OWN), ("under-shared", shared)):
        with supervised(tmp_path, api_url=base_url, claude=claude, environment=environment) as running:
            answer = running.post("[[script:second]] Go on.", execution_id=name, resume_session_id=session).json()
            assert tool_results(answer).splitlines()[-2:] == ["first", str(running.workspace / "executions/owner")]
            session = answer["session_id"]
            refused = running.post("x", resume_session_id=session, cwd="elsewhere", create_cwd=True)
            assert (refused.status_code, refused.json()["detail"][:5]) == (400, "cwd: ")
            assert not (running.workspace / "elsewhere").exists()
            assert running.record(name)["cwd"] == "executions/owner"
            fork = running.post("[[script:second]] Go on.", resume_session_id=session, fork_session=True)
            if "install a later version" not in fork.text:
                assert tool_results(fork.json()).endswith(str(running.workspace / "executions/owner"))
                assert fork.json()["session_id"] != session


@pytest.mark.every_cli
def test_settings_of_the_directory_and_of_the_repository_around_it_do_not_decide_on_the_token(
    tmp_path: Path, api: MessagesApi, base_url: str, claude: str
) -> None:
    evil = "sk-ant-oat01-of-a-settings-file-00000000000"
    workspace = tmp_path / "workspace"
    settings = {
        "apiKeyHelper": f"echo {evil}",
        "env": {
            "ANTHROPIC_AUTH_TOKEN": evil,
            "CLAUDE_CODE_OAUTH_TOKEN": evil,
            "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
        },
    }
    for place in ("repo", "repo/part", "added"):
        (workspace / place / ".claude").mkdir(parents=True)
        for name in ("settings.json", "settings.local.json"):
            (workspace / place / ".claude" / name).write_text(json.dumps(settings))
    (workspace / "repo" / ".git").mkdir()
    (workspace / "repo" / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    for name in ("objects", "refs"):
        (workspace / "repo" / ".git" / name).mkdir()
    with supervised(tmp_path, api_url=base_url, claude=claude) as running:
        answer = running.post("Say hello.", cwd="repo/part", add_dirs=["added", "repo"])
    assert answer.json()["status"] == "success"
    assert api.requests
    assert all(request.carries(OLD) for request in api.requests if request.path.startswith("/v1/"))


@pytest.mark.every_cli
def test_further_directories_are_named_to_the_model_by_their_real_paths(tmp_path: Path, claude: str) -> None:
    stranger = Stranger()
    with stranger.listening(), supervised(tmp_path, api_url=stranger.url, claude=claude) as running:
        for name in ("real/one", "two"):
            (running.workspace / name).mkdir(parents=True)
        (running.workspace / "link").symlink_to("real/one")
        running.post("Say hello.", cwd="own", create_cwd=True, add_dirs=["link", "two"], timeout_seconds=20)
    asked = "\n".join(stranger.asked)
    assert str(running.workspace / "real/one") in asked
    assert str(running.workspace / "two") in asked
    assert str(running.workspace / "link") not in asked
