"""The scripted CLI: it behaves as the real one where that is known, and plays its scripts as they are written."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.model.tokens import Token
from agent_runtime.standins.messages_api import MessagesApi, serve
from agent_runtime.standins.messages_api.script import Text, Tool
from agent_runtime.standins.scripted_cli import main as scripted_cli
from tests.support import scripted_cli as program
from tests.support.scripted.hostile import HostileSteps
from tests.support.scripted.printing import BadScript, PrintingSteps
from tests.support.scripted.steps import CHECKS, Steps, check
from tests.support.supervised import SCRIPTED_CLI

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Frame = dict[str, Any]
GOOD = "sk-ant-oat01-good"
DEAD = "sk-ant-oat01-dead"
SESSION = "11111111-1111-4111-8111-111111111111"
ARGUMENTS = (
    "-p",
    "--output-format",
    "stream-json",
    "--verbose",
    "--debug-to-stderr",
    "--include-partial-messages",
    "--dangerously-skip-permissions",
)
READY_SECONDS = 20.0


class Cli:
    """Starts scripted CLIs and ends those that a test leaves behind."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "config"
        self.config.mkdir()
        self.started: list[subprocess.Popen[bytes]] = []
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "CLAUDE_CONFIG_DIR": str(self.config),
            "IS_SANDBOX": "1",
            "SCRIPTED_CLI_PAUSE_FACTOR": "0.02",
        }

    def start(self, prompt: str | bytes | list[Frame], *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        if isinstance(prompt, list):
            prompt = json.dumps({"script": prompt})
        process = subprocess.Popen(
            [sys.executable, str(SCRIPTED_CLI), *ARGUMENTS, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment | environment,
            cwd=self.directory,
            start_new_session=True,
        )
        self.started.append(process)
        assert process.stdin is not None
        process.stdin.write(prompt.encode() if isinstance(prompt, str) else prompt)
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, prompt: str | bytes | list[Frame], *arguments: str, **environment: str) -> Ended:
        process = self.start(prompt, *arguments, **environment)
        out, err = process.communicate(timeout=60)
        return Ended(process.returncode, out, err)

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()


class Ended:
    """What a run left: its exit code, its frames and its lines on stderr."""

    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code = code
        self.out = out
        self.err = err.decode()

    @property
    def frames(self) -> list[Frame]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def kinds(self) -> list[str]:
        """Types of the frames without the partial messages, with the subtype of ``system`` ones."""
        return [
            frame["subtype"] if frame["type"] == "system" else frame["type"]
            for frame in self.frames
            if frame["type"] != "stream_event"
        ]

    @property
    def result(self) -> Frame:
        [result] = [frame for frame in self.frames if frame["type"] == "result"]
        return result


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    cli = Cli(tmp_path)
    yield cli
    cli.close()


@pytest.fixture(scope="module")
def api() -> MessagesApi:
    api = MessagesApi()
    api.on(DEAD, "expired")
    api.script("build", Tool(command="echo made; ps -o pid=,sid= -p $$"), Text(text="Built."))
    api.script("secret", Tool(command="env"), Text(text="Seen."))
    return api


@pytest.fixture(scope="module")
def url(api: MessagesApi) -> Iterator[str]:
    with serve(api) as base_url:
        yield base_url


def until(condition: Callable[[], Any]) -> Any:
    """Poll a real state with a deadline."""
    deadline = time.monotonic() + READY_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "the state never came"
        time.sleep(0.005)
    return value


def lines_of(file: Path, count: int = 1) -> list[str]:
    """Wait until *file* has *count* whole lines."""
    until(lambda: file.exists() and file.read_bytes().count(b"\n") >= count)
    return file.read_text().splitlines()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# As the real one


def test_a_plain_prompt_is_a_conversation_with_the_api_and_its_tools(cli: Cli, url: str) -> None:
    ended = cli.run("[[script:build]]", ANTHROPIC_BASE_URL=url, CLAUDE_CODE_OAUTH_TOKEN=GOOD)

    assert ended.code == 0
    assert [kind for kind in ended.kinds if kind != "rate_limit_event"] == [
        "init",
        "assistant",
        "user",
        "assistant",
        "result",
    ]
    assert ended.result["result"] == "Built."
    assert ended.result["num_turns"] == 2
    [window] = [usage["contextWindow"] for usage in ended.result["modelUsage"].values()]
    assert window == 1_000_000
    assert ended.frames[0]["permissionMode"] == "bypassPermissions"
    assert any(frame["type"] == "stream_event" for frame in ended.frames)


def test_a_tool_runs_in_a_session_of_its_own(cli: Cli, url: str) -> None:
    ended = cli.run("[[script:build]]", ANTHROPIC_BASE_URL=url, CLAUDE_CODE_OAUTH_TOKEN=GOOD)

    [user] = [frame for frame in ended.frames if frame["type"] == "user"]
    made, ids = user["message"]["content"][0]["content"].split("\n")
    pid, sid = ids.split()
    assert made == "made"
    assert pid == sid


def test_a_tool_inherits_the_environment_without_the_token(cli: Cli, url: str) -> None:
    ended = cli.run("[[script:secret]]", ANTHROPIC_BASE_URL=url, CLAUDE_CODE_OAUTH_TOKEN=GOOD, MARK="here")

    assert b"MARK=here" in ended.out
    assert GOOD.encode() not in ended.out


def test_a_dead_token_shows_as_on_the_real_one(cli: Cli, url: str) -> None:
    ended = cli.run("hello", ANTHROPIC_BASE_URL=url, CLAUDE_CODE_OAUTH_TOKEN=DEAD)

    assert ended.code == 1
    assert ended.kinds == ["init", "api_retry", "api_retry", "assistant", "result"]
    assert ended.frames[1]["error_status"] == 401
    assert ended.result["subtype"] == "success"
    assert ended.result["is_error"] is True
    assert ended.result["api_error_status"] == 401
    [line, *_] = [line for line in ended.err.splitlines() if "[ERROR]" in line]
    assert '[ERROR] API error (attempt 1/11): 401 401 {"type":"error","error":{"type":"authentication_error"' in line


def test_an_api_key_in_the_environment_beats_the_oauth_token(cli: Cli, url: str, api: MessagesApi) -> None:
    key = "sk-ant-api03-rival"
    cli.run("hello", ANTHROPIC_BASE_URL=url, CLAUDE_CODE_OAUTH_TOKEN=GOOD, ANTHROPIC_API_KEY=key)

    assert api.requests[-1].api_key == Token(key).fingerprint


def test_the_credentials_file_is_read_before_each_request(cli: Cli, url: str, api: MessagesApi) -> None:
    new = "sk-ant-oat01-new"
    write = f"""printf '{{"claudeAiOauth":{{"accessToken":"{new}","scopes":["user:inference"]}}}}' > """
    credentials = cli.config / ".credentials.json"
    credentials.write_text(json.dumps({"claudeAiOauth": {"accessToken": GOOD, "scopes": ["user:inference"]}}))
    api.script("switch", Tool(command=f"{write} {credentials}"), Text())

    for version, last in (("2.1.330", new), ("2.0.76", GOOD)):
        credentials.write_text(json.dumps({"claudeAiOauth": {"accessToken": GOOD, "scopes": ["user:inference"]}}))
        ended = cli.run("[[script:switch]]", ANTHROPIC_BASE_URL=url, SCRIPTED_CLI_VERSION=version)

        assert ended.code == 0
        assert api.requests[-2].carries(GOOD)
        assert api.requests[-1].carries(last)


def test_without_a_credential_it_says_not_logged_in(cli: Cli, url: str) -> None:
    ended = cli.run("hello", ANTHROPIC_BASE_URL=url)

    assert ended.code == 1
    assert ended.result["result"] == "Not logged in · Please run /login"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nonsense"], "error: unknown option '--nonsense'"),
        (["--session-id", "nope"], "Error: Invalid session ID. Must be a valid UUID."),
        (["--resume", SESSION], f"No conversation found with session ID: {SESSION}"),
    ],
)
def test_what_the_real_one_refuses_is_refused_in_its_words(cli: Cli, arguments: list[str], words: str) -> None:
    ended = cli.run("hello", *arguments)

    assert (ended.code, ended.err.splitlines()[0]) == (1, words)


