"""What the CLI is started with: nothing of a task becomes an option, nothing inherited beats the delivered token."""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path

import pytest

from agent_runtime.claude.invocation import (
    CONTINUE_PROMPT,
    Session,
    arguments,
    environment,
    resolve,
    stdin_bytes,
    write_settings,
)
from agent_runtime.errors import SpawnFailed
from agent_runtime.model.task import Image, Task

NEW_SESSION = Session(uuid.UUID(int=1))
PIXEL = base64.b64encode(b"pixel").decode()


def words(task: Task, session: Session = NEW_SESSION, mcp_file: Path | None = None) -> tuple[str, ...]:
    return arguments(task, session, settings_file=Path("/run/settings.json"), mcp_file=mcp_file)


def test_what_is_measured_to_be_needed_is_always_there() -> None:
    assert set(words(Task(message="x"))) >= {
        "-p",
        "--output-format=stream-json",
        "--verbose",
        "--include-partial-messages",
        "--debug-to-stderr",
        "--dangerously-skip-permissions",
        f"--session-id={uuid.UUID(int=1)}",
    }


def test_no_value_of_a_task_stands_in_a_word_of_its_own() -> None:
    hostile = "--dangerously-evil"
    task = Task(
        message=hostile,
        system_prompt=hostile,
        allowed_tools=[hostile],
        disallowed_tools=[hostile],
        max_turns=3,
        mcp_config={hostile: hostile},
    )

    given = words(task, mcp_file=Path("/run/mcp.json"))

    assert not any(word.startswith(hostile) for word in given)
    assert {f"--append-system-prompt={hostile}", f"--allowedTools={hostile}", "--max-turns=3"} <= set(given)
    assert not any("evil" in word for word in given if word.startswith("--mcp-config"))


def test_the_message_goes_by_stdin_only() -> None:
    task = Task(message="a secret plan")

    assert stdin_bytes(task, NEW_SESSION) == b"a secret plan"
    assert not any("secret" in word for word in words(task))


def test_a_resumed_session_is_told_to_continue() -> None:
    session = Session(uuid.UUID(int=7), resumes=True, prompt=CONTINUE_PROMPT)
    task = Task(message="x", images=[Image(media_type="image/png", data=PIXEL)])

    given = words(task, session)

    assert f"--resume={uuid.UUID(int=7)}" in given
    assert not any(word.startswith(("--session-id", "--input-format")) for word in given)
    assert stdin_bytes(task, session) == CONTINUE_PROMPT.encode()


def test_images_go_as_one_user_frame() -> None:
    task = Task(message="Look.", images=[Image(media_type="image/png", data=PIXEL)])

    frame = json.loads(stdin_bytes(task, NEW_SESSION))

    assert "--input-format=stream-json" in words(task)
    assert frame["message"]["content"][0] == {"type": "text", "text": "Look."}
    assert frame["message"]["content"][1]["source"] == {"type": "base64", "media_type": "image/png", "data": PIXEL}


INHERITED = {
    "PATH": "/bin",
    "ANTHROPIC_BASE_URL": "http://127.0.0.1:1",
    "HTTPS_PROXY": "http://127.0.0.1:2",
    "AWS_ACCESS_KEY_ID": "a tool needs it",
    "GOOGLE_APPLICATION_CREDENTIALS": "a tool needs it",
    "ANTHROPIC_API_KEY": "rival",
    "ANTHROPIC_AUTH_TOKEN": "rival",
    "CLAUDE_CODE_OAUTH_TOKEN": "rival",
    "CLAUDE_CODE_USE_BEDROCK": "1",
    "CLAUDE_CODE_USE_SOMETHING_NEW": "1",
    "AWS_BEARER_TOKEN_BEDROCK": "rival",
    "ANTHROPIC_CUSTOM_HEADERS": "Authorization: Bearer rival\nX-Team: blue",
    "CLAUDE_CODE_RETRY_WATCHDOG": "1",
    "AGENT_RUNTIME_ACCESS_KEY_FILE": "/secret",
}


def built(*, as_root: bool = False) -> dict[str, str]:
    return environment(
        INHERITED,
        execution_id="e-1",
        config_dir=Path("/config"),
        delivered={"CLAUDE_CODE_OAUTH_TOKEN": "delivered"},
        as_root=as_root,
    )


