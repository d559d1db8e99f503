"""Directories and variables of a task: where it works, what it is given, and what it is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.errors import RESERVED_WORDS
from tests.process.test_directories import exchange
from tests.support.supervised import OLD, QUICK_CLI, Supervised, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = {"AGENT_RUNTIME_WORKSPACES": "per_execution", "AGENT_RUNTIME_SLOTS": "8"}


def looks(*commands: str, **script: Any) -> str:
    """Return a task whose tool runs *commands*."""
    tool = {"do": "tool", "command": "; ".join(commands)}
    return json.dumps({"script": [{"do": "init"}, tool, {"do": "assistant", "text": "x"}, {"do": "result"}], **script})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("workspaces"), environment=OWN) as running:
        yield running


@pytest.fixture
def place_for_all() -> Iterator[Path]:
    """Make a directory that every user may pass, which those below pytest's own are not for long."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def said(answer: Any) -> str:
    """Return what the tool printed."""
    body = answer.json()
    assert body.get("status") == "success", body
    return json.dumps(body["execution_log"])


def test_eight_tasks_at_once_see_nothing_of_each_other(running: Supervised) -> None:
    barrier = running.home / "all-there"
    waits = f"until [ -e {barrier} ]; do sleep 0.05; done"
    names = [f"task:{number}.x" for number in range(8)]
    started = [
        running.start(
            looks("pwd", "env", "ls -A", f"echo word-of-{number} >mine", waits, "cat mine"),
            execution_id=name,
            env={"WORD": f"word-of-{number}", f"ONLY_{number}": "1"},
            **({"cwd": f"given/{number}", "create_cwd": True} if number % 2 else {}),
        )
        for number, name in enumerate(names)
    ]
    eventually(lambda: len(list(running.workspace.glob("*/*/mine"))) == 8)
    barrier.touch()
    for number, (name, pending) in enumerate(zip(names, started, strict=True)):
        printed = said(pending.answer())
        expected = f"given/{number}" if number % 2 else f"executions/{name}"
        assert f"PWD={running.workspace / expected}\\n" in printed
        assert f"WORD=word-of-{number}" in printed
        assert [n for n in range(8) if n != number and (f"word-of-{n}" in printed or f"ONLY_{n}" in printed)] == []
        record = running.record(name)
        assert (record["cwd"], record["env_names"]) == (expected, [f"ONLY_{number}", "WORD"])
        assert (running.workspace / expected / "mine").read_text() == f"word-of-{number}\n"
    assert len(list((running.data_dir / "workspaces").iterdir())) >= 4  # which may be deleted


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cwd": "missing"}, "there is no such directory below the workspace; send create_cwd: true"),
        ({"cwd": "missing", "create_cwd": False}, "there is no such directory"),
        ({"cwd": ""}, "must not be empty"),
        ({"cwd": "/tmp"}, "must be relative"),
        ({"cwd": "a//b"}, "must not be empty, hold //"),
        ({"cwd": "a/"}, "or end with /"),
        ({"cwd": "."}, "no part that is . or .."),
        ({"cwd": "a/../b", "create_cwd": True}, "no part that is . or .."),
        ({"cwd": "..", "create_cwd": True}, "no part that is . or .."),
        ({"cwd": "a\0b"}, "control characters"),
        ({"cwd": "a\nb"}, "control characters"),
        ({"cwd": "x" * 256, "create_cwd": True}, "at most 100 parts of 255 bytes"),
        ({"cwd": "ä" * 128, "create_cwd": True}, "at most 100 parts of 255 bytes"),
        ({"cwd": "/".join("x" * 101), "create_cwd": True}, "at most 100 parts"),
        ({"cwd": "/".join(["x" * 200] * 20), "create_cwd": True}, "3000 bytes"),
        ({"cwd": f"a/{OLD}", "create_cwd": True}, "must hold no token"),
        ({"add_dirs": [OLD]}, "must hold no token"),
        ({"cwd": 7}, "expected"),
        ({"cwd": ["a"]}, "expected"),
        ({"cwd": "file"}, "a part of it is no directory"),
        ({"cwd": "executions/.retired/x", "create_cwd": True}, "is being deleted"),
        ({"cwd": "file/x", "create_cwd": True}, "a part of it is no directory"),
        ({"cwd": "fifo", "create_cwd": True}, "a part of it is no directory"),
        ({"cwd": "out", "create_cwd": True}, "leads out of the workspace"),
        ({"cwd": "up/x", "create_cwd": True}, "leads out of the workspace"),
        ({"cwd": "magic", "create_cwd": True}, "leads out of the workspace"),
        ({"cwd": "loop", "create_cwd": True}, "too many links"),
        ({"create_cwd": "yes"}, "expected"),
        ({"add_dirs": ["missing"]}, "there is no such directory"),
        ({"add_dirs": ["/tmp"]}, "must be relative"),
        ({"add_dirs": ["out"]}, "leads out of the workspace"),
        ({"add_dirs": "a"}, "expected"),
        ({"add_dirs": ["a"] * 33}, "length"),
        ({"env": []}, "expected"),
        ({"env": {"A": 1}}, "the value of A must be a string"),
        ({"env": {"A": None}}, "the value of A must be a string"),
        ({"env": {"": "x"}}, "a name must be letters"),
        ({"env": {"1A": "x"}}, "a name must be letters"),
        ({"env": {"A=B": "x"}}, "a name must be letters"),
        ({"env": {"A-B": "x"}}, "a name must be letters"),
        ({"env": {"Ä": "x"}}, "a name must be letters"),
        ({"env": {"A\n": "x"}}, "a name must be letters"),
        ({"env": {"A": "x\0y"}}, "the value of A must hold no NUL"),
        ({"env": {"A": "x" * 120_001}}, "120000 bytes"),
        ({"env": {f"A{n}": "x" * 100_000 for n in range(6)}}, "altogether"),
        ({"env": {f"A{n}": "" for n in range(257)}}, "length"),
        *(
            ({"env": {name: "secret-value"}}, f"may not set {name}")
            for name in (
                *("ANTHROPIC_API_KEY", "anthropic_api_key", "ANTHROPIC_BASE_URL", "CLAUDE_CODE_USE_BEDROCK"),
                *("CLAUDE_CONFIG_DIR", "CLAUDE_CODE_RETRY_WATCHDOG", "AGENT_RUNTIME_EXECUTION_ID", "LD_PRELOAD"),
                *("NODE_OPTIONS", "BUN_OPTIONS", "HTTPS_PROXY", "no_proxy", "SSL_CERT_FILE", "PATH", "HOME", "ENV"),
                *("BASH_ENV", "GCONV_PATH", "OTEL_EXPORTER_OTLP_ENDPOINT", "AWS_BEARER_TOKEN_BEDROCK", "IS_SANDBOX"),
            )
        ),
        ({"env": {"CLAUDE_CODE_OAUTH_TOKEN": "secret-value"}}, "may not set a name that is not shown"),
    ],
    ids=lambda value: str(value)[:60].encode("ascii", "replace").decode() if isinstance(value, dict) else "",
)
def test_what_a_task_may_not_ask_for_is_refused_and_named(
    running: Supervised, fields: dict[str, Any], words: str
) -> None:
    (running.workspace / "file").touch()
    for name, target in (("out", "/"), ("up", "../data"), ("magic", "/proc/self/root"), ("loop", "loop")):
        if not (running.workspace / name).is_symlink():
            (running.workspace / name).symlink_to(target)
    if not (running.workspace / "fifo").exists():
        os.mkfifo(running.workspace / "fifo")
    body = {"message": "x", "execution_id": "refused", **fields}
    answer = running.client.post("/api/task", content=json.dumps(body))

    assert running.client.get("/api/executions/refused").status_code == 404, "it was admitted"
    assert (answer.status_code, answer.json()["error_class"]) == (400, "invalid_request"), answer.text
    detail = answer.json()["detail"]
    assert detail.startswith(f"{next(iter(fields))}: ")
    assert words in detail
    assert "secret-value" not in detail
    assert not any(word in detail.lower() for word in RESERVED_WORDS)
    assert not (running.home / "data" / "x").exists()


