"""The fields of a task that are options of the CLI, on the real one: requests that the API saw, ``init``, and files."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.delivery.cli_options import LISTED
from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, serve
from tests.support.supervised import NEW, OLD, Pending, Supervised, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent_runtime.standins.messages_api.script import Reply

pytestmark = [pytest.mark.real_cli, pytest.mark.slow, pytest.mark.timeout(300)]

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
REVIEWER = {"description": "Reviews", "prompt": "You are THE-REVIEWER.", "tools": ["Read"]}
GOOD, BAD = ({"name": "x"}, {"nome": "x"})


def says(**answer: Any) -> Tool:
    return Tool(name="StructuredOutput", input=answer)


class Real:
    """A supervisor with the real CLI, and the requests that its tasks made."""

    def __init__(self, running: Supervised, api: MessagesApi, version: tuple[int, ...]) -> None:
        self.running = running
        self.api = api
        self.version = version

    def start(self, name: str, *replies: Reply, **fields: Any) -> Pending:
        self.api.script(name, *(replies or (Text(text="done"),)))
        return self.running.start(f"[[script:{name}]] Do it.", execution_id=name, **fields)

    def ask(self, name: str, *replies: Reply, **fields: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.start(name, *replies, **fields).answer().json()
        return answer

    def bodies(self, name: str) -> list[dict[str, Any]]:
        """The requests of a task's own conversation."""
        own = [one for one in self.api.requests if one.script == name and one.body]
        return [json.loads(one.body) for one in own]

    def system(self, name: str) -> str:
        system = self.bodies(name)[-1]["system"]
        return system if isinstance(system, str) else "\n".join(block["text"] for block in system)

    def tools(self, name: str) -> set[str]:
        return {tool["name"] for tool in self.bodies(name)[-1].get("tools", ())}

    def init(self, name: str) -> dict[str, Any]:
        result = self.running.get(f"/api/executions/{name}/result")
        frames = [frame for frame in result["execution_log"] if frame.get("subtype") == "init"]
        return dict(frames[-1])


@contextlib.contextmanager
def real(home: Path, claude: str) -> Iterator[Real]:
    api = MessagesApi(keeps_bodies=True)
    told = subprocess.run(
        [claude, "--version"], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
    )
    version = tuple(map(int, told.stdout.split()[0].split(".")))
    with serve(api) as url, supervised(home, api_url=url, claude=claude) as running:
        yield Real(running, api, version)


@pytest.fixture
def cli(tmp_path: Path, claude: str) -> Iterator[Real]:
    with real(tmp_path, claude) as running:
        yield running


def current(cli: Real) -> None:
    if cli.version < (2, 1, 330):
        pytest.skip("an old version: what it is told is another test")


@pytest.mark.newest_cli
def test_the_model_is_asked_as_the_task_says(cli: Real) -> None:
    current(cli)
    cli.api.on_model("sonnet-4-5", "overloaded")
    pending = [
        cli.start("plain"),
        cli.start("append", append_system_prompt="APPENDED-TEXT"),
        cli.start("replace", replace_system_prompt="REPLACED-TEXT", append_system_prompt="APPENDED-TEXT"),
        cli.start("effort", effort="low"),
        cli.start("max", effort="max"),
        cli.start("two", tools=["Bash", "Read"]),
        cli.start("none", tools=[]),
        cli.start("all", tools=["default"]),
        cli.start("agent", agents={"rev": REVIEWER}, agent="rev"),
        cli.start("agents", agents={"rev": REVIEWER}),
        cli.start("fallback", model="claude-sonnet-4-5", fallback_model="claude-haiku-4-5"),
    ]
    assert [one.answer().json()["status"] for one in pending] == ["success"] * len(pending)

    assert "APPENDED-TEXT" in cli.system("append")
    assert len(cli.system("append")) > len(cli.system("plain"))
    assert cli.system("replace").rstrip().endswith("APPENDED-TEXT")
    assert "REPLACED-TEXT" in cli.system("replace")
    assert len(cli.system("replace")) < 1000 < len(cli.system("plain"))
    assert [cli.bodies(name)[-1]["output_config"]["effort"] for name in ("effort", "max")] == ["low", "max"]
    assert cli.tools("two") >= {"Bash", "Read"}
    assert "Write" not in cli.tools("two")
    assert cli.tools("none") == set() == set(cli.init("none")["tools"])
    assert cli.tools("all") == cli.tools("plain") >= {"Bash", "Write"}
    assert "THE-REVIEWER" in cli.system("agent")
    assert "Bash" not in cli.tools("agent")
    assert "rev" in cli.init("agents")["agents"]
    assert "THE-REVIEWER" not in cli.system("agents")
    assert "haiku-4-5" in cli.bodies("fallback")[-1]["model"]


