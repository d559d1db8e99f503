from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from agent_runtime.errors import RESERVED_WORDS, SpawnFailed
from agent_runtime.process.child import Exit
from agent_runtime.process.containment.registry import MARK_VARIABLE, new_mark
from agent_runtime.process.forkserver.server import ShimHandle
from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.linux import syscalls as linux
from agent_runtime.process.spawn import Command, NotSpawned, SpawnReason
from tests.support import families
from tests.support.families import (
    attempt_registry,
    descriptors,
    end,
    ended_at_last,
    exit_of,
    fork_server,
    go,
    lines,
    pids_limit,
    program,
    run_driver,
    start,
    start_python,
    start_shell,
)

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from agent_runtime.process.child import Child
    from agent_runtime.process.containment.sweep import Kind

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a child as another user")

STUBBORN = program("stubborn.py")


@pytest.fixture(autouse=True)
def _nothing_leaks() -> object:
    fork_server.start()
    before = descriptors()
    yield
    assert descriptors() <= before
    assert attempt_registry.all() == ()


def test_a_child_has_three_pipes_and_tells_its_exit_code(kind: Kind) -> None:
    with ended_at_last(start_shell("echo out; echo err >&2; exit 7")) as child:
        go(child)
        assert exit_of(child) == Exit(7)
        assert os.read(child.stdout, 100) == b"out\n"
        assert os.read(child.stderr, 100) == b"err\n"


def test_a_read_from_a_silent_child_does_not_block(kind: Kind) -> None:
    with ended_at_last(start("sleep", "60")) as child, pytest.raises(BlockingIOError):
        os.read(child.stdout, 1)


def test_closing_stdin_is_an_end_of_file_for_the_child(kind: Kind) -> None:
    with ended_at_last(start("cat")) as child:
        child.close_stdin()
        child.close_stdin()
        assert exit_of(child) == Exit(0)


def test_a_child_is_in_a_session_of_its_own_with_its_mark_and_no_foreign_descriptor() -> None:
    mark = new_mark(families.data_dir())
    foreign, other = os.pipe()
    os.set_inheritable(foreign, True)
    with ended_at_last(start("sh", "-c", "ls /proc/self/fd; read wait", mark=mark)) as child:
        # ls itself has the directory open as 3
        assert lines(child, 4) == ["0", "1", "2", "3"]
        process = proc_table.read_process(child.pid)
        assert process is not None
        assert process.session == process.group == child.pid
        assert proc_table.read_environ(child.pid, MARK_VARIABLE) == mark
    os.close(foreign)
    os.close(other)


def test_a_child_ignores_no_signal_that_its_supervisor_ignores(kind: Kind) -> None:
    assert run_driver("a_child_ignores_no_signal_that_its_supervisor_ignores", kind=kind) == []


def test_a_child_is_taken_before_us_when_memory_runs_out(kind: Kind) -> None:
    with ended_at_last(start("sleep", "60")) as child:
        own = proc_table.read_oom_score(os.getpid())
        its = proc_table.read_oom_score(child.pid)
        assert own is not None
        assert its == min(1000, own + 500)


@as_root
def test_a_child_runs_as_the_user_it_was_told_with_none_of_our_groups() -> None:
    result = run_driver("a_child_runs_as_the_user_it_was_told_with_none_of_our_groups")
    assert result == ["54321", "54321", "54321"]


@as_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_a_child_is_as_nice_as_its_supervisor_or_ten_nicer_where_shims_have_no_priority() -> None:
    driver, no_priority, own = "a_child_is_as_nice_as_its_supervisor", "-sys_nice", os.nice(0)
    without = ("setpriv", "--bounding-set", no_priority, "--inh-caps", no_priority)

    assert run_driver(driver) == [str(own)]
    assert run_driver(driver, prefix=("nice", "-n", "5")) == [str(min(19, own + 5))]
    assert run_driver(driver, prefix=("nice", "-n", "5", *without)) == [str(min(19, own + 15))]


