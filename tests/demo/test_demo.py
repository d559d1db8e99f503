"""The demo as a person runs it: a process of its own, its table, its exit code, and what it leaves behind."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import psutil
import pytest

from agent_runtime.demo import stage
from agent_runtime.demo.choice import Cli
from agent_runtime.demo.report import RELAY_PROMISES, Promise, RelayPromise, Report
from agent_runtime.demo.stage import Stage, processes_of
from agent_runtime.demo.timeline import Timeline
from tests.support.supervised import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_SECONDS = 110
IN_THE_MIDDLE = "in the middle of a tool"
PROGRAMS = Path(__file__).with_name("programs")


class Demo:
    """One run: its process, and the directory where it may put temporary files."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "agent_runtime", "demo", *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(directory), "TMPDIR": str(self.temporary), "LANG": "C.UTF-8"},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, words: str) -> None:
        assert self.process.stdout is not None
        for line in iter(self.process.stdout.readline, ""):
            if words in line:
                return
        pytest.fail(f"the demo ended without saying: {words}")

    def ended(self) -> tuple[int, str]:
        assert self.process.stdout is not None
        said = self.process.stdout.read()
        return self.process.wait(LIMIT_SECONDS), said

    def left(self) -> list[str]:
        return sorted(path.name for path in self.temporary.iterdir())

    def processes(self) -> list[psutil.Process]:
        """Find what belongs to this run by the temporary directory in its environment."""
        return list(self._found())

    def environments(self) -> list[dict[str, str]]:
        return list(self._found().values())

    def _found(self) -> dict[psutil.Process, dict[str, str]]:
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                environment = process.environ()
                if any(str(self.temporary) in value for value in environment.values()):
                    found[process] = environment
        return found


@contextlib.contextmanager
def demo(directory: Path, *arguments: str) -> Iterator[Demo]:
    started = Demo(directory, *arguments)
    try:
        yield started
    finally:
        for process in started.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        started.process.wait()
        assert started.process.stdout is not None
        started.process.stdout.close()


def outcome_of(promise: Promise | RelayPromise, said: str) -> str:
    """Read off the table how a promise came out: ``held``, ``BROKEN`` or ``-``."""
    (line,) = [line for line in said.splitlines() if line.endswith(promise.value)]
    return line.split()[0]


def row(name: str, said: str) -> str:
    """Read a row of the table: what follows its name."""
    (line,) = [line for line in said.splitlines() if line.startswith(name)]
    return line.removeprefix(name).strip()


def assert_every_promise_held(code: int, said: str) -> None:
    assert code == 0, said
    assert {outcome_of(promise, said) for promise in Promise} == {"held"}
    assert row("failing line -> signal", said).endswith(" 50 ms")
    assert said.count("answered 200 success: ") == 6
    assert said.count("answered 503 auth: ") == 2
    assert "sk-ant" not in said
    assert "\x1b" not in said


def test_the_demo_keeps_every_promise_with_the_scripted_cli(tmp_path: Path) -> None:
    with demo(tmp_path, "--scripted") as run:
        code, said = run.ended()

        assert_every_promise_held(code, said)
        assert run.left() == []
        assert run.processes() == []


@pytest.mark.slow
@pytest.mark.every_cli
@pytest.mark.real_cli
def test_the_demo_keeps_every_promise_with_the_real_cli(tmp_path: Path, claude: str) -> None:
    with demo(tmp_path, "--claude", claude) as run:
        code, said = run.ended()

        assert_every_promise_held(code, said)
        assert run.left() == []
        assert run.processes() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "broken"),
    [
        ("loses_its_result", {Promise.FINISH, Promise.NOT_LOST, Promise.HEALED}),
        ("keeps_its_first_token", {Promise.NEW_TOKEN, Promise.NO_TOKEN_SHOWN}),
        ("hides_the_refusal", {Promise.ANSWER, Promise.EVIDENCE, Promise.TURNED_AWAY}),
        ("speaks_late", {Promise.GONE}),
    ],
)
def test_a_broken_promise_is_named_and_makes_the_exit_code_1(tmp_path: Path, fault: str, broken: set[Promise]) -> None:
    claude = shlex.join([sys.executable, str(PROGRAMS / f"{fault}.py")])
    with demo(tmp_path, "--claude", claude) as run:
        code, said = run.ended()

        assert code == 1, said
        assert {promise for promise in broken if outcome_of(promise, said) != "BROKEN"} == set(), said
        (log,) = run.left()
        assert f"The supervisor's log is kept in {run.temporary / log}" in said
        assert "agent_runtime" in (run.temporary / log).read_text()
        assert run.processes() == []


