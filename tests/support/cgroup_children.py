"""Processes in cgroups, and other helpers for tests of cgroups."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agent_runtime.process.linux.cgroup import Group, below
from tests.support.families import PATIENCE_SECONDS, eventually, program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_runtime.process.linux.cgroup_setup import CgroupSupport

NOBODY = 65534

_JOIN = """
import os, resource, sys
os.write(int(sys.argv.pop(1)), b"0")
user, most = int(sys.argv.pop(1)), int(sys.argv.pop(1))
if most:
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
os.setsid()
"""
"""Program that joins a cgroup, as a shim's child does before it becomes the CLI."""

NESTED = program("nested.py")
"""Program that makes cgroups below its own, with a process in each."""


class Member:
    """A program that is in a cgroup from before its first instruction."""

    def __init__(self, group: Group, program: str, *argv: str, user: int = 0, most: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", _JOIN + program, str(group.procs), str(user), str(most), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            pass_fds=(group.procs,),
        )
        self.pid = self.process.pid
        assert self.process.stdin
        assert self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def go(self) -> None:
        """Write the line on stdin that the program waits for."""
        os.write(self.stdin.fileno(), b"go\n")

    def lines(self, count: int) -> list[str]:
        """Wait for *count* lines on its stdout."""
        data, deadline = b"", time.monotonic() + PATIENCE_SECONDS
        while data.count(b"\n") < count:
            remaining = deadline - time.monotonic()
            assert remaining > 0, data
            assert select.select([self.stdout], [], [], remaining)[0], data
            chunk = os.read(self.stdout.fileno(), 65536)
            assert chunk, f"ended after {data!r}"
            data += chunk
        return data.decode().split()

    def end(self) -> int:
        """Wait until the program has been ended by other code; return its exit code."""
        try:
            return self.process.wait(PATIENCE_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            self.stdin.close()
            self.stdout.close()


@contextlib.contextmanager
def decoy(environ: dict[str, str] | None = None, **how: bool) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that belongs to no attempt; the block fails if it ends early."""
    process = subprocess.Popen(["sleep", "600"], env={**os.environ, **(environ or {})}, **how)  # type: ignore[call-overload] # flags of Popen
    try:
        yield process
        assert process.poll() is None, "somebody has ended a process that is none of theirs"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def own_cgroup(finding: CgroupSupport, *controllers: str) -> Iterator[Path]:
    """
    Make a cgroup for a driver, like the one that a container gets.

    It holds no process and has all *controllers*; where that is not possible, the test is skipped.
    """
    assert finding.base is not None
    above = finding.base
    while controllers and (above.parent / "cgroup.procs").exists():
        above = above.parent
    handed_down = (above / "cgroup.subtree_control").read_text().split()
    if missing := [name for name in controllers if name not in handed_down]:
        import pytest  # here, because drivers import this module too, and start faster without pytest

        pytest.skip(f"no cgroup with {' and '.join(missing)} can be made here; tests/machine/run has some")
    directory = above / f"agent-runtime-test.{secrets.token_hex(4)}"
    directory.mkdir()
    try:
        yield directory
    finally:
        erase(directory)


def erase(directory: Path) -> None:
    """Kill all processes in a cgroup and remove it; where the kernel can kill them, without the code under test."""
    if not directory.exists():
        return
    if (directory / "cgroup.kill").exists():
        (directory / "cgroup.kill").write_text("1")
    else:
        Group(directory).kill()
    assert eventually(lambda: "populated 0" in (directory / "cgroup.events").read_text())
    for group in (*map(Path, reversed(list(below(directory)))), directory):
        assert eventually(functools.partial(_removed, group))


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


def inside(directory: Path) -> tuple[str, ...]:
    """Return the words to put before a command so that it runs in the cgroup."""
    return ("/bin/sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(directory))


def become_nobody() -> None:
    """Give up all rights of root, to be like a process in a container without root."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def delegate(directory: Path, *names: str) -> None:
    """Give a cgroup's directory and *names* of its files to the user ``nobody``, as systemd does with ``Delegate=``."""
    os.chown(directory, NOBODY, NOBODY)
    for name in names:
        os.chown(directory / name, NOBODY, NOBODY)
