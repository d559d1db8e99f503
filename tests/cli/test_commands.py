"""The commands that ask a running supervisor, as processes of their own: what they print, and their exit codes."""

from __future__ import annotations

import contextlib
import grp
import io
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.cli.arguments import default_url
from agent_runtime.cli.main import main
from agent_runtime.cli.output import TextOutput
from agent_runtime.cli.status import columns, duration, page
from agent_runtime.client import Answer, Health, Metadata, StreamEvent, TokenReport
from agent_runtime.client.answers import read
from tests.support.broken_network import gate
from tests.support.supervised import DEADLINE_SECONDS, OLD, Supervised, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OK = {"script": [{"do": "init"}, {"do": "assistant", "text": "Hello."}, {"do": "result", "text": "Hello."}]}

RETRIED = {
    "type": "system",
    "subtype": "api_retry",
    "attempt": 2,
    "max_retries": 10,
    "error_status": 529,
    "error": "overloaded",
}


def holding(path: Path, *more: dict[str, Any]) -> dict[str, Any]:
    """Say hello, then wait until *path* exists, also when resumed."""
    waits = {"do": "wait_file", "path": str(path)}
    steps = [{"do": "init"}, {"do": "assistant", "text": "Hello."}, *more, waits, waits]
    return {"script": [*steps, {"do": "assistant", "text": "Done."}, {"do": "result", "text": "Done."}]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("shared"), flags=("--slots", "2", "--stop-grace", "0.3")) as running:
        yield running