def assert_every_promise_of_the_relay_held(code: int, said: str) -> None:
    assert code == 0, said
    assert {outcome_of(promise, said) for promise in RELAY_PROMISES} == {"held"}
    assert int(row("refusals and limits by the API", said)) >= 8
    assert said.count("token file written -> ") == 5
    assert [line.split()[-2:] for line in said.splitlines() if line.startswith("tokens that a tool finds")] == [
        ["0", "0"],
        ["1", "1"],
    ]
    assert "sk-ant" not in said


def test_the_demo_keeps_every_promise_of_the_relay_with_the_scripted_cli(tmp_path: Path) -> None:
    with demo(tmp_path, "--scripted", "--delivery", "relay") as run:
        code, said = run.ended()

        assert_every_promise_of_the_relay_held(code, said)
        assert run.left() == []
        assert run.processes() == []


@pytest.mark.slow
@pytest.mark.every_cli
@pytest.mark.real_cli
def test_the_demo_keeps_every_promise_of_the_relay_with_the_real_cli(tmp_path: Path, claude: str) -> None:
    with demo(tmp_path, "--delivery", "relay", "--claude", claude) as run:
        code, said = run.ended()

        assert_every_promise_of_the_relay_held(code, said)
        assert run.left() == []
        assert run.processes() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "broken"),
    [
        ("steals_the_secret", {RelayPromise.SEARCH}),
        ("loses_its_result", {RelayPromise.FINISH, Promise.NOT_LOST}),
        (
            "dies_in_its_tool",
            {RelayPromise.SWITCHES, RelayPromise.FINISH, RelayPromise.TOOLS_ONCE, RelayPromise.SEARCH},
        ),
    ],
)
def test_a_broken_promise_of_the_relay_is_named_and_makes_the_exit_code_1(
    tmp_path: Path, fault: str, broken: set[Promise | RelayPromise]
) -> None:
    claude = shlex.join([sys.executable, str(PROGRAMS / f"{fault}.py")])
    with demo(tmp_path, "--delivery", "relay", "--claude", claude) as run:
        code, said = run.ended()

        assert code == 1, said
        assert {promise for promise in broken if outcome_of(promise, said) != "BROKEN"} == set(), said
        assert "sk-ant" not in said
        assert run.processes() == []


@pytest.mark.slow
def test_a_signal_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo(tmp_path, "--scripted") as run:
        run.wait_for(IN_THE_MIDDLE)
        assert len(run.processes()) > 5

        run.process.send_signal(signal.SIGTERM)
        code, said = run.ended()

        assert code == 128 + signal.SIGTERM, said
        assert "ended by SIGTERM" in said
        assert run.left() == []
        assert run.processes() == []


def test_a_signal_that_arrives_in_a_finalizer_is_not_lost() -> None:
    program = [sys.executable, str(PROGRAMS / "interrupted_in_a_finalizer.py")]
    ended = subprocess.run(program, capture_output=True, text=True, check=False, timeout=20)

    assert "Exception ignored" in ended.stderr, "Python has dropped the first one"
    assert ended.returncode == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_process_that_is_left_is_found_and_ended(tmp_path: Path) -> None:
    with demo(tmp_path, "--scripted") as run:
        run.wait_for(IN_THE_MIDDLE)
        marks = [mark for found in run.environments() if (mark := found.get("AGENT_RUNTIME_EXECUTION_ID"))]
        left = subprocess.Popen(
            ["/bin/sleep", "60"], env={"AGENT_RUNTIME_EXECUTION_ID": marks[0], "TMPDIR": str(run.temporary)}
        )

        code, said = run.ended()

        assert code == 1
        assert outcome_of(Promise.NOTHING_LEFT, said) == "BROKEN"
        assert left.wait(LIMIT_SECONDS) == -signal.SIGKILL
        assert run.processes() == []


