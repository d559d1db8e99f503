"""What the CLI in use knows by its own --help, and what a caller is told of what it does not know."""

from __future__ import annotations

import asyncio
import shlex
import sys
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.delivery.cli_options import LISTED, CliOptions, depends_on_cli
from agent_runtime.delivery.reload_check import CheckedCli
from agent_runtime.delivery.reload_results import BackgroundReloadChecker, ReloadResults
from agent_runtime.model.task import CLI_FLAGS, Task
from tests.support.families import spawner
from tests.support.supervised import SCRIPTED, supervised

if TYPE_CHECKING:
    from pathlib import Path

OLD_HELP = """Usage: claude [options] [command] [prompt]

Options:
  --add-dir <directories...>                        Additional directories, as --effort <level> is not one (low, high)
  --agents <json>                                   JSON object defining custom agents
  --allowedTools, --allowed-tools <tools...>        Comma or space-separated list of tool names to allow
  --fallback-model <model>                          Enable automatic fallback to specified model
  --output-format <format>                          Output format (choices: "text", "json", "stream-json")
  --permission-mode <mode>                          Permission mode (choices: "acceptEdits", "default", "plan")
  -r, --resume [value]                              Resume a conversation by session ID
  --tools <tools...>                                Specify the list of available tools

Commands:
  agents [options]  --agent <agent>  List configured agents
"""
NEW_HELP = """Usage: claude [options] [command] [prompt]

Options:
  --agents <json-or-file>               JSON object defining custom agents, or
                                        with --print the path to a file
  --effort <level>                      Effort level for the current session
                                        (low, medium, high,
                                        xhigh)
  --exclude-dynamic-system-prompt-sections
      Move per-machine sections
  --fallback-model <model>              Models to fall back to
                                        (comma-separated, in order)
  --output-format <format>              Output format
  --permission-mode <mode>              Permission mode (choices: "acceptEdits",
                                        "auto", "manual", "plan")
  -r, --resume [value]                  Resume a conversation by session ID
  --system-prompt-snapshot <on|off>     Record the system prompt once
"""
OLD, NEW = CliOptions("2.1.30", OLD_HELP), CliOptions("2.1.332", NEW_HELP)
SESSION: Any = "5b1f3a5e-9a4c-4a5e-8f49-0a5d7c1e2b3f"


def told(options: CliOptions, **fields: Any) -> str | None:
    fault = options.fault(Task(message="x", **fields))
    return None if fault is None else str(fault)


@pytest.mark.parametrize("field", LISTED)
def test_an_option_that_is_not_in_the_help_is_told_with_field_and_version(field: str) -> None:
    values: dict[str, Any] = {"fork_session": True, "strict_mcp_config": True, "max_budget_usd": 1.0}
    values |= {
        "tools": [],
        "setting_sources": [],
        "agents": {"a": {}},
        "json_schema": {},
        "permission_mode": "plan",
        "add_dirs": ["a"],
    }
    text = told(
        CliOptions("2.1.30", "Options:\n  --output-format <x>\n  --resume\n"), **{field: values.get(field, "x")}
    )

    assert text is not None
    assert text.startswith(f"{field}: ")
    assert "2.1.30" in text
    assert CLI_FLAGS[field] in text


def test_what_it_knows_passes() -> None:
    assert told(OLD, agents={"a": {}}, tools=[], permission_mode="plan", fallback_model="haiku") is None
    assert told(NEW, effort="high", permission_mode="auto", fallback_model="haiku,opus") is None
    assert told(OLD, model="m", max_turns=3, system_prompt="x", replace_system_prompt="x", allowed_tools=["x"]) is None
    assert told(OLD, permission_mode="bypassPermissions", fork_session=False, strict_mcp_config=False) is None


@pytest.mark.parametrize(
    ("options", "fields", "words"),
    [
        (OLD, {"effort": "low"}, "does not know --effort"),
        (OLD, {"agent": "rev"}, "does not know --agent;"),
        (OLD, {"permission_mode": "auto"}, "only acceptEdits, default, plan"),
        (OLD, {"fallback_model": "haiku,opus"}, "takes one model"),
        (NEW, {"effort": "max"}, "only low, medium, high, xhigh"),
        (NEW, {"permission_mode": "dontAsk"}, "does not know this value"),
    ],
)
def test_what_it_does_not_know_is_told(options: CliOptions, fields: dict[str, Any], words: str) -> None:
    text = told(options, **fields)

    assert text is not None
    assert words in text


def test_both_names_of_a_mode_are_one() -> None:
    assert [told(options, permission_mode=mode) for options in (OLD, NEW) for mode in ("manual", "default")] == [
        None
    ] * 4


def test_a_version_that_looks_like_a_status_is_not_repeated() -> None:
    text = told(CliOptions("2.1.401", OLD_HELP), effort="low")

    assert text is not None
    assert "401" not in text