@pytest.mark.newest_cli
def test_the_answer_meets_the_schema_or_is_none(cli: Real) -> None:
    current(cli)
    pending = {
        "met": cli.start("met", says(**GOOD), json_schema=SCHEMA),
        "later": cli.start("later", says(**BAD), says(**GOOD), json_schema=SCHEMA),
        "any": cli.start("any", says(**BAD), json_schema={}),
        "text": cli.start("text", Text(text="no object"), json_schema=SCHEMA),
        "never": cli.start("never", *[says(**BAD)] * 8, json_schema=SCHEMA),
        "wrong": cli.start("wrong", json_schema={"type": "object", "minProperties": -1}),
    }
    answers = {name: one.answer().json() for name, one in pending.items()}

    assert [answers[name]["structured_output"] for name in ("met", "later")] == [GOOD, GOOD]
    assert answers["any"]["structured_output"] == BAD, "an empty schema, which any object meets"
    assert [(answers[name]["status"], answers[name]["error_class"]) for name in ("text", "never")] == [
        (422, "schema"),
        (422, "schema"),
    ]
    assert (answers["wrong"]["status"], answers["wrong"]["error_class"]) == (400, "invalid_request")
    assert "minProperties" in answers["wrong"]["detail"]


@pytest.mark.newest_cli
def test_the_budget_is_for_all_attempts_together(cli: Real) -> None:
    current(cli)
    costly = [Tool(command="true", usage={"input_tokens": 1000, "output_tokens": 0})] * 12
    fields: dict[str, Any] = {"model": "claude-sonnet-4-5", "max_budget_usd": 0.01}

    first = cli.ask("first", *costly, **fields)
    again = cli.ask("first", *costly, **fields)
    assert (first["status"], first["error_class"], len(cli.bodies("first"))) == (422, "max_budget", 4)
    assert (again["error_class"], again["metadata"]["attempts"], len(cli.bodies("first"))) == ("max_budget", 1, 4)
    assert first["metadata"]["cost_usd"] == pytest.approx(0.012)

    fields |= {"max_budget_usd": 0.0145, "max_turns": 2}
    ends = [cli.ask("turns", *costly, **fields) for _ in range(3)]
    assert [one["error_class"] for one in ends] == ["max_turns", "max_turns", "max_budget"]
    assert [one["metadata"]["attempts"] for one in ends] == [1, 2, 3]
    assert len(cli.bodies("turns")) == 5


@pytest.mark.newest_cli
def test_another_permission_mode_is_reported_and_denies_what_it_would_ask_for(cli: Real) -> None:
    current(cli)
    modes = ("default", "manual", "acceptEdits", "plan", "dontAsk", "auto")
    made = {mode: cli.running.workspace / mode for mode in modes}
    pending = [
        cli.start(mode, Tool(command=f"touch {made[mode]}"), Text(text="ok"), permission_mode=mode) for mode in modes
    ]
    for mode, one in zip(modes, pending, strict=True):
        answer = one.answer().json()
        assert answer["status"] == "success"
        assert cli.init(mode)["permissionMode"] == {"manual": "default"}.get(mode, mode)
        denied = answer["execution_log"][-1]["permission_denials"]
        assert made[mode].exists() == (not denied) == (mode in ("acceptEdits", "auto"))


@pytest.mark.newest_cli
def test_a_fork_leaves_the_session_as_it_is_and_a_new_prompt_reaches_an_earlier_one(cli: Real, tmp_path: Path) -> None:
    current(cli)
    go = tmp_path / "go"
    wait = Tool(command=f"for i in $(seq 400); do test -e {go} && exit 0; sleep 0.05; done")
    session = cli.ask("begin", Text(text="BLUE"))["session_id"]
    [file] = (cli.running.home / "config/projects").glob(f"*/{session}.jsonl")
    before = file.read_bytes()
    named = {"resume_session_id": session, "fork_session": True}

    forked = cli.start("fork", wait, Text(text="forked"), **named)
    eventually(lambda: cli.bodies("fork"))
    cli.api.on(OLD, "expired")
    go.touch()
    assert forked.answer().json()["error_class"] == "auth"
    assert "BLUE" in json.dumps(cli.bodies("fork")[0]["messages"])
    own = cli.running.record("fork")["session_id"]
    assert own != session
    cli.running.write_token(NEW)
    eventually(lambda: cli.running.get("/api/token")["generation"] == 2)
    answer = cli.ask("fork", wait, Text(text="forked"), **named)
    assert (answer["response"], answer["session_id"]) == ("forked", own)
    assert file.read_bytes() == before
    assert answer["metadata"]["cost_usd"] == pytest.approx(sum_of_costs(cli, "fork"))

    unknown = cli.ask("unknown", **named | {"resume_session_id": own.replace(own[:8], "00000000")})
    assert (unknown["status"], unknown["code"]) == (409, "session_unknown")
    cli.ask("prompt", resume_session_id=session, replace_system_prompt="REPLACED-TEXT")
    assert "REPLACED-TEXT" in cli.system("prompt")