def test_the_version_is_the_one_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPTED_CLI_VERSION", "2.1.30")

    assert scripted_cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "2.1.30 (Claude Code)\n"


def test_messages_as_frames_on_stdin_are_understood_with_their_images(cli: Cli) -> None:
    report = cli.directory / "report"
    script = json.dumps({"script": [{"do": "init"}, {"do": "report", "path": str(report)}, {"do": "result"}]})
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    message = {"role": "user", "content": [image, {"type": "text", "text": script}]}
    ended = cli.run(
        json.dumps({"type": "user", "message": message}) + "\n",
        "--input-format",
        "stream-json",
        CLAUDE_CODE_OAUTH_TOKEN=GOOD,
    )

    given = json.loads(report.read_text())
    assert ended.code == 0
    assert given["images"] == ["image/png"]
    assert given["token"] == Token(GOOD).fingerprint
    assert GOOD not in report.read_text()


# Signals and sessions


def test_a_session_id_can_be_used_once(cli: Cli) -> None:
    cli.run([{"do": "result"}], "--session-id", SESSION)
    ended = cli.run([{"do": "result"}], "--session-id", SESSION)

    assert (ended.code, ended.err) == (1, f"Error: Session ID {SESSION} is already in use.\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_polite_signal_ends_it_and_its_tools(cli: Cli, number: int, code: int) -> None:
    pid_file = cli.directory / "tool"
    process = cli.start([{"do": "init"}, {"do": "tool", "command": f"echo $$ >> {pid_file}; sleep 60"}])
    [tool] = lines_of(pid_file)
    process.send_signal(number)

    assert process.wait(READY_SECONDS) == code
    until(lambda: not alive(int(tool)))


def test_a_stubborn_one_goes_on(cli: Cli) -> None:
    ready, go = cli.directory / "ready", cli.directory / "go"
    process = cli.start(
        [
            {"do": "stubborn"},
            {"do": "touch", "path": str(ready)},
            {"do": "wait_file", "path": str(go)},
            {"do": "result"},
        ]
    )
    assert lines_of(ready) == [f"ready {process.pid}"]
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    go.touch()

    out, _ = process.communicate(timeout=READY_SECONDS)
    assert process.returncode == 0
    assert b'"type":"result"' in out


def test_a_resumed_session_plays_what_is_left_and_runs_no_tool_twice(cli: Cli) -> None:
    log, ready = cli.directory / "log", cli.directory / "ready"
    process = cli.start(
        [
            {"do": "init"},
            {"do": "tool", "command": f"echo ran >> {log}"},
            {"do": "touch", "path": str(ready)},
            {"do": "hang"},
            {"do": "assistant", "text": "resumed", "when": "resumed"},
            {"do": "assistant", "text": "fresh", "when": "first"},
            {"do": "result"},
        ],
        "--session-id",
        SESSION,
    )
    lines_of(ready)
    process.kill()
    process.wait()
    ended = cli.run("Continue from where you left off.", "--resume", SESSION)

    assert ended.kinds == ["init", "assistant", "result"]
    assert ended.frames[1]["message"]["content"][0]["text"] == "resumed"
    assert {frame["session_id"] for frame in ended.frames} == {SESSION}
    assert log.read_text() == "ran\n"


def test_a_request_that_was_refused_is_made_again_when_resumed(cli: Cli, url: str) -> None:
    script: list[Frame] = [{"do": "request", "prompt": "[[script:build]]"}, {"do": "result", "text": "All."}]
    first = cli.run(script, "--session-id", SESSION, ANTHROPIC_BASE_URL=url, CLAUDE_CODE_OAUTH_TOKEN=DEAD)
    again = cli.run("Continue.", "--resume", SESSION, ANTHROPIC_BASE_URL=url, CLAUDE_CODE_OAUTH_TOKEN=GOOD)

    assert (first.code, again.code) == (1, 0)
    assert again.result["result"] == "All."
    assert b"made" in again.out


def test_a_tool_that_was_interrupted_does_not_run_again_when_resumed(cli: Cli, url: str, api: MessagesApi) -> None:
    log = cli.directory / "log"
    api.script("long", Tool(command=f"echo ran >> {log}; sleep 60"), Text(text="Enough."))
    environment = {"ANTHROPIC_BASE_URL": url, "CLAUDE_CODE_OAUTH_TOKEN": GOOD}
    process = cli.start("[[script:long]]", "--session-id", SESSION, **environment)
    lines_of(log)
    process.send_signal(signal.SIGINT)
    assert process.wait(READY_SECONDS) == 0
    ended = cli.run("Continue.", "--resume", SESSION, **environment)

    assert ended.result["result"] == "Enough."
    assert log.read_text() == "ran\n"


def test_a_conversation_goes_on_when_resumed(cli: Cli, url: str, api: MessagesApi) -> None:
    environment = {"ANTHROPIC_BASE_URL": url, "CLAUDE_CODE_OAUTH_TOKEN": GOOD}
    cli.run("[[script:build]]", "--session-id", SESSION, **environment)
    ended = cli.run("Continue.", "--resume", SESSION, **environment)

    assert ended.code == 0
    assert api.requests[-1].script == "build"
    assert b"made" not in ended.out


# Scripts


def test_bytes_come_out_as_written_however_they_are_cut(cli: Cli) -> None:
    ended = cli.run(
        [
            {"do": "write", "text": "é1", "byte_by_byte": True},
            {"do": "write", "text": "abc", "cuts": [1, 2]},
            {"do": "write", "base64": "/wA=", "newline": False},
            {"do": "write", "text": "aside", "stream": "stderr"},
        ]
    )

    assert ended.out == "é1\nabc\n".encode() + b"\xff\x00"
    assert "aside\n" in ended.err


def test_a_cut_is_a_write_of_its_own(cli: Cli) -> None:
    process = cli.start([{"do": "write", "text": "abc", "cuts": [1], "pause_seconds": 0.2}])
    assert process.stdout is not None

    assert os.read(process.stdout.fileno(), 100) == b"a"
    began = time.monotonic()
    assert os.read(process.stdout.fileno(), 100) == b"bc\n"
    assert time.monotonic() - began > 0.1


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_tool_can_forge_the_refusal_line_and_frame(cli: Cli, stream: str) -> None:
    ended = cli.run([{"do": "init"}, {"do": "forge", "stream": stream}, {"do": "result"}])

    if stream == "stderr":
        assert "[ERROR] API error (attempt 1/11): 401 401 {" in ended.err
    else:
        assert ended.kinds == ["init", "assistant", "api_retry", "user", "result"]


def test_a_flood_is_as_long_as_asked_and_its_lines_are_frames(cli: Cli) -> None:
    ended = cli.run([{"do": "flood", "bytes": 1_000_000, "line_bytes": 1000}])

    assert 1_000_000 <= len(ended.out) < 1_100_000
    assert {len(line) for line in ended.out.splitlines()} == {999}
    assert {frame["subtype"] for frame in ended.frames} == {"filler"}


@pytest.mark.parametrize("kind", ["plain", "setsid", "double_fork", "empty_env"])
def test_a_spawned_child_holds_the_pipes_after_its_parent_has_gone(cli: Cli, kind: str) -> None:
    pid_file = cli.directory / "pids"
    process = cli.start(
        [
            {"do": "spawn", "kind": kind, "hold_pipes": True, "pid_file": str(pid_file)},
            {"do": "wait_file", "path": str(pid_file)},
        ]
    )
    assert process.wait(READY_SECONDS) == 0
    [child] = [int(line) for line in lines_of(pid_file)]
    assert process.stdout is not None

    until(lambda: (os.getsid(child) == process.pid) == (kind == "plain"))
    assert select.select([process.stdout], [], [], 0) == ([], [], []), "the pipe is at its end"
    os.kill(child, signal.SIGKILL)
    assert process.stdout.read() == b""


def test_a_tree_has_as_many_processes_as_asked(cli: Cli) -> None:
    pid_file = cli.directory / "pids"
    process = cli.start([{"do": "spawn", "kind": "tree", "count": 11, "pid_file": str(pid_file)}, {"do": "hang"}])
    tree = [int(line) for line in lines_of(pid_file, 11)]

    assert len(set(tree)) == 11
    os.killpg(process.pid, signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in tree))


