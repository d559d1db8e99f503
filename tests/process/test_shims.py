"""Shims and the fork server that somebody kills or stops: every moment of it is survived, or told within a bound."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_runtime.process.child import Exit
from agent_runtime.process.containment.registry import new_mark
from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.spawn import Command, NotSpawned
from tests.support import families
from tests.support.families import (
    FAMILY,
    alive,
    descriptors,
    ended_at_last,
    eventually,
    exit_of,
    fork_server,
    go,
    pids,
    run_driver,
    shim_of,
    spawner,
    start,
    start_python,
    start_shell,
)

if TYPE_CHECKING:
    from agent_runtime.process.containment.sweep import Kind

KILLED, STOPPED = "SIGKILL", "SIGSTOP"
by_either = pytest.mark.parametrize("how", [KILLED, STOPPED])

# -- a shim, before its leader starts


@pytest.mark.slow
@by_either
def test_a_spawn_whose_shim_is_struck_before_the_leader_starts_is_refused_in_time(how: str, kind: Kind) -> None:
    said, seconds, left, code = run_driver(
        "a_spawn_whose_shim_is_struck_before_the_leader_starts_is_refused_in_time",
        how,
        kind=kind,
    )
    assert said.startswith("OTHER:")
    assert seconds < 30
    assert left == [[], True]
    assert code == 7


@pytest.mark.parametrize("what", ["shim alone", "fork server too"])
def test_a_spawn_whose_shim_is_killed_before_the_leader_starts_begins_again(what: str, kind: Kind) -> None:
    struck, spared, code, *left = run_driver(
        "a_spawn_whose_shim_is_killed_before_the_leader_starts_begins_again",
        what,
        kind=kind,
    )
    assert (struck, spared, code) == (1, True, 7)
    assert left == [[], True]


@pytest.mark.slow
@pytest.mark.parametrize("how", [KILLED, STOPPED])
def test_shims_that_are_struck_at_any_moment_of_a_spawn_leave_nothing(how: str, kind: Kind) -> None:
    """All that is started here is struck within a few milliseconds, wherever it is then."""
    outcomes, survivors, left = run_driver(
        "shims_that_are_struck_at_any_moment_of_a_spawn_leave_nothing",
        how,
        kind=kind,
        timeout=110,
    )
    assert set(outcomes) <= {"spawned", "OTHER"}
    assert survivors == 0
    assert left == []


# -- a shim, while its leader runs, and later


def test_a_shim_that_is_killed_while_its_leader_runs_loses_neither_exit_code_nor_family(kind: Kind) -> None:
    codes, survivors, left = run_driver(
        "a_shim_that_is_killed_while_its_leader_runs_loses_neither_exit_code_nor_family",
        kind=kind,
    )
    assert codes == [7, 7, 7]
    assert (survivors, left) == (0, [])


def test_a_shim_that_is_killed_after_its_leader_has_ended_has_told_how(kind: Kind) -> None:
    assert run_driver(
        "a_shim_that_is_killed_after_its_leader_has_ended_has_told_how",
        kind=kind,
    ) == [7, 0, []]


@by_either
def test_a_shim_that_is_killed_in_the_middle_of_a_sweep_saves_no_process(how: str, kind: Kind) -> None:
    assert run_driver(
        "a_shim_that_is_killed_in_the_middle_of_a_sweep_saves_no_process",
        how,
        kind=kind,
    ) == [0, [], -9, True]


@pytest.mark.parametrize("when", ["the leader runs", "the leader has ended"])
def test_a_shim_that_is_stopped_tells_and_goes_all_the_same(when: str, kind: Kind) -> None:
    child = start_shell("setsid sleep 600 & echo $!; read end; exit 7")
    go(child)
    family = pids(child, 1)
    shim = proc_table.read_process(shim_of(child))
    assert shim is not None
    if when == "the leader runs":
        families.stop(shim.pid)
        go(child)
    else:
        go(child)
        assert select.select([child.pidfd], [], [], 10)[0]
        families.stop(shim.pid)
    assert exit_of(child) == Exit(7)
    families.stop(shim.pid)
    assert child.sweep(time.monotonic() + 10).survivors == 0
    assert alive(family) == []
    if not child._handle.shim_has_ended:
        families.stop(shim.pid)
    child.close()
    assert eventually(lambda: not alive([shim.identity]))


def test_a_stopped_leader_of_a_killed_supervisor_is_ended_by_its_shim(kind: Kind) -> None:
    """P4, P11."""
    left = run_driver(
        "a_stopped_leader_of_a_killed_supervisor_is_ended_by_its_shim",
        kind=kind,
    )
    assert eventually(lambda: not alive([tuple(left)]))


@pytest.mark.slow
def test_a_shim_does_not_keep_the_machine_busy_with_what_cannot_be_killed() -> None:
    with families.freezer() as (freeze, thaw):
        child = start_shell("exec sleep 600")
        go(child)
        assert eventually(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n")
        freeze(child.pid)
        shim = shim_of(child)
        try:
            child.close()
            assert eventually(lambda: _seconds_between_two_looks(shim) > 0.2)
        finally:
            thaw()
        assert eventually(lambda: proc_table.read_process(child.pid) is None)
        assert eventually(lambda: proc_table.read_process(shim) is None or families.state_of(shim) == "Z")


def _seconds_between_two_looks(pid: int) -> float:
    began, before = time.monotonic(), _slept(pid)
    assert eventually(lambda: _slept(pid) >= before + 2)
    return (time.monotonic() - began) / 2


def _slept(pid: int) -> int:
    """Count how often a process has gone to sleep of its own accord."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