def test_a_new_system_prompt_for_an_earlier_session_is_heeded() -> None:
    task = Task(message="x", resume_session_id=SESSION, replace_system_prompt="x")

    assert depends_on_cli(task)
    assert NEW.further(task) == ("--system-prompt-snapshot=off",)
    assert OLD.further(task) == ()
    assert NEW.further(Task(message="x", replace_system_prompt="x")) == ()
    assert not depends_on_cli(Task(message="x", system_prompt="x", permission_mode="bypassPermissions"))


def test_agents_are_given_as_a_file_where_one_is_taken() -> None:
    assert (OLD.takes_agents_file, NEW.takes_agents_file) == (False, True)


@pytest.mark.parametrize("help_text", ["", "error: unknown option", "Usage: wrapper [--resume]", OLD_HELP[:60]])
def test_what_is_no_help_of_the_cli_is_not_used(help_text: str) -> None:
    assert not CliOptions("2.1.30", help_text).is_usable
    assert OLD.is_usable
    assert NEW.is_usable


def wrapper(path: Path, on_help: str) -> str:
    """Write a CLI that counts how often it is asked for its help."""
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = --help ]; then echo asked >>{path}.asked; {on_help}; fi\nexec {SCRIPTED} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


SCRIPT = {"script": [{"do": "init"}, {"do": "assistant", "text": "Hello."}, {"do": "result"}]}


def test_it_is_asked_once_and_remembered_over_a_restart(tmp_path: Path) -> None:
    (tmp_path / "help").write_text(OLD_HELP)
    cli = wrapper(tmp_path / "claude", f"exec cat {tmp_path}/help")
    asked = tmp_path / "claude.asked"
    for execution_id in ("one", "two"):
        with supervised(tmp_path / "home", claude=cli) as running:
            assert running.post(SCRIPT).status_code == 200
            first = running.post(SCRIPT, execution_id=execution_id, effort="low")
            again = running.post(SCRIPT, execution_id=execution_id, effort="low").json()
            known = running.post(SCRIPT, execution_id=execution_id, tools=["Bash"]).json()

            assert (first.status_code, again["error_class"]) == (400, "invalid_request")
            assert again["detail"].startswith("effort: the CLI in use, Claude Code 2.1.330, does not know --effort;")
            assert known["status"] == "success"
            assert running.client.get(f"/api/executions/{execution_id}").json()["metadata"]["attempts"] == 1
    assert asked.read_text().splitlines() == ["asked"]


def test_a_cli_that_was_replaced_is_asked_at_once_and_one_whose_help_failed_is_not(tmp_path: Path) -> None:
    cli, asked = tmp_path / "claude", tmp_path / "asked"
    (tmp_path / "help").write_text(OLD_HELP)
    checker = BackgroundReloadChecker(CheckedCli(spawner, (str(cli),), {}), ReloadResults(None, tmp_path / "nothing"))

    def is_refused(script: str) -> bool:
        cli.write_text(f"#!/bin/sh\nif [ $1 = --help ]; then\necho asked >>{asked}\n{script}\nfi\n")
        cli.chmod(0o755)
        return asyncio.run(checker.fault(Task(message="x", effort="low"))) is not None

    shows = f"exec cat {tmp_path}/help"
    scripts = (shows, f"{shows} # replaced", "exit 1", "exit 1 # again")
    assert [is_refused(script) for script in scripts] == [True, True, False, False]
    assert asked.read_text().split() == ["asked"] * 3


@pytest.mark.parametrize("on_help", ["exit 1", "echo Usage: something else; exit 0"])
def test_where_the_help_fails_the_cli_gets_the_options_and_decides(tmp_path: Path, on_help: str) -> None:
    cli = wrapper(tmp_path / "claude", on_help)
    with supervised(tmp_path / "home", claude=cli) as running:
        assert running.post(SCRIPT, effort="low").json()["status"] == "success"
        assert running.post(SCRIPT, effort="high").json()["status"] == "success"
    assert (tmp_path / "claude.asked").read_text().splitlines() == ["asked"]

    refuses = tmp_path / "refuses"
    refuses.write_text(f"#!{sys.executable}\nimport sys\nsys.exit(\"error: unknown option '--effort=low'\")\n")
    refuses.chmod(0o755)
    with supervised(tmp_path / "other", claude=shlex.quote(str(refuses))) as running:
        answer = running.post(SCRIPT, effort="low").json()
    assert (answer["status"], answer["error_class"]) == (400, "invalid_request")
    assert "--effort" in answer["detail"]


def test_a_known_answer_is_given_whatever_the_cli_knows_now(tmp_path: Path) -> None:
    with supervised(tmp_path / "home") as running:
        first = running.post(SCRIPT, execution_id="kept", effort="low").json()
    (tmp_path / "help").write_text(OLD_HELP)
    cli = wrapper(tmp_path / "claude", f"exec cat {tmp_path}/help")
    with supervised(tmp_path / "home", claude=cli) as running:
        assert running.post(SCRIPT, execution_id="kept", effort="low").json()["response"] == first["response"]