def command(running: Supervised, *words: str, url: str | None = None) -> subprocess.Popen[str]:
    """Start a command against a supervisor."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "agent_runtime", *words],
        env={"PATH": os.environ["PATH"], "HOME": str(running.home), "AGENT_RUNTIME_URL": url or running.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a command, and return its exit code and what it printed."""
    with process:
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def call(running: Supervised, *words: str) -> tuple[int, str, str]:
    """Make a command in this process, where nothing is to be signalled."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([words[0], "--url", running.url, *words[1:]])
    return code, out.getvalue(), err.getvalue()


def run(running: Supervised, script: dict[str, Any], *words: str) -> subprocess.Popen[str]:
    return command(running, "run", json.dumps(script), *words)


def line_with(process: subprocess.Popen[str], words: str, *, of_stderr: bool = False) -> str:
    """Read until a line holds *words*: what comes before is gone."""
    stream = process.stderr if of_stderr else process.stdout
    assert stream is not None
    for line in stream:
        if words in line:
            return line
    raise AssertionError(f"it ended without saying {words!r}")


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """See that nothing is left of a command when a test fails."""
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_run_shows_what_happens_and_exits_with_success(shared: Supervised) -> None:
    script = [
        {"do": "init"},
        {"do": "assistant", "text": "First, the tests."},
        {"do": "tool_use", "command": "make test\nrm -r build"},
        {"do": "tool_result", "content": "a\nb"},
        {"do": "assistant", "text": "All \x1b[31mgood\x1b[0m."},
        {"do": "result", "text": "All \x1b[31mgood\x1b[0m."},
    ]
    code, out, err = outcome(run(shared, {"script": script}, "--execution-id", "shown", "--max-turns", "9"))

    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines.index("First, the tests.") < lines.index("> Bash: make test rm -r build")
    assert lines[-2] == "All \N{REPLACEMENT CHARACTER}[31mgood\N{REPLACEMENT CHARACTER}[0m."
    assert lines[-1].startswith("[success, ")
    assert lines[-1].endswith(", execution shown]")


def test_run_shows_it_while_it_happens_also_when_the_connection_breaks(shared: Supervised, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with gate(shared.url) as way, ended(command(shared, "run", json.dumps(holding(go)), url=way.url)) as process:
        line_with(process, "Hello.")
        way.cut_all()
        go.touch()
        line_with(process, "Done.")

        assert outcome(process)[0] == 0


def test_run_for_scripts_writes_one_object_a_line(shared: Supervised) -> None:
    code, out, _ = call(shared, "run", json.dumps(OK), "--json")

    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["id"] for line in lines if line["event"] == "message"] == [1, 2, 3]
    assert [line["data"]["type"] for line in lines if line["event"] == "message"][-1] == "result"
    assert [line["event"] for line in lines][-2:] == ["end", "answer"]
    assert (lines[-1]["data"]["status"], lines[-1]["data"]["response"]) == ("success", "Hello.")


def test_run_says_what_failed_and_exits_with_it(shared: Supervised) -> None:
    lost = {"script": [{"do": "init"}, {"do": "exit", "code": 0}]}
    code, out, err = call(shared, "run", json.dumps(lost), "--json")
    assert (code, json.loads(out.splitlines()[-1])["data"]["error_class"]) == (1, "lost_result")
    assert err.startswith("agent-runtime: lost_result: ")

    code, _, err = call(shared, "run", "Do it.", "--model", " ")
    assert (code, "agent-runtime: invalid_request: model" in err) == (2, True)

    code, _, err = call(shared, "run", "Do it.", "--patience", "0.1", "--url", "http://127.0.0.1:9")
    assert (code, "cannot be reached" in err) == (75, True)
    assert call(shared, "run", "Do it.", "--url", "nowhere")[0] == 2


def test_run_has_a_flag_for_each_option_of_the_cli(shared: Supervised, tmp_path: Path) -> None:
    seen, agents = tmp_path / "seen", tmp_path / "agents.json"
    agents.write_text('{"general-purpose": {"description": "Reviews", "prompt": "--evil"}}')
    steps = [{"do": "init"}, {"do": "report", "path": str(seen)}, *OK["script"][1:]]
    session = call(shared, "run", json.dumps(OK), "--json")[1].splitlines()[-1]
    flags = {
        "--fallback-model": "haiku",
        "--effort": "low",
        "--append-system-prompt": "--evil",
        "--replace-system-prompt": "--evil too",
        "--permission-mode": "plan",
        "--tools": "",
        "--max-budget-usd": "0.5",
        "--agents": str(agents),
        "--agent": "general-purpose",
        "--mcp-config": '{"mcpServers": {}}',
        "--setting-sources": "user, local",
        "--resume-session": json.loads(session)["data"]["session_id"],
    }
    words = [f"{flag}={value}" for flag, value in flags.items()]

    code, _, err = call(shared, "run", json.dumps({"script": steps}), "--strict-mcp-config", "--fork-session", *words)

    assert (code, err) == (0, "")
    argv = json.loads(seen.read_text())["argv"]
    same = ("--fallback-model", "--effort", "--append-system-prompt", "--permission-mode", "--tools", "--agent")
    assert {f"{flag}={flags[flag]}" for flag in (*same, "--max-budget-usd")} <= set(argv)
    assert {"--system-prompt=--evil too", "--setting-sources=user,local", "--strict-mcp-config"} <= set(argv)
    assert {"--fork-session", f"--resume={flags['--resume-session']}"} <= set(argv)
    assert any(word.startswith('--agents={"general-purpose"') for word in argv)


@pytest.mark.parametrize("value", ["[]", "{", "/no/such/file", ""])
def test_run_says_which_flag_wants_an_object(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", "x", f"--json-schema={value}"])

    assert "--json-schema: must be a JSON object, or a file with one" in capsys.readouterr().err


def test_an_interrupt_ends_the_execution(shared: Supervised, tmp_path: Path) -> None:
    with ended(run(shared, holding(tmp_path / "never"), "--execution-id", "interrupted")) as process:
        line_with(process, "Hello.")
        process.send_signal(signal.SIGINT)
        code, out, err = outcome(process)

    assert (code, shared.record("interrupted")["outcome"]) == (130, "cancelled")
    assert "[cancelled, " in out
    assert "ending the execution" in err


@pytest.mark.slow
def test_a_second_interrupt_leaves_it_to_itself(tmp_path: Path) -> None:
    stubborn = holding(tmp_path / "never", {"do": "stubborn"}, {"do": "assistant", "text": "I stay."})
    with supervised(tmp_path, flags=("--stop-grace", "60")) as running:
        with ended(run(running, stubborn, "--execution-id", "left")) as process:
            line_with(process, "I stay.")
            process.send_signal(signal.SIGINT)
            line_with(process, "ending the execution", of_stderr=True)
            eventually(lambda: running.record("left")["state"] == "stopping")
            process.send_signal(signal.SIGINT)

            code, _, err = outcome(process)
        assert code == 130
        assert "left to itself: execution left" in err
        assert running.record("left")["state"] == "stopping"
        running.process.terminate()
        eventually(lambda: running.client.get("/readyz").json().get("reason") == "draining")
        assert running.stop() == 0  # the second signal ends it at once


def test_whatever_else_ends_the_command_changes_nothing(shared: Supervised, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with ended(run(shared, holding(go), "--execution-id", "outlived")) as process:
        line_with(process, "Hello.")
        process.terminate()
        assert process.wait(DEADLINE_SECONDS) == -signal.SIGTERM
    with ended(run(shared, holding(go), "--execution-id", "outlived")) as process:
        line_with(process, "Hello.")
        assert process.stdout is not None
        process.stdout.close()  # as `| head` does
        go.touch()
        assert process.wait(DEADLINE_SECONDS) == 141
        assert process.stderr is not None
        assert process.stderr.read() == ""

    eventually(lambda: shared.record("outlived")["outcome"] == "success")
    assert len(shared.record("outlived")["attempts"]) == 1


def test_a_detached_task_is_only_named(shared: Supervised) -> None:
    code, out, _ = call(shared, "run", json.dumps(OK), "--detach")

    assert code == 0
    eventually(lambda: shared.record(out.strip())["outcome"] == "success")


@pytest.mark.slow
def test_run_goes_on_over_a_restart(tmp_path: Path) -> None:
    go = tmp_path / "go"
    with contextlib.ExitStack() as stack:
        with supervised(tmp_path, expect_exit=-signal.SIGKILL) as first:
            process = stack.enter_context(ended(run(first, holding(go), "--execution-id", "restarted")))
            line_with(process, "Hello.")
            first.stop(signal.SIGKILL)
        port = first.url.rpartition(":")[2]
        second = stack.enter_context(supervised(tmp_path, flags=("--port", port)))
        go.touch()
        code, out, err = outcome(process)

        assert code == 0
        assert "resuming" in err
        assert "Hello." not in out, "what was shown is not shown again"
        assert "Done." in out
        assert second.record("restarted")["outcome"] == "success"


def test_status_is_a_table_for_people_and_an_object_for_scripts(shared: Supervised, tmp_path: Path) -> None:
    shared.post({"script": [{"do": "init"}, {"do": "exit", "code": 0}]}, execution_id="ended-badly")
    pending = shared.start(holding(tmp_path / "go"), execution_id="under-way")
    eventually(lambda: "under-way" in str(shared.get("/api/executions/running")["executions"]))
    code, out, _ = call(shared, "status", "--limit", "2")
    as_json = json.loads(call(shared, "status", "--json")[1])
    (tmp_path / "go").touch()
    pending.answer()

    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert code == 0
    assert rows["slots"][1:5] == ["1", "of", "2", "busy"]
    assert rows["token"][1] == "ready"
    assert shared.get("/api/token")["fingerprint"] in rows["token"]
    assert rows["EXECUTION"][:4] == ["EXECUTION", "STATE", "OUTCOME", "ERROR"]
    assert rows["under-way"][1:4] == ["running", "-", "-"]
    assert rows["ended-badly"][1:4] == ["finished", "failed", "lost_result"]
    assert list(rows)[-2:] == ["under-way", "ended-badly"]
    assert as_json["health"]["slots"] == {"total": 2, "busy": 1, "unkillable": 0}
    assert as_json["executions"][0]["execution_id"] == "under-way"
    assert call(shared, "status", "--url", "http://127.0.0.1:9")[0] == 75


def test_the_key_file_lets_the_commands_in(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("the-access-key\n")
    with supervised(tmp_path, flags=("--access-key-file", str(key))) as running:
        assert call(running, "status")[0] == 2
        assert call(running, "status", "--key-file", str(key))[0] == 0
        assert call(running, "status", "--key-file", str(tmp_path / "none"))[0] == 2


def test_the_healthcheck_tells_whether_it_answers(shared: Supervised, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [main(["healthcheck", "--url", f"{shared.url}{path}"]) for path in ("", "/not")]
    asked += [main(["healthcheck", "--url", url]) for url in ("http://127.0.0.1:1", "127.0.0.1:8000", "http://[")]

    assert asked == [0, 1, 1, 1, 1]
    out, err = capsys.readouterr()
    assert out == "healthy\n"
    said = err.splitlines()
    assert said[0].endswith("/not answers 404")
    causes = ("Connection refused", "InvalidURL", "ValueError")
    assert all(f"does not answer ({cause})" in line for line, cause in zip(said[1:], causes, strict=True))


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("", "", "http://127.0.0.1:8000"),
        ("0.0.0.0", "9000", "http://127.0.0.1:9000"),
        ("::", "8000", "http://[::1]:8000"),
        ("fd00::7", "1", "http://[fd00::7]:1"),
    ],
)
def test_the_commands_ask_where_this_container_listens(
    monkeypatch: pytest.MonkeyPatch, host: str, port: str, url: str
) -> None:
    monkeypatch.delenv("AGENT_RUNTIME_URL", raising=False)
    monkeypatch.setenv("AGENT_RUNTIME_HOST", host)
    monkeypatch.setenv("AGENT_RUNTIME_PORT", port)
    assert default_url() == url


def test_token_put_takes_mode_and_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, group = tmp_path / "token", grp.getgrgid(os.getegid()).gr_name
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(OLD.encode())))
    assert main(["token", "put", "--mode", "640", "--group", group, str(path)]) == 0
    assert (path.stat().st_mode & 0o7777, path.stat().st_gid) == (0o640, os.getegid())

    for flags in (["--mode", "rw"], ["--mode", "0240"], ["--mode", "1640"], ["--group", "nobody-here"]):
        with pytest.raises(SystemExit) as ended:
            main(["token", "put", *flags, str(path)])
        assert ended.value.code == 2
        assert repr(flags[1]) in capsys.readouterr().err


def test_drain_waits_for_the_running_and_can_be_called_off(shared: Supervised, tmp_path: Path) -> None:
    go = tmp_path / "go"
    pending = shared.start(holding(go), execution_id="the-last")
    eventually(lambda: "the-last" in str(shared.get("/api/executions/running")["executions"]))
    try:
        code, out, _ = call(shared, "drain", "--wait", "--timeout", "0.1")
        assert (code, out.splitlines()[0]) == (1, "draining: 1 unfinished")
        assert shared.client.get("/readyz").json()["reason"] == "draining"
        assert call(shared, "drain", "--call-off")[0] == 0
        assert shared.client.get("/readyz").status_code == 200

        with ended(command(shared, "drain", "--wait")) as process:
            line_with(process, "draining: 1 unfinished")
            assert shared.post(OK).json()["error_class"] == "draining"
            go.touch()
            assert outcome(process) == (0, "drained\n", "")
    finally:
        go.touch()
        shared.client.delete("/api/drain").raise_for_status()
    assert pending.answer().status_code == 200


def test_what_is_shown_of_frames_that_scripts_do_not_write() -> None:
    sink = io.StringIO()
    live = TextOutput(sink)
    for name, data in (
        ("state", {"state": "queued"}),
        ("state", {"state": "queued"}),
        ("state", {"state": "running", "held": True}),
        ("message", {"type": "assistant", "parent_tool_use_id": "x", "message": {"content": "In a sub-agent.\nYes."}}),
        ("message", {"type": "assistant", "message": {"content": [{"type": "tool_use", "name": "Odd", "input": 7}]}}),
        (
            "message",
            {"type": "assistant", "message": {"content": [{"type": "tool_use", "name": "A", "input": {"b": 1}}]}},
        ),
        (
            "message",
            {"type": "assistant", "error": "rate_limit", "message": {"content": [{"type": "text", "text": "No."}]}},
        ),
        ("message", RETRIED),
        ("message", {"type": "user", "message": None}),
        ("message", {"type": "assistant", "message": {"content": [None, {"type": "text", "text": 1}, "x"]}}),
        ("message", {"type": "result", "result": "No."}),
        ("gap", {"first": 3, "last": 4}),
        ("state", {"state": "finished"}),
        ("later", {}),
    ):
        live.event(StreamEvent(name, data))
    live.answer(Answer(execution_id="x", status="success", metadata=Metadata(num_turns=1, cost_usd=0.5)))

    assert sink.getvalue().splitlines() == [
        "[queued]",
        "[held]",
        "  In a sub-agent.",
        "  Yes.",
        "> Odd",
        '> A: {"b": 1}',
        "! No.",
        "! the API answered 529 (overloaded), try 2 of 10",
        "[lines 3 to 4 are missing]",
        "[success, 1 turn, $0.5000, execution x]",
    ]


def test_text_is_shown_once_while_it_is_written_and_again_where_a_part_was_lost() -> None:
    sink = io.StringIO()
    live = TextOutput(sink)

    def whole(text: str, **more: str) -> tuple[str, dict[str, Any]]:
        return "message", {"type": "assistant", "message": {"content": [{"type": "text", "text": text}]}, **more}

    for name, data in (
        *(("partial", {"text": text}) for text in ("\n", "One", " and\ntwo", ".\n")),
        whole("\nOne and\ntwo.\n"),
        ("partial", {"text": "its", "parent_tool_use_id": "x"}),
        whole("Its own.", parent_tool_use_id="x"),
        *(("partial", {"text": text}) for text in ("Beg", "\x1b[31mun ")),
        whole("Beg\x1b[31mun, and more."),
        *(("partial", {"text": text}) for text in ("an end", " that")),
        whole("Of the beginning, an end that was lost."),
        ("partial", {"text": "Cut"}),
    ):
        live.event(StreamEvent(name, data))
    live.answer(Answer(execution_id="x", status="cancelled", metadata=Metadata()))

    assert sink.getvalue().splitlines() == [
        *("One and", "two.", "  Its own.", "Beg\ufffd[31mun ", "Beg\ufffd[31mun, and more."),
        *("an end that", "Of the beginning, an end that was lost.", "Cut", "[cancelled, execution x]"),
    ]


def test_times_and_columns_can_be_read() -> None:
    assert [duration(seconds) for seconds in (-1, 1.25, 9.96, 59, 59.6, 3599, 3661, 200_000)] == [
        "0.0 s",
        "1.2 s",
        "10 s",
        "59 s",
        "1 min",
        "59 min",
        "1 h 1 min",
        "2 d",
    ]
    assert columns([("a", "bbb"), ("cc\x1b\n", "d")]) == ["a    bbb", "cc\N{REPLACEMENT CHARACTER}  d"]


def test_a_table_of_a_supervisor_with_nothing_to_tell() -> None:
    health, token = read(Health, {"status": "degraded", "draining": True}), read(TokenReport, {"state": "odd"})
    assert health is not None
    assert token is not None

    lines = list(page("http://x", health, token, [], datetime(2026, 1, 1, tzinfo=UTC)))

    assert lines[0].split() == ["supervisor", "degraded,", "draining", "http://x"]
    assert lines[-1] == "no executions"