def test_a_runaway_ends_by_itself(cli: Cli) -> None:
    pid_file = cli.directory / "pids"
    process = cli.start(
        [{"do": "spawn", "kind": "runaway", "seconds": 0.2, "hold_pipes": True, "pid_file": str(pid_file)}]
    )

    out, _ = process.communicate(timeout=READY_SECONDS)  # the end of the pipe: nobody holds it any more
    assert out == b""
    [first] = [int(line) for line in lines_of(pid_file)]
    assert not alive(first)


@pytest.mark.parametrize(
    ("step", "code"),
    [
        ({"do": "exit", "code": 7}, 7),
        ({"do": "kill", "signal": "SIGSEGV"}, -signal.SIGSEGV),
        ({"do": "kill", "signal": "SIGTERM"}, -signal.SIGTERM),
    ],
)
def test_a_script_chooses_how_it_ends(cli: Cli, step: Frame, code: int) -> None:
    assert cli.run([{"do": "result"}, step, {"do": "result"}]).code == code


def test_a_stopped_one_goes_on_when_continued(cli: Cli) -> None:
    process = cli.start([{"do": "stop"}, {"do": "result"}])
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    process.send_signal(signal.SIGCONT)

    out, _ = process.communicate(timeout=READY_SECONDS)
    assert b'"type":"result"' in out