def test_variables_of_tools_may_be_set_and_their_values_are_kept_nowhere(running: Supervised) -> None:
    env = {
        **dict.fromkeys(("GIT_SSH_COMMAND", "PYTHONPATH", "AWS_ACCESS_KEY_ID", "GITHUB_TOKEN"), "a-value-to-hide"),
        **dict.fromkeys(("_x", "env", "path", "NODEJS", "TMPDIR", "EMPTY"), ""),
    }
    report, go = running.home / "report", running.home / "go"
    waits = {"do": "wait_file", "path": str(go)}
    steps = [{"do": "init"}, {"do": "report", "path": str(report)}, waits, {"do": "result"}]
    pending = running.start(json.dumps({"script": steps}), execution_id="hides", env=env)
    eventually(report.exists)
    stored = list((running.data_dir / "tasks").iterdir())
    assert "a-value-to-hide" in "".join(path.read_text() for path in stored)
    assert {path.stat().st_mode & 0o777 for path in stored} == {0o600}
    go.touch()
    pending.answer()

    assert env.items() <= json.loads(report.read_text())["environment"].items()
    pages = [
        running.client.get(path).text for path in ("/api/executions/hides", "/health", "/metrics", "/api/executions")
    ]
    files = [path.read_bytes() for path in running.data_dir.rglob("*") if path.is_file()]
    assert "a-value-to-hide" not in "".join(pages)
    assert not any(b"a-value-to-hide" in content for content in files)
    assert "a-value-to-hide" not in running.log.read_text()
    assert running.record("hides")["env_names"] == sorted(env)


