"""Programs that start other programs, and other helpers for tests of spawning and containment."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.process.containment.leftovers import await_shims, sweep_leftovers  # noqa: F401 - for the drivers
from agent_runtime.process.containment.registry import (  # noqa: F401 - for the drivers
    MARK_VARIABLE,
    become_subreaper,
    new_mark,
)
from agent_runtime.process.containment.sweep import Kind
from agent_runtime.process.linux import cgroup_setup as cgroups
from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.linux import syscalls as linux  # noqa: F401 - for the drivers
from agent_runtime.process.spawn import Command, NotSpawned, Spawner, SpawnReason  # noqa: F401 - for the drivers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from agent_runtime.process.child import Child, Exit

ROOT = Path(__file__).parents[2]
DRIVERS = ROOT / "tests/process/drivers"
PATIENCE_SECONDS = 20.0

spawner = Spawner()
"""The spawner of this process, which runs the tests or a driver."""
fork_server = spawner.fork_server
attempt_registry = spawner.registry
spawn = spawner.spawn
reap_orphans = attempt_registry.reap_orphans


def program(name: str) -> str:
    """Return the text of a program of ``tests/support/programs``, for users who cannot read our files."""
    return (ROOT / "tests/support/programs" / name).read_text()


KINDS = tuple(Kind)
"""The containment layers to test, where this machine has them; each must work alone."""

KIND = "AGENT_RUNTIME_TEST_KIND"
chosen = Kind(os.environ.get(KIND, Kind.SCAN.value))
"""The containment layer that :func:`start` uses; a driver gets it from its environment."""

FAMILY = program("family.py")
"""Program that becomes as many processes as its argument says, every other in its own session; each prints its pid."""

"""Shell script with twenty children, half of them in sessions of their own; for users who cannot run our Python."""

RUNNER = program("runner.py")
"""Program that goes on in a child in a new session again and again, so that its pid changes all the time."""

BOMB = program("bomb.py")
"""Program that forks as fast as it can, every process in a session of its own."""


def data_dir() -> Path:
    """Return a directory that serves as the data directory of this test run, for marks."""
    return ROOT / "tests"


def start(
    *argv: str,
    env: Mapping[str, str] | None = None,
    cwd: Path = Path("/"),
    user: str | None = None,
    mark: str | None = None,
) -> Child:
    """Spawn a program with the tests' environment."""
    env = dict(os.environ) if env is None else env
    mark = mark or new_mark(data_dir())
    return spawn(Command(argv=argv, env=env, cwd=cwd, user=user, mark=mark), chosen, _groups(chosen))


@functools.cache
def _groups(kind: Kind) -> cgroups.Groups | None:
    """Return where cgroups can be made for children of this process; None: they get none, or that is impossible."""
    return cgroups.prepare(cgroups.find()) if kind is Kind.CGROUP else None


@functools.cache
def why_not(kind: Kind) -> str | None:
    """Return why this machine does not allow a containment layer; None: it does."""
    groups = _groups(kind)
    if kind is Kind.CGROUP and groups is None:
        return f"no {kind.value} here: {cgroups.find().reason}"
    command = Command(argv=("true",), env=dict(os.environ), cwd=Path("/"), mark=new_mark(data_dir()))
    try:
        child = spawn(command, kind, groups)
    except NotSpawned as failure:
        return f"no {kind.value} here: {failure}"
    end(child)
    return None


def shim_of(child: Child) -> int:
    """Return the pid of a child's shim; fails if the shim has ended."""
    identity = child._handle.shim
    assert identity is not None
    return identity[0]


def kill_shim(child: Child) -> None:
    """Kill a child's shim from outside, and wait until it is gone."""
    os.kill(shim_of(child), signal.SIGKILL)
    assert eventually(lambda: child._handle.shim_has_ended)


def kept(child: Child) -> list[proc_table.Process]:
    """Return all processes below a child's shim; fails if the shim has ended."""
    shim = proc_table.read_process(shim_of(child))
    assert shim is not None
    below = proc_table.branch(proc_table.Snapshot(), shim)
    return [process for process in below if process.pid != shim.pid and not process.dead]


def state_of(pid: int) -> str:
    """Return the letter of a process's state."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1].decode()


def stop(pid: int) -> None:
    """Stop a process with SIGSTOP, and wait until it is stopped."""
    os.kill(pid, signal.SIGSTOP)
    assert eventually(lambda: state_of(pid) in "TZX")


def start_python(program: str, *argv: str, user: str | None = None) -> Child:
    """Spawn a Python program."""
    return start(sys.executable, "-S", "-c", program, *argv, user=user)


def start_shell(script: str, *, user: str | None = None, mark: str | None = None) -> Child:
    """Spawn a shell script that waits for :func:`go`, so that all it starts inherits what the spawn sets."""
    return start("/bin/sh", "-c", f"read go\n{script}", user=user, mark=mark)


def go(child: Child) -> None:
    """Write the line on stdin that a program waits for."""
    os.write(child.stdin, b"go\n")


def lines(child: Child, count: int) -> list[str]:
    """Wait for *count* lines on the child's stdout."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    data = b""
    while data.count(b"\n") < count:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not select.select([child.stdout], [], [], remaining)[0]:
            raise AssertionError(f"only {data!r}")
        chunk = os.read(child.stdout, 65536)
        if not chunk:
            raise AssertionError(f"ended after {data!r}, {os.read(child.stderr, 65536)!r}")
        data += chunk
    return data.decode().split()


