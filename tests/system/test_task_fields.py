"""The fields of a task that are options of the CLI, over HTTP with the scripted CLI."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.supervised import NEW, OLD, Supervised, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}
SAYS = [{"do": "init"}, {"do": "assistant", "text": "Hello."}]


def result(text: str | None = None, **fields: Any) -> dict[str, Any]:
    frame = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 1, "result": text, **fields}
    return {"do": "frame", "frame": frame}


def failing(subtype: str, cost_usd: float = 0.0) -> dict[str, Any]:
    return result(subtype=subtype, is_error=True, total_cost_usd=cost_usd, errors=["It says why."])


def ends_with(text: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"script": [*SAYS, result(text, **fields)]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("fields"), flags=("--slots", "2")) as running:
        yield running


def test_an_answer_that_meets_the_schema_is_in_the_answer_and_in_the_result(shared: Supervised) -> None:
    structured = {"name": f"has {OLD} in it", "list": [1, 1.5, None, "\N{SNOWMAN}"]}
    script = ends_with(json.dumps(structured), structured_output=structured)

    answer = shared.post(script, execution_id="structured", json_schema=SCHEMA).json()
    result = shared.get("/api/executions/structured/result")

    fingerprint = shared.get("/api/token")["fingerprint"]
    assert answer["structured_output"] == structured | {"name": f"has [token:{fingerprint}] in it"}
    assert result["structured_output"] == result["answer"]["structured_output"] == answer["structured_output"]
    assert shared.post(ends_with("Hello.")).json()["structured_output"] is None


@pytest.mark.parametrize(
    ("script", "error_class"),
    [
        (ends_with("Only a text."), "schema"),
        (ends_with("Null.", structured_output=None), "schema"),
        (ends_with("No object.", structured_output=[{}]), "schema"),
        ({"script": [SAYS[0], result("")]}, "lost_result"),
        ({"script": [*SAYS, failing("error_max_structured_output_retries")]}, "schema"),
        ({"script": [*SAYS, failing("error_max_budget_usd")]}, "max_budget"),
        ({"script": [*SAYS, failing("error_max_turns")]}, "max_turns"),
    ],
)
def test_a_task_with_a_schema_has_no_other_answer(shared: Supervised, script: dict[str, Any], error_class: str) -> None:
    answer = shared.post(script, json_schema=SCHEMA, max_budget_usd=1).json()

    assert answer["error_class"] == error_class
    assert answer["status"] == (502 if error_class == "lost_result" else 422)


def test_a_later_turn_about_background_work_keeps_the_structured_answer(shared: Supervised) -> None:
    first = result("{}", structured_output={"name": "x"})
    waiting = [{"do": "background", "tasks": ["t"]}, first, {"do": "background", "tasks": []}]
    script = {"script": [*SAYS, *waiting, *SAYS[1:], {"do": "result", "text": "It has ended."}]}

    answer = shared.post(script, json_schema=SCHEMA).json()

    assert (answer["response"], answer["structured_output"]) == ("It has ended.", {"name": "x"})


def test_a_resume_gets_what_is_left_of_the_budget(shared: Supervised, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    step = {"do": "report", "path": str(seen)}
    spends = failing("error_max_turns", 0.3)
    script = {"script": [*SAYS, spends, {"do": "exit", "code": 1}, SAYS[0], step, spends, {"do": "exit", "code": 1}]}

    assert shared.post(script, execution_id="spends", max_budget_usd=0.5).json()["error_class"] == "max_turns"
    assert shared.post(script, execution_id="spends", max_budget_usd=0.5).json()["error_class"] == "max_turns"
    assert "--max-budget-usd=0.2" in json.loads(seen.read_text())["argv"]
    spent = shared.post(script, execution_id="spends", max_budget_usd=0.5).json()
    assert (spent["error_class"], spent["status"], spent["metadata"]["attempts"]) == ("max_budget", 422, 2)

    seen.unlink()
    more = {"script": [*SAYS, step, {"do": "result", "text": "Done."}]}
    assert shared.post(more, execution_id="spends", max_budget_usd=0.5).json()["status"] == "success"
    assert "--max-budget-usd=0.5" in json.loads(seen.read_text())["argv"]


ALL = {
    "fallback_model": "haiku",
    "effort": "low",
    "append_system_prompt": "appended",
    "replace_system_prompt": "replaced",
    "permission_mode": "plan",
    "tools": ["Bash"],
    "json_schema": SCHEMA,
    "agents": {"general-purpose": {"description": "Reviews", "prompt": "Review."}},
    "agent": "general-purpose",
    "strict_mcp_config": True,
    "setting_sources": ["user"],
}
WORDS = {
    *("--fallback-model=haiku", "--effort=low", "--append-system-prompt=appended", "--system-prompt=replaced"),
    *("--permission-mode=plan", "--tools=Bash", f"--json-schema={json.dumps(SCHEMA, separators=(',', ':'))}"),
    *("--agent=general-purpose", "--strict-mcp-config", "--setting-sources=user"),
}


def test_every_attempt_has_the_same_options_after_a_switch_and_after_a_restart(tmp_path: Path) -> None:
    first, later, last = (tmp_path / name for name in ("first", "later", "last"))
    done = result("{}", structured_output={})
    script = {
        "script": [
            *SAYS,
            {"do": "report", "path": str(first)},
            {"do": "api_error", "status": 401, "when": "first"},
            {"do": "hang", "when": "first"},
            {"do": "report", "path": str(later)},
            {"do": "hang", "seconds": 60, "times": 1},
            {"do": "report", "path": str(last)},
            done,
        ]
    }
    with supervised(tmp_path / "one", flags=("--drain-timeout", "0.2")) as running:
        answer = running.post(script, execution_id="same", async_result=True, park_seconds=30, **ALL)
        assert answer.status_code == 202
        eventually(lambda: running.record("same")["state"] == "parked")
        running.write_token(NEW)
        eventually(later.exists)
        running.stop()
    with supervised(tmp_path / "one", token=NEW) as running:
        eventually(lambda: running.record("same")["outcome"])
        assert running.post(script, execution_id="same", **ALL).json()["structured_output"] == {}
        assert running.post(script, execution_id="same", **ALL, max_turns=3).status_code == 409
    for path in (first, later, last):
        assert set(json.loads(path.read_text())["argv"]) >= WORDS


@pytest.mark.parametrize("mode", ["plan", "acceptEdits", "default", "manual", "dontAsk", "auto"])
def test_init_must_say_the_permission_mode_that_was_asked_for(shared: Supervised, mode: str) -> None:
    script = [{"do": "init"}, {"do": "assistant", "text": "Hello."}, {"do": "result"}]

    assert shared.post({"script": script}, permission_mode=mode).json()["status"] == "success"
    other = shared.post({"script": script, "permission_mode": "bypassPermissions"}, permission_mode=mode).json()
    assert (other["status"], other["error_class"]) == (500, "error")


def test_init_must_list_the_agents(shared: Supervised) -> None:
    agents = {"rev": {"description": "Reviews", "prompt": "Review."}}
    listed = {"script": [{"do": "init", "fields": {"agents": ["rev", 3, None]}}, *SAYS[1:], {"do": "result"}]}

    for fields in ({"agents": agents}, {"agent": "rev"}):
        assert shared.post(listed, **fields).json()["status"] == "success"
        missing = shared.post({"script": [*SAYS, {"do": "hang"}]}, **fields).json()
        assert (missing["status"], missing["error_class"]) == (400, "invalid_request")
        assert missing["detail"].startswith("agent or agents: ")


def test_a_fork_waits_for_nobody_and_goes_on_in_its_own_session(shared: Supervised, tmp_path: Path) -> None:
    go, seen = tmp_path / "go", tmp_path / "seen"
    holds = {"script": [*SAYS, {"do": "wait_file", "path": str(go)}, {"do": "result", "text": "Held."}]}
    session = shared.post(ends_with("Hello.")).json()["session_id"]
    holding = shared.start(holds, execution_id="holds", resume_session_id=session)
    eventually(lambda: shared.record("holds")["state"] == "running")

    report = {"do": "report", "path": str(seen)}
    forked = {"script": [*SAYS, report, result("Oh.", is_error=True), {"do": "exit"}, SAYS[0], report, result("Done.")]}
    fields: dict[str, Any] = {"execution_id": "fork", "resume_session_id": session, "fork_session": True}
    failed = shared.post(forked, **fields).json()
    argv = json.loads(seen.read_text())["argv"]
    own = shared.record("fork")["session_id"]
    assert failed["error_class"] == "error"
    assert own != session
    assert {f"--resume={session}", "--fork-session", f"--session-id={own}"} <= set(argv)

    assert shared.post(forked, **fields).json()["response"] == "Done."
    argv = json.loads(seen.read_text())["argv"]
    assert f"--resume={own}" in argv
    assert "--fork-session" not in argv

    go.touch()
    assert holding.answer().json()["response"] == "Held."


def test_a_fork_of_a_session_that_is_not_there_is_told(shared: Supervised) -> None:
    unknown = "5b1f3a5e-9a4c-4a5e-8f49-0a5d7c1e2b3f"
    answer = shared.post("Go on.", resume_session_id=unknown, fork_session=True).json()

    assert (answer["status"], answer["error_class"], answer["code"]) == (409, "conflict", "session_unknown")