def test_an_execution_goes_on_where_it_began(tmp_path: Path) -> None:
    fails_first = [
        {"do": "init"},
        {"do": "tool", "command": "pwd >>../../seen"},
        {"do": "exit", "code": 7, "when": "first"},
        {"do": "result"},
    ]
    with supervised(tmp_path, environment=OWN) as running:
        task = json.dumps({"script": fails_first})
        assert running.post(task, execution_id="again").status_code != 200
        assert running.post(task, execution_id="again").status_code == 200
        session = running.record("again")["session_id"]
        seen = (running.workspace / "seen").read_text().splitlines()
        assert set(seen) == {str(running.workspace / "executions" / "again")}
    shared = {"AGENT_RUNTIME_WORKSPACES": "shared"}
    with supervised(tmp_path, environment=shared) as running:  # the setting does not move a session
        follows = running.post(looks("pwd"), execution_id="follows", resume_session_id=session)
        assert "executions/again" in said(follows)
        assert running.record("follows")["cwd"] == "executions/again"
        named = running.post(looks("pwd -P"), resume_session_id=session, cwd="executions/again")
        assert "executions/again" in said(named)
        other = running.post("x", resume_session_id=session, cwd="other", create_cwd=True)
        assert (other.status_code, other.json()["detail"][:40]) == (400, "cwd: the session in resume_session_id be")
        assert running.post(looks("pwd"), execution_id="plain").status_code == 200
        assert running.record("plain")["cwd"] is None


def test_a_directory_that_is_gone_at_the_start_is_refused_and_a_kept_answer_is_not(tmp_path: Path) -> None:
    with supervised(tmp_path, environment={"AGENT_RUNTIME_SLOTS": "1"}) as running:
        for name in ("a", "b", "c"):
            (running.workspace / name).mkdir()
        assert running.post(looks("pwd"), execution_id="kept", cwd="a").status_code == 200
        go = running.home / "go"
        first = running.start(
            json.dumps({"script": [{"do": "init"}, {"do": "wait_file", "path": str(go)}, {"do": "result"}]})
        )
        eventually(lambda: running.get("/health")["slots"]["busy"] == 1)
        waiting = [running.start(looks("pwd"), cwd="b"), running.start(looks("pwd"), cwd="c", create_cwd=True)]
        waiting.append(running.start(looks("pwd"), add_dirs=["b"]))
        eventually(lambda: running.get("/health")["queue"]["length"] == 3)
        for name in ("a", "b", "c"):
            (running.workspace / name).rmdir()
        go.touch()
        first.answer()
        gone, made, added = (one.answer() for one in waiting)
        assert (gone.status_code, gone.json()["detail"][:30]) == (400, "cwd: there is no such director")
        assert (added.status_code, added.json()["detail"][:34]) == (400, "add_dirs: there is no such directo")
        assert str(running.workspace / "c") in said(made)
        assert running.post(looks("pwd"), execution_id="kept", cwd="a").status_code == 200
        assert running.post(looks("pwd"), execution_id="other", cwd="a").status_code == 400