def test_the_child_inherits_everything_but_credentials_and_our_own_variables() -> None:
    assert built() == {
        "PATH": "/bin",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:1",
        "HTTPS_PROXY": "http://127.0.0.1:2",
        "AWS_ACCESS_KEY_ID": "a tool needs it",
        "GOOGLE_APPLICATION_CREDENTIALS": "a tool needs it",
        "ANTHROPIC_CUSTOM_HEADERS": "X-Team: blue",
        "CLAUDE_CODE_OAUTH_TOKEN": "delivered",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CONFIG_DIR": "/config",
        "AGENT_RUNTIME_EXECUTION_ID": "e-1",
    }


def test_root_is_told_to_be_in_a_sandbox() -> None:
    assert built(as_root=True)["IS_SANDBOX"] == "1"


@pytest.mark.parametrize("variable", ["CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_API_KEY"])
def test_the_settings_file_means_the_supervisors_server_and_the_delivered_token(variable: str) -> None:
    written: dict[str, bytes] = {}

    def write(name: str, content: bytes) -> Path:
        written[name] = content
        return Path("/run", name)

    assert write_settings(write, {variable: "delivered"}, INHERITED) == Path("/run/settings.json")

    settings = json.loads(written.pop("settings.json"))
    assert settings["env"]["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:1"
    assert "rival" not in json.dumps(settings)
    if variable == "ANTHROPIC_API_KEY":
        assert written == {"api-key": b"delivered\n"}
        assert "/run/api-key" in settings["apiKeyHelper"]
        assert "delivered" not in json.dumps(settings)
    else:
        assert written == {}
        assert settings["apiKeyHelper"] == ""
        assert settings["env"][variable] == "delivered"


@pytest.mark.parametrize("command", [("no-such-command",), ("/no/such/file",), ("/etc/passwd",)])
def test_a_cli_that_cannot_be_run_is_told_before_anything_is_spawned(command: tuple[str, ...]) -> None:
    with pytest.raises(SpawnFailed, match="AGENT_RUNTIME_CLAUDE"):
        resolve(command, "/bin:/usr/bin")


def test_an_empty_list_asks_for_no_tools_and_no_settings_files() -> None:
    asked = words(Task(message="x", tools=[], setting_sources=[], json_schema={}, allowed_tools=[]))

    assert {"--tools=", "--setting-sources=", "--json-schema={}"} <= set(asked)
    assert not any(word.startswith("--allowedTools") for word in asked)
    assert not any(word.startswith(("--tools", "--setting-sources")) for word in words(Task(message="x")))


def test_another_permission_mode_takes_the_place_of_the_flag_that_skips_permissions() -> None:
    skipping, planning = words(Task(message="x", permission_mode="bypassPermissions")), words(PLANNING)

    assert "--dangerously-skip-permissions" in skipping
    assert "--permission-mode=plan" in planning
    assert "--dangerously-skip-permissions" not in planning
    assert "--permission-mode=default" in words(Task(message="x", permission_mode="manual"))


PLANNING = Task(message="x", permission_mode="plan")


def test_what_is_no_text_is_written_as_the_cli_reads_it() -> None:
    agents = {"rev": {"description": "Reviews", "prompt": "--evil"}}
    task = Task(message="x", agents=agents, json_schema={"type": "object"}, strict_mcp_config=True, max_budget_usd=1e-5)
    asked = words(task)

    assert {'--json-schema={"type":"object"}', "--strict-mcp-config", "--max-budget-usd=1e-05"} <= set(asked)
    assert f"--agents={json.dumps(agents, separators=(',', ':'))}" in asked


def test_a_fork_is_a_session_of_its_own_that_resumes_another() -> None:
    task = Task(message="x", resume_session_id=uuid.UUID(int=5), fork_session=True)
    first = words(task, Session(uuid.UUID(int=1), forks=uuid.UUID(int=5)))
    later = words(task, Session(uuid.UUID(int=1), resumes=True, prompt=CONTINUE_PROMPT))

    assert {f"--resume={uuid.UUID(int=5)}", "--fork-session", f"--session-id={uuid.UUID(int=1)}"} <= set(first)
    assert f"--resume={uuid.UUID(int=1)}" in later
    assert not {"--fork-session", f"--resume={uuid.UUID(int=5)}"} & set(later)