# -- the fork server


@by_either
def test_a_fork_server_that_is_struck_costs_neither_the_running_nor_the_next(how: str, kind: Kind) -> None:
    with ended_at_last(start_shell("echo $$; read end; exit 7")) as running:
        fork_server.start()
        assert fork_server.identity is not None
        struck = fork_server.identity
        os.kill(struck[0], getattr(signal, how))
        assert eventually(lambda: families.state_of(struck[0]) in "TZ")
        began = time.monotonic()
        with ended_at_last(start_shell("exit 3")) as child:
            assert time.monotonic() - began < 10
            go(child)
            assert exit_of(child) == Exit(3)
        assert running.poll() is None
        go(running)
        go(running)
        assert exit_of(running) == Exit(7)


@pytest.mark.slow
def test_a_fork_server_that_is_stopped_again_and_again_holds_up_nobody_for_ever() -> None:
    """More wait for it than its queue has room for."""
    outcomes, slowest, after = run_driver(
        "a_fork_server_that_is_stopped_again_and_again_holds_up_nobody_for_ever",
        timeout=110,
    )
    assert set(outcomes) <= {"spawned", "OTHER"}
    assert slowest < 30
    assert after == 7


@pytest.mark.slow
def test_a_fork_server_that_can_neither_answer_nor_be_killed_holds_up_nobody_for_ever() -> None:
    """More ask it than its queue has room for; it is frozen."""
    with families.freezer() as (freeze, thaw), pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent_runtime.process.forkserver.server._ANSWER_SECONDS", 0.5)
        fork_server.close()
        fork_server.start()
        assert fork_server.identity is not None
        frozen = fork_server.identity
        assert fork_server._running is not None
        fork_server._running.requests.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # as little as there may be
        freeze(frozen[0])

        def one(number: int) -> str:
            try:
                child = start("sh", "-c", f"exit {number}")
            except NotSpawned as failure:
                return failure.reason.name
            with ended_at_last(child):
                return str(exit_of(child).code == number)

        pool = ThreadPoolExecutor(24)
        answers = [pool.submit(one, number) for number in range(24)]
        try:
            outcomes = {answer.result(families.PATIENCE_SECONDS) for answer in answers}
        finally:
            thaw()
            pool.shutdown()
        assert eventually(lambda: not alive([frozen]))
    fork_server.close()  # what was started here waits for no longer than a moment
    assert outcomes == {"OTHER", "True"}


def test_two_hundred_are_started_by_eight_threads_at_once_each_with_its_own_code(kind: Kind) -> None:
    fork_server.start()
    before = descriptors()

    def one(number: int) -> bool:
        child = start("sh", "-c", f"exit {number}")
        try:
            return exit_of(child) == Exit(number)
        finally:
            child.close()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(200)))
    assert descriptors() == before