@pytest.mark.slow
def test_a_supervisor_that_dies_takes_nothing_with_it_that_is_not_told(tmp_path: Path) -> None:
    with demo(tmp_path, "--scripted") as run:
        run.wait_for(IN_THE_MIDDLE)
        (supervisor,) = psutil.Process(run.process.pid).children()
        supervisor.kill()

        code, said = run.ended()

        assert code == 1
        assert "the demo could not go on: the supervisor" in said
        assert outcome_of(Promise.STARTS, said) == "held"
        assert outcome_of(Promise.NOT_LOST, said) == "BROKEN"
        assert outcome_of(Promise.ENDS_WELL, said) == "-"
        assert len(run.left()) == 1
        assert run.processes() == []


@pytest.mark.slow
def test_a_reader_that_leaves_early_changes_neither_the_end_nor_the_exit_code(tmp_path: Path) -> None:
    with demo(tmp_path, "--scripted") as run:
        assert run.process.stdout is not None
        run.process.stdout.readline()
        run.process.stdout.close()

        assert run.process.wait(LIMIT_SECONDS) == 0
        assert run.left() == []


def test_a_cli_that_cannot_be_run_is_bad_usage(tmp_path: Path) -> None:
    with demo(tmp_path, "--claude", str(tmp_path / "no-such-cli")) as run:
        code, said = run.ended()

        assert code == 2
        assert said.startswith("agent-runtime: --claude:")
        assert run.left() == []


def test_the_claude_on_path_is_taken_and_named(tmp_path: Path) -> None:
    found = tmp_path / "claude"
    found.write_text("#!/bin/sh\necho '9.9.9 (Claude Code)'\n")
    found.chmod(0o755)
    command = [
        sys.executable,
        "-c",
        "from agent_runtime.demo.choice import choose_cli as c; print(c(None, scripted=False))",
    ]

    said = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True).stdout

    assert "name='Claude Code 9.9.9'" in said
    assert "found on PATH" in said


def test_a_promise_that_nothing_has_checked_did_not_hold() -> None:
    report = Report()
    for promise in set(Promise) - {Promise.GONE}:
        report.check(promise, held=True, otherwise="")

    assert list(report.broken) == [Promise.GONE]
    assert "1 not reached" in report.table("a CLI", took_seconds=1.0, log=None)


def test_one_failure_among_many_checks_breaks_a_promise() -> None:
    report = Report()
    report.check(Promise.FINISH, held=False, otherwise="task-2 was lost")
    report.check(Promise.FINISH, held=True, otherwise="")

    assert report.broken[Promise.FINISH] == "task-2 was lost"


def test_a_process_that_left_its_session_is_seen_from_outside_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = f"test-{os.getpid()}-outside"
    script = "setsid sleep 60 </dev/null >/dev/null 2>&1 & echo ready; exec sleep 60"
    leader = subprocess.Popen(
        ["/bin/sh", "-c", script],
        env={"PATH": os.environ["PATH"], "AGENT_RUNTIME_EXECUTION_ID": mark},
        stdout=subprocess.PIPE,
    )
    try:
        assert leader.stdout is not None
        assert leader.stdout.readline() == b"ready\n"
        with contextlib.ExitStack() as held:
            played_on = Stage(Cli("a CLI", "claude", "none runs"), Timeline(io.StringIO()), Report(), held)
            monkeypatch.setattr(played_on, "executions", [SimpleNamespace(execution_id=mark)])
            eventually(lambda: len(processes_of([mark])) == 2)
            seen = {psutil.Process(leader.pid)}
            leader.kill()
            with monkeypatch.context() as hasty:
                hasty.setattr(stage, "GONE_TIMEOUT_SECONDS", 0.2)
                assert played_on.wait_until_gone(mark, seen) is None
            began = time.monotonic()
            held.close()  # which ends what is left
            gone_at = played_on.wait_until_gone(mark, seen)
            assert gone_at is not None
            assert began <= gone_at <= time.monotonic()
            assert len(seen) == 2
        assert processes_of([mark]) == set()
    finally:
        leader.kill()
        leader.wait()
        for process in processes_of([mark]):
            process.kill()
        assert leader.stdout is not None
        leader.stdout.close()