def test_no_task_starts_outside_while_its_directory_is_swapped_for_a_link(running: Supervised) -> None:
    (running.workspace / "swapped").mkdir()
    (running.workspace / "evil").symlink_to("../home")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            exchange(running.workspace / "swapped", running.workspace / "evil")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        answers = [running.post(looks("touch was-here", "pwd"), cwd="swapped") for _ in range(12)]
    finally:
        stop.set()
        thread.join()
    assert {answer.status_code for answer in answers} <= {200, 400}
    assert {answer.json()["detail"] for answer in answers if answer.status_code == 400} <= {
        "cwd: a link on the way leads out of the workspace",
        "cwd: a part of it is no directory",
    }
    assert list((running.home / "home").glob("was-here")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_is_made_belongs_to_the_user_of_the_children_and_what_that_may_not_enter_is_refused(
    place_for_all: Path,
) -> None:
    tmp_path = place_for_all
    (tmp_path / "config").mkdir()
    os.chown(tmp_path / "config", 54321, 54321)
    claude = tmp_path / "claude"
    quick = shutil.copy(QUICK_CLI, tmp_path)  # where the other user can read it
    claude.write_text(f"#!/bin/sh\necho >mine\nexec {quick}")
    claude.chmod(0o755)
    environment = {**OWN, "AGENT_RUNTIME_CHILD_USER": "54321"}
    with supervised(tmp_path, claude=str(claude), environment=environment) as running:
        assert running.post("x", execution_id="one").status_code == 200
        assert running.post("x", cwd="made/deep", create_cwd=True).status_code == 200
        for name in ("executions/one/mine", "executions/one", "made", "made/deep/mine"):
            assert (running.workspace / name).stat().st_uid == 54321
        (running.workspace / "shut").mkdir(mode=0o700)
        refused = running.post("x", cwd="shut")
        assert (refused.status_code, refused.json()["detail"][:30]) == (400, "cwd: it is not permitted to en")


@pytest.mark.slow
def test_an_interrupted_execution_goes_on_with_its_variables_in_its_directory(tmp_path: Path) -> None:
    report = tmp_path / "report"
    steps = [{"do": "init"}, {"do": "touch", "path": str(tmp_path / "began")}, {"do": "hang", "when": "first"}]
    task = json.dumps({"script": [*steps, {"do": "report", "path": str(report)}, {"do": "result"}]})
    flags = ("--resume-interrupted",)
    with supervised(tmp_path, environment=OWN, expect_exit=None) as running:
        fields = {"execution_id": "goes-on", "env": {"WORD": "kept-by-the-task"}, "async_result": True}
        assert running.post(task, **fields).status_code == 202
        eventually((tmp_path / "began").exists)
        running.process.kill()
    with supervised(tmp_path, environment={"AGENT_RUNTIME_WORKSPACES": "shared"}, flags=flags) as running:
        eventually(lambda: running.record("goes-on")["outcome"] == "success")
        assert list((running.data_dir / "tasks").iterdir()) == []
        given = json.loads(report.read_text())
        assert given["cwd"] == str(running.workspace / "executions" / "goes-on")
        assert given["environment"]["WORD"] == "kept-by-the-task"


def test_what_a_task_is_given_is_part_of_its_work_where_it_is_not_the_default(running: Supervised) -> None:
    (running.workspace / "same").mkdir()
    body = {"cwd": "same", "env": {"A": "1", "B": "2"}, "add_dirs": ["same"]}
    assert running.post(looks("pwd"), execution_id="same", **body).status_code == 200
    again = {**body, "create_cwd": True, "env": {"B": "2", "A": "1"}}
    assert running.post(looks("pwd"), execution_id="same", **again).status_code == 200
    changes: list[dict[str, Any]] = [{"env": {"A": "1", "B": "3"}}, {"env": {"A": "1"}}]
    changes += [{"cwd": None}, {"add_dirs": []}]
    for change in changes:
        assert running.post(looks("pwd"), execution_id="same", **{**body, **change}).status_code == 409
    assert running.post(looks("pwd"), execution_id="bare").status_code == 200
    defaults: dict[str, Any] = {"cwd": None, "create_cwd": False, "env": {}, "add_dirs": []}
    assert running.post(looks("pwd"), execution_id="bare", **defaults).status_code == 200


@pytest.mark.slow
def test_run_hands_directories_and_variables_over(running: Supervised) -> None:
    command = [sys.executable, "-m", "agent_runtime", "run", looks("pwd", "echo $WORD-$OTHER"), "--url", running.url]
    flags = ["--cwd", "by/run", "--create-cwd", "--add-dir", "by", "--env", "WORD=a=b", "--env", "OTHER", "--json"]
    environ = {"PATH": os.environ["PATH"], "OTHER": "of-the-caller"}
    (running.workspace / "by").mkdir()
    done = subprocess.run([*command, *flags], env=environ, capture_output=True, text=True, check=True)
    assert str(running.workspace / "by/run") in done.stdout
    assert "a=b-of-the-caller" in done.stdout
    wrong = subprocess.run([*command, "--env", "NOT_SET"], env=environ, capture_output=True, text=True, check=False)
    assert (wrong.returncode, "NAME of a variable that is set here" in wrong.stderr) == (2, True)