def test_a_signal_that_is_waited_for_does_nothing_else(cli: Cli) -> None:
    ready = cli.directory / "ready"
    process = cli.start(
        [{"do": "wait_signal", "signal": "SIGINT", "ready_file": str(ready)}, {"do": "exit", "code": 5}]
    )
    lines_of(ready)
    process.send_signal(signal.SIGINT)

    assert process.wait(READY_SECONDS) == 5


def test_a_hang_after_the_result_keeps_the_process(cli: Cli) -> None:
    process = cli.start([{"do": "result"}, {"do": "hang"}])
    assert process.stdout is not None

    assert b'"type":"result"' in process.stdout.readline()
    assert process.poll() is None


def test_a_script_from_a_file_leaves_stdin_unread(cli: Cli) -> None:
    script = cli.directory / "script"
    script.write_text(json.dumps({"script": [{"do": "init"}, {"do": "result"}]}))
    ended = cli.run(b"not read", SCRIPTED_CLI_SCRIPT=str(script))

    assert ended.kinds == ["init", "result"]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"do": "dance"}, "step 1: unknown step 'dance'"),
        ({"do": "_play"}, "step 1: unknown step '_play'"),
        ({"do": "sleep"}, r"step 1 \(sleep\): seconds is missing"),
        ({"do": "sleep", "seconds": "1"}, r"step 1 \(sleep\): seconds must be float"),
        ({"do": "exit", "cod": 1}, r"step 1 \(exit\): unknown field 'cod'"),
        ({"do": "exit", "when": "later"}, r"step 1 \(exit\): when must be"),
        ("exit", "step 1: a step is an object"),
    ],
)
def test_a_wrong_step_is_told_before_any_is_played(step: Any, words: str) -> None:
    with pytest.raises(BadScript, match=words):
        check({"script": [step]}, HostileSteps)


def test_a_wrong_script_exits_with_2(cli: Cli) -> None:
    ended = cli.run([{"do": "init"}, {"do": "dance"}])

    assert (ended.code, ended.out) == (2, b"")
    assert "scripted CLI: step 2: unknown step 'dance'" in ended.err


def test_every_step_is_in_the_table_and_every_field_can_be_checked() -> None:
    steps = {
        name: play
        for cls in (PrintingSteps, Steps, HostileSteps)
        for name, play in vars(cls).items()
        if callable(play) and not name.startswith("_")
    }
    table = str(program.__doc__).rpartition("\n=====")[0].rpartition("=====\n")[2]
    documented = {line.split("``")[1] for line in table.splitlines() if line.startswith("``")}

    assert set(steps) == documented
    for play in steps.values():
        assert {text for key, text in play.__annotations__.items() if key != "return"} <= set(CHECKS)