def sum_of_costs(cli: Real, name: str) -> float:
    """What the CLI counts for the requests that were answered, of the model that the stand-in is asked for."""
    answered = [one for one in cli.api.requests if one.script == name and one.status == 200 and one.body]
    per_token = {"claude-sonnet-5-5": (2e-6, 1e-5)}
    return sum(
        sum(price * count for price, count in zip(per_token[str(one.model)], (10, 5), strict=True)) for one in answered
    )


@pytest.mark.newest_cli
def test_only_the_settings_and_servers_that_are_asked_for_are_read_and_the_token_wins(cli: Real) -> None:
    current(cli)
    seen = cli.running.home / "seen"
    hook = {"matcher": "", "hooks": [{"type": "command", "command": f"echo hook >>{seen}"}]}
    evil = {"apiKeyHelper": "echo sk-ant-api03-evil-evil-evil-evil", "env": {"ANTHROPIC_AUTH_TOKEN": "evil"}}
    (cli.running.workspace / ".claude").mkdir()
    settings = evil | {"hooks": {"PreToolUse": [hook]}}
    (cli.running.workspace / ".claude/settings.json").write_text(json.dumps(settings))
    (cli.running.home / "config/settings.json").write_text(json.dumps(evil))
    server = {"mcpServers": {"theirs": {"command": "true"}}}
    (cli.running.workspace / ".mcp.json").write_text(json.dumps(server))
    call = (Tool(command="true"), Text(text="ok"))
    ours = {"mcpServers": {"ours": {"command": "true"}}}

    for name, sources, is_read in (("none", [], False), ("user", ["user"], False), ("project", ["project"], True)):
        seen.unlink(missing_ok=True)
        assert cli.ask(name, *call, setting_sources=sources)["status"] == "success"
        assert seen.exists() == is_read
    assert cli.ask("local", *call, setting_sources=["user", "project", "local"])["status"] == "success"
    assert {one.fingerprint for one in cli.api.requests if one.body} == {cli.running.get("/api/token")["fingerprint"]}

    assert cli.ask("strict", mcp_config=ours, strict_mcp_config=True)["status"] == "success"
    assert [one["name"] for one in cli.init("strict")["mcp_servers"]] == ["ours"]


NOT_KNOWN: dict[str, Any] = {
    "fallback_model": "haiku,opus",
    "effort": "low",
    "permission_mode": "auto",
    "agent": "no-such-agent",
    "agents": {"rev": REVIEWER | {"tools": 3}},
}


def test_an_old_version_is_told_of_by_field(cli: Real) -> None:
    known: dict[str, Any] = {
        "tools": ["Bash"],
        "max_budget_usd": 1.0,
        "permission_mode": "plan",
        "fallback_model": "haiku",
    }
    known |= {"agents": {"rev": REVIEWER}, "strict_mcp_config": True, "setting_sources": ["user"]}
    pending = {name: cli.start(name, **{name: value}) for name, value in NOT_KNOWN.items()}
    answers = {name: one.answer().json() for name, one in pending.items()}
    fits = cli.ask("known", **known) if cli.version >= (2, 0, 76) else {"status": "success"}

    refused = {name for name, answer in answers.items() if answer["status"] == 400}
    later = {"fallback_model": (2, 1, 197), "effort": (2, 1, 114), "permission_mode": (2, 1, 114)}
    assert refused == {"agent", "agents"} | {name for name in later if cli.version < later[name]}
    for name in refused:
        assert answers[name]["error_class"] == "invalid_request"
        assert name.removesuffix("s") in answers[name]["detail"]
    version = ".".join(map(str, cli.version))
    assert all(version in answers[name]["detail"] for name in refused & later.keys())
    assert fits["status"] == "success"
    assert set(LISTED) >= later.keys()