def test_neither_the_environment_nor_the_arguments_show_in_a_repr(tmp_path: Path) -> None:
    command = Command(argv=("secret-argument",), env={"NAME": "secret-value"}, cwd=tmp_path, mark="mark")
    assert "secret" not in repr(command)


def test_the_repr_of_a_child_tells_its_state() -> None:
    child = start("sh", "-c", "exit 3")
    exit_of(child)
    assert repr(child) == f"<Child {child.pid} exit 3>"
    child.close()
    assert repr(child) == f"<Child {child.pid} exit 3, closed>"


# -- P9: what can go wrong at a spawn


def _text_file(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_every_way_a_spawn_can_fail_is_told_and_leaks_nothing(tmp_path: Path, kind: Kind) -> None:
    env = {"PATH": os.environ["PATH"]}
    locked = _text_file(tmp_path / "locked", "#!/bin/sh\n", mode=0o644)
    orphaned = _text_file(tmp_path / "orphaned", "#!/no/such/interpreter\n")
    formless = _text_file(tmp_path / "formless", "no program at all\n")
    cases: list[tuple[SpawnReason, tuple[str, ...], dict[str, str], Path, str | None]] = [
        (SpawnReason.NOT_FOUND, ("no-such-command",), env, tmp_path, None),
        (SpawnReason.NOT_FOUND, (str(tmp_path / "none"),), env, tmp_path, None),
        (SpawnReason.NOT_FOUND, (locked + "/none",), env, tmp_path, None),
        (SpawnReason.NOT_EXECUTABLE, (locked,), env, tmp_path, None),
        (SpawnReason.NOT_EXECUTABLE, (orphaned,), env, tmp_path, None),
        (SpawnReason.NOT_EXECUTABLE, (formless,), env, tmp_path, None),
        (SpawnReason.NOT_EXECUTABLE, (str(tmp_path),), env, tmp_path, None),
        (SpawnReason.NO_DIRECTORY, ("true",), env, tmp_path / "none", None),
        (SpawnReason.NO_DIRECTORY, ("true",), env, tmp_path / "locked", None),
        (SpawnReason.TOO_LONG, ("true", "x" * 200_000), env, tmp_path, None),
        (SpawnReason.TOO_LONG, ("true",), {**env, "LONG": "x" * 200_000}, tmp_path, None),
        (SpawnReason.TOO_LONG, ("true", *["x" * 100_000] * 100), env, tmp_path, None),
        (SpawnReason.NUL, ("true", "a\0b"), env, tmp_path, None),
        (SpawnReason.NUL, ("true",), {**env, "NUL": "a\0b"}, tmp_path, None),
        (SpawnReason.BAD_NAME, ("true",), {**env, "A=B": "c"}, tmp_path, None),
        (SpawnReason.UNKNOWN_USER, ("true",), env, tmp_path, "no-such-user"),
        (SpawnReason.NOT_FOUND, (), env, tmp_path, None),
        (SpawnReason.NOT_FOUND, ("",), env, tmp_path, None),
    ]
    before = descriptors()
    for reason, argv, environ, cwd, user in cases:
        with pytest.raises(NotSpawned) as failure:
            start(*argv, env=environ, cwd=cwd, user=user)
        assert failure.value.reason is reason, (argv[:1], failure.value)
        assert isinstance(failure.value, SpawnFailed)
        assert str(tmp_path) not in str(failure.value)
        assert not any(word in str(failure.value).lower() for word in RESERVED_WORDS)
        assert failure.value.__cause__ is None
        assert descriptors() == before
        assert attempt_registry.all() == ()


@as_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_a_user_that_may_not_be_taken_on_is_told() -> None:
    no_becoming = "-setuid,-setgid"
    assert (
        run_driver(
            "a_user_that_may_not_be_taken_on_is_told",
            prefix=("setpriv", "--bounding-set", no_becoming, "--inh-caps", no_becoming),
        )
        == "NOT_PERMITTED"
    )


def test_a_spawn_that_runs_out_of_descriptors_at_any_point_leaves_nothing_open_or_running(kind: Kind) -> None:
    """R1: the limit is put so that each single descriptor of a spawn is once the one that is missing."""
    result = run_driver(
        "a_spawn_that_runs_out_of_descriptors_at_any_point_leaves_nothing_open_or_running",
        kind=kind,
    )
    assert set(result) == {"NO_DESCRIPTORS", "spawned"}
    assert result[0] == "NO_DESCRIPTORS"
    assert result[-1] == "spawned"


def test_a_running_family_is_ended_with_no_descriptor_left(kind: Kind) -> None:
    """R1."""
    result = run_driver(
        "a_running_family_is_ended_with_no_descriptor_left",
        kind=kind,
    )
    assert result == ["NO_DESCRIPTORS", 0, []]


def test_a_running_family_is_ended_where_nothing_more_can_be_forked(kind: Kind) -> None:
    """R2: the limit holds for the fork server and the shims, and for threads too, so none was needed."""
    with pids_limit() as group:
        result = run_driver(
            "a_running_family_is_ended_where_nothing_more_can_be_forked",
            str(group),
            kind=kind,
        )
    assert result == [["NO_PROCESSES", "no thread", True, "NO_PROCESSES", None], 0, [], []]


def test_children_that_end_at_once_tell_their_exit_code_every_time(kind: Kind) -> None:
    for _ in range(50):
        child = start("true")
        assert exit_of(child) == Exit(0)
        child.close()


# -- signals


def test_interrupt_reaches_the_leader_and_not_what_it_has_started(kind: Kind) -> None:
    script = """
sh -c 'trap "echo helper-hit" INT; echo helper; while :; do read x || exit; done' <&3 &
trap 'echo leader-hit; exit 5' INT
wait
"""
    with ended_at_last(start_shell("exec 3<&0" + script)) as child:
        go(child)
        assert lines(child, 1) == ["helper"]
        assert child.interrupt()
        assert exit_of(child) == Exit(5)
        assert os.read(child.stdout, 100) == b"leader-hit\n"


def test_a_stopped_child_is_interrupted(kind: Kind) -> None:
    """P4."""
    with ended_at_last(start_shell("trap 'exit 6' INT; echo ready; kill -STOP $$; sleep 60 & wait")) as child:
        go(child)
        lines(child, 1)
        assert families.eventually(lambda: families.state_of(child.pid) == "T")
        assert child.interrupt()
        assert exit_of(child) == Exit(6)


def test_a_stopped_child_is_killed(kind: Kind) -> None:
    """P4."""
    with ended_at_last(start_shell("echo ready; kill -STOP $$")) as child:
        go(child)
        lines(child, 1)
        assert families.eventually(lambda: families.state_of(child.pid) == "T")
        child.kill()
        assert exit_of(child) == Exit(-signal.SIGKILL)


def test_a_child_that_ignores_the_polite_signal_is_killed(kind: Kind) -> None:
    """P4."""
    with ended_at_last(start_python(STUBBORN)) as child:
        lines(child, 1)
        assert child.interrupt()
        child.kill()
        assert exit_of(child) == Exit(-signal.SIGKILL)


def test_a_child_can_be_interrupted_though_the_spawning_thread_had_the_signal_blocked(kind: Kind) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        child = start("sleep", "60")
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with ended_at_last(child):
        assert child.interrupt()
        assert exit_of(child) == Exit(-signal.SIGINT)


def test_interrupt_tells_that_nobody_was_there_before_and_after_the_reaping_and_the_closing(kind: Kind) -> None:
    child = start("true")
    assert families.eventually(lambda: linux.has_ended(child.pidfd))
    assert not child.interrupt()
    exit_of(child)
    assert not child.interrupt()
    child.close()
    assert not child.interrupt()


def test_interrupt_takes_no_look_at_the_process_table(monkeypatch: pytest.MonkeyPatch) -> None:
    with ended_at_last(start("sleep", "60")) as child:
        with monkeypatch.context() as patch:
            patch.setattr(proc_table, "read_process", None)
            patch.setattr(proc_table, "take_view", None)
            began = time.monotonic()
            assert child.interrupt()
            assert time.monotonic() - began < 1, "the CLI and its shim are not waited for"
        assert exit_of(child) == Exit(-signal.SIGINT)


# -- P13: kill at any time, any number of times


def test_everything_may_be_called_again_after_the_end(kind: Kind) -> None:
    child = start("sleep", "60")
    for _ in range(3):
        child.kill()
        assert child.sweep(time.monotonic() + 10).survivors == 0
        assert child.poll() == Exit(-signal.SIGKILL)
    for _ in range(3):
        child.close()
        child.close_stdin()
        child.kill()
        assert child.sweep(time.monotonic() + 10).survivors == 0
        assert child.poll() == Exit(-signal.SIGKILL)
        assert child.poll() is not None


def _race_kills_with_the_natural_end(times: int) -> set[int | None]:
    before = descriptors()
    codes: set[int | None] = set()
    for number in range(times):
        child = start_shell("exit 7")
        together = threading.Barrier(3)
        seen: list[Exit | None] = []

        def kill(child: Child = child, together: threading.Barrier = together) -> None:
            together.wait()
            child.kill()

        killers = [threading.Thread(target=kill) for _ in range(2)]
        for killer in killers:
            killer.start()
        if number % 2:
            go(child)
        together.wait()
        if not number % 2:
            with contextlib.suppress(BrokenPipeError):
                go(child)
        seen.append(exit_of(child))
        for killer in killers:
            killer.join()
        assert child.sweep(time.monotonic() + 10).survivors == 0
        seen.append(child.poll())
        child.close()
        seen.append(child.poll())
        assert len(set(seen)) == 1
        codes.add(seen[0].code if seen[0] else None)
        assert proc_table.read_process(child.pid) is None
    assert descriptors() == before
    return codes


def test_a_kill_from_two_threads_against_the_natural_end_leaves_one_final_state(kind: Kind) -> None:
    assert _race_kills_with_the_natural_end(50) <= {7, -9}


@pytest.mark.slow
def test_a_kill_against_the_natural_end_a_thousand_times(kind: Kind) -> None:
    assert _race_kills_with_the_natural_end(1000) == {7, -9}


def test_a_child_is_killed_straight_after_its_spawn(kind: Kind) -> None:
    for _ in range(25):
        child = start_python("import subprocess; subprocess.run(['sleep', '60'])")
        child.kill()
        assert child.sweep(time.monotonic() + 10).survivors == 0
        assert child.poll() == Exit(-signal.SIGKILL)
        assert families.marked(child.mark) == []
        child.close()


# -- P8: somebody else reaps


def test_a_foreign_waitpid_takes_no_exit_code_from_a_shim(kind: Kind) -> None:
    codes = run_driver(
        "a_foreign_waitpid_takes_no_exit_code_from_a_shim",
        kind=kind,
    )
    assert codes == [0, 7] * 20


def test_an_exit_that_a_foreign_waitpid_has_taken_from_a_dead_shim_is_unknown_and_nothing_hangs() -> None:
    codes = run_driver("an_exit_that_a_foreign_waitpid_has_taken_from_a_dead_shim_is_unknown_and_nothing_hangs")
    assert codes == [None] * 20


def test_a_child_that_was_reaped_before_it_was_seen_counts_as_ended(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    begin = ShimHandle.__init__

    def look_late(self: ShimHandle, line: socket.socket, pidfds: tuple[int, int], pids: tuple[int, int]) -> None:
        assert families.eventually(lambda: proc_table.read_process(pids[1]) is None)
        begin(self, line, pidfds, pids)

    with monkeypatch.context() as patch:
        patch.setattr(ShimHandle, "__init__", look_late)
        child = start("true")
    assert exit_of(child) == Exit(0)
    assert not child.interrupt()
    end(child)


def test_a_foreign_child_in_our_own_session_is_neither_reaped_nor_killed() -> None:
    result = run_driver("a_foreign_child_in_our_own_session_is_neither_reaped_nor_killed")
    assert result == [9, None, None, None]


def test_a_dead_child_is_noticed_and_not_reaped() -> None:
    result = run_driver("a_dead_child_is_noticed_and_not_reaped")
    assert result == [False, True, 0, False]