def pids(child: Child, count: int) -> list[proc_table.Identity]:
    """Wait for *count* pids on the child's stdout, one a line; return them with their start times."""
    return identities_of(child, [int(line) for line in lines(child, count)])


def identities_of(child: Child, numbers: list[int]) -> list[proc_table.Identity]:
    """Return the processes with these pids, each with its start time."""
    found = [proc_table.read_process(number) for number in numbers]
    assert all(process is not None for process in found)
    return [process.identity for process in found if process is not None]


def alive(identities: list[proc_table.Identity]) -> list[proc_table.Identity]:
    """Return the processes that still run; a zombie does not."""
    return [
        identity
        for identity in identities
        if (process := proc_table.read_process(identity[0])) is not None
        and process.identity == identity
        and not process.dead
    ]


def marked(mark: str) -> list[int]:
    """Return the pids of all living processes whose environment has the mark."""
    return [
        process.pid
        for process in proc_table.all_processes()
        if not process.dead and proc_table.read_environ(process.pid, "AGENT_RUNTIME_ATTEMPT_MARK") == mark
    ]


def eventually(condition: Callable[[], bool]) -> bool:
    """Check *condition* repeatedly; return whether it became true within a bounded time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def exit_of(child: Child) -> Exit:
    """Wait for the end of the child; return its exit."""
    assert select.select([child.pidfd], [], [], PATIENCE_SECONDS)[0]
    ended = child.poll()
    assert ended is not None
    return ended


def end(child: Child) -> None:
    """Kill a child and all that it has started, and reap it."""
    child.kill()
    report = child.sweep(time.monotonic() + PATIENCE_SECONDS)
    child.close()
    assert report.survivors == 0


@contextlib.contextmanager
def ended_at_last(child: Child) -> Iterator[Child]:
    """End a child however the block ends."""
    try:
        yield child
    finally:
        end(child)


@contextlib.contextmanager
def pids_limit(limit: int | None = None) -> Iterator[Path]:
    """Make a cgroup that bounds a driver's number of processes; the driver joins it with :func:`joined_cgroup`."""
    root = Path("/sys/fs/cgroup/pids")  # cgroup v1; v2 has the same files in its own place
    root = root if root.is_dir() else Path("/sys/fs/cgroup")
    group = root / f"agent-runtime-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("needs a writable cgroup")
    try:
        try:
            (group / "pids.max").write_text("max" if limit is None else str(limit))
        except OSError:
            pytest.skip("needs the pids controller")
        yield group
    finally:
        while members := (group / "cgroup.procs").read_text().split():  # a bomb that went off must not stay
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        group.rmdir()


def joined_cgroup() -> Path:
    """Join the cgroup that is named by this driver's first argument, and remove that argument."""
    group = Path(sys.argv.pop(1))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    return group


@contextlib.contextmanager
def freezer() -> Iterator[tuple[Callable[[int], None], Callable[[], None]]]:
    """
    Yield two functions: one freezes a process by its pid, so that not even SIGKILL ends it; one thaws all of them.

    It takes a cgroup v1: in a cgroup v2 a frozen process can be killed.
    """
    group = Path("/sys/fs/cgroup/freezer") / f"agent-runtime-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("needs a writable freezer of cgroup v1")

    def freeze(pid: int) -> None:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
        assert eventually(lambda: (group / "freezer.state").read_text() == "FROZEN\n")

    def thaw() -> None:
        (group / "freezer.state").write_text("THAWED")

    try:
        yield freeze, thaw
    finally:
        thaw()
        assert eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def descriptors() -> int:
    """Count the descriptors this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def run_driver(name: str, *argv: str, kind: Kind = Kind.SCAN, prefix: tuple[str, ...] = (), timeout: float = 60) -> Any:
    """
    Run a program of :data:`DRIVERS` in a process of its own, as a supervisor is; return its last line, decoded.

    For tests that change the state of the whole process, as by becoming a subreaper.
    """
    # Files, not pipes: processes that a failing driver leaves behind may hold a pipe open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        driver = subprocess.Popen(
            [*prefix, sys.executable, "-W", "error", str(DRIVERS / f"{name}.py"), *argv],
            env={**os.environ, "PYTHONPATH": str(ROOT), KIND: kind.value},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        try:
            driver.wait(timeout)
        finally:
            driver.kill()
            driver.wait()
            out.seek(0)
            err.seek(0)
            said, complained = out.read(), err.read()
        assert driver.returncode == 0, f"{driver.returncode}\n{said}\n{complained}"
        return json.loads(said.splitlines()[-1])