# -- what neither of them may keep open


def test_no_pipe_of_an_attempt_is_held_by_its_shim_or_by_another_attempt(kind: Kind) -> None:
    with ended_at_last(start("cat")) as first, ended_at_last(start("cat")) as second:
        first.close_stdin()  # the second one was started while it was open
        assert exit_of(first) == Exit(0)
        assert select.select([first.stdout], [], [], 10)[0]
        assert os.read(first.stdout, 1) == b""
        assert os.read(first.stderr, 1) == b""
        assert second.poll() is None
        for child in (first, second):
            assert _open_in(shim_of(child)) == {"/dev/null": 3, "pipe": 2, "socket": 1}
        assert fork_server.identity is not None
        assert _open_in(fork_server.identity[0]) == {"/dev/null": 3, "socket": 1}


def _open_in(pid: int) -> dict[str, int]:
    """Count what a process has open, by what it is."""
    found: dict[str, int] = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            name = str(link.readlink()).partition(":")[0]
            found[name] = found.get(name, 0) + 1
    return found


def test_a_leader_has_its_three_pipes_and_nothing_else_whatever_is_open_here(kind: Kind) -> None:
    foreign, other = os.pipe()
    try:
        os.set_inheritable(foreign, True)
        with ended_at_last(start("cat")) as beside, ended_at_last(start("cat")) as child:
            assert eventually(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "cat\n")
            assert eventually(lambda: _open_in(child.pid) == {"pipe": 3}), _open_in(child.pid)
            assert beside.poll() is None
    finally:
        os.close(foreign)
        os.close(other)


@pytest.mark.slow
def test_the_fork_server_neither_grows_nor_keeps_anything_open_over_seven_hundred_starts(kind: Kind) -> None:
    def many(count: int) -> None:
        def one(_: int) -> None:
            child = start("true")
            exit_of(child)
            child.close()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(count)))

    many(100)
    assert fork_server.identity is not None
    pid = fork_server.identity[0]
    before = (_resident_kib(pid), _open_in(pid), descriptors(), threading.active_count())
    many(700)
    after = (_resident_kib(pid), _open_in(pid), descriptors(), threading.active_count())
    assert fork_server.identity[0] == pid
    assert after[1:] == before[1:]
    assert after[0] <= before[0] * 1.05


def _resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nVmRSS:")[2].split()[0])


def test_a_shim_that_is_forked_ahead_serves_one_command_and_ends_without_any() -> None:
    fork_server.start()
    assert fork_server.identity is not None
    parent = proc_table.read_process(fork_server.identity[0])
    assert parent is not None
    before = set(proc_table.Snapshot().children(parent))

    def ours() -> set[proc_table.Process]:
        return {one for one in proc_table.Snapshot().children(parent) if one not in before and not one.dead}

    with spawner.forked_shim() as shim:
        assert eventually(lambda: len(ours()) == 1)
        [ahead] = ours()
        child = spawner.spawn(Command(argv=("true",), env={}, cwd=Path("/"), mark=new_mark(Path("/"))), shim=shim)
    with ended_at_last(child):
        assert child.shim_pid == ahead.pid
    with spawner.forked_shim():
        assert eventually(lambda: len(ours()) == 1)
    assert eventually(lambda: not ours())


def test_every_member_of_a_family_is_below_its_own_shim(kind: Kind) -> None:
    first, second = (start_python(FAMILY, "12") for _ in range(2))
    with ended_at_last(first), ended_at_last(second):
        for child in (first, second):
            members = pids(child, 12)
            assert {process.identity for process in families.kept(child)} == set(members)


def test_a_leader_that_is_ended_by_its_shim_was_asked_politely_first(tmp_path: Path, kind: Kind) -> None:
    """As when nobody listens to the shim any more."""
    child = start_shell(
        f"trap 'echo polite >{tmp_path}/said; exit' INT; echo ready; while :; do sleep 600 & wait; done"
    )
    go(child)
    families.lines(child, 1)
    shim = proc_table.read_process(shim_of(child))
    assert shim is not None
    child.close()
    assert eventually(lambda: not alive([shim.identity]))
    assert (tmp_path / "said").read_text() == "polite\n"
