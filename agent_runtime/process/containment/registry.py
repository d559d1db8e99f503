"""The living attempts of this supervisor, their known processes, and zombies without an owner."""

from __future__ import annotations

import os
import secrets
import threading
from itertools import count
from pathlib import Path

from agent_runtime.process.forkserver.server import ForkServer
from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.linux import syscalls as linux
from agent_runtime.process.linux.proc import Identity, Process

MARK_VARIABLE = "AGENT_RUNTIME_ATTEMPT_MARK"
"""In the environment of every child: it identifies leftovers even after ``setsid`` and double forks."""

_START = secrets.token_hex(6)
_numbers = count(1)


def new_mark(data_dir: Path) -> str:
    """
    Return a mark that is unique among all supervisors; a caller may append a suffix.

    It names the data directory and the start of the supervisor, so that the next one recognises leftovers.
    """
    return f"{tag_of(data_dir)}.{_START}.{next(_numbers)}"


def is_of_this_start(mark: str) -> bool:
    """Whether this very process made the mark."""
    return mark.split(".")[1:2] == [_START]


def is_of_an_earlier_start(mark: str, tag: str) -> bool:
    """Whether an earlier supervisor of the data directory with this *tag* made the mark."""
    return mark.startswith(f"{tag}.") and not is_of_this_start(mark)


def tag_of(data_dir: Path) -> str:
    """Return a short name of a data directory, with which every mark for it begins."""
    status = data_dir.stat()  # two containers that share a PID namespace may give two directories the same path
    return f"{status.st_dev:x}-{status.st_ino:x}"


class AttemptProcesses:
    """
    The known processes of one attempt.

    Attributes:
        leader: The CLI's process; None while it is being started, (pid, -1) if it was reaped before it was seen.
        shim: The process that adopts orphans of the attempt; None if there is none, or while it is being started.
        began_ticks: When the attempt began, on the clock of :func:`agent_runtime.process.linux.syscalls.boot_ticks`.
        ending: Whether every process of the attempt may be killed.
        ran_beside_another: Whether another attempt, or a check of the CLI, has run at the same time.
    """

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.began_ticks = linux.boot_ticks() - 1
        self.leader: Identity | None = None
        self.shim: Identity | None = None
        self.ending = False
        self.ran_beside_another = False

    @property
    def may_have_orphans(self) -> bool:
        """Whether orphans of the attempt may be children of this process: no living shim adopts them."""
        return self.shim is None or proc_table.read_living(self.shim) is None


class AttemptRegistry:
    """
    The living attempts of this supervisor: the sweep of one must spare the others.

    Args:
        fork_server: The parent of their shims, which every sweep spares.
    """

    def __init__(self, fork_server: ForkServer) -> None:
        self._fork_server = fork_server
        self._lock = threading.Lock()
        self._attempts: dict[str, AttemptProcesses] = {}
        self._first_ticks: int | None = None
        self.raised_oom_score: int | None = None

    def add(self, mark: str) -> AttemptProcesses:
        """Add an attempt, before its leader is forked, so that the leader is not taken for an orphan."""
        attempt = AttemptProcesses(mark)
        with self._lock:
            if mark in self._attempts:
                raise ValueError("another living attempt has this mark")
            for other in self._attempts.values():
                other.ran_beside_another = attempt.ran_beside_another = True
            self._attempts[mark] = attempt
            if self._first_ticks is None:
                self._first_ticks = attempt.began_ticks
        return attempt

    def remove(self, attempt: AttemptProcesses) -> None:
        """Remove an attempt; its leftovers may be killed from now on."""
        with self._lock:
            if self._attempts.get(attempt.mark) is attempt:
                del self._attempts[attempt.mark]

    def all(self) -> tuple[AttemptProcesses, ...]:
        """Return the living attempts."""
        with self._lock:
            return tuple(self._attempts.values())

    def may_end_unknown(self) -> bool:
        """Whether every attempt that an orphan of unknown owner may belong to is being ended."""
        return all(attempt.ending or not attempt.may_have_orphans for attempt in self.all())

    def is_protected(self, process: Process) -> bool:
        """Whether a process is the fork server or a shim: these belong to no attempt and end by themselves."""
        return process.identity == self._fork_server.identity or any(
            attempt.shim == process.identity for attempt in self.all()
        )

    def comes_from_an_attempt(self, orphan: Process) -> bool:
        """
        Whether an orphan of unknown owner can only come from an attempt.

        Our children's raised OOM score is inherited and never lowered by accident. It distinguishes them from a
        library's own children and, if we are PID 1, from the orphans of `docker exec`.
        """
        if self._first_ticks is None or orphan.started_ticks < self._first_ticks:
            return False
        if self.raised_oom_score is None:
            return os.getpid() != 1
        score = proc_table.read_oom_score(orphan.pid)
        return score is not None and score >= self.raised_oom_score

    def reap(self, zombie: Process) -> None:
        """
        Reap an adopted zombie, but no leader, no child that is being started and no child of a library.

        It uses a pidfd, so that a reused pid is not touched.
        """
        if zombie.session == os.getsid(0):
            return
        for attempt in self.all():
            if attempt.leader == zombie.identity or (
                attempt.leader is None and zombie.started_ticks >= attempt.began_ticks
            ):
                return
        try:
            pidfd = os.pidfd_open(zombie.pid)
        except ProcessLookupError:
            return
        try:
            now = proc_table.read_process(zombie.pid)
            if now is not None and now.dead and now.identity == zombie.identity:
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            pass  # another thread has reaped it
        finally:
            os.close(pidfd)

    def reap_orphans(self) -> None:
        """Reap the zombies among adopted orphans, each by its own pid; never the leader of an attempt."""
        me = proc_table.read_process(os.getpid())
        if me is None or not proc_table.shows_our_pids():
            return
        try:
            for child in proc_table.take_view().children(me):
                if child.dead:
                    self.reap(child)
        except OSError as error:
            if error.errno not in linux.OUT_OF_DESCRIPTORS:
                raise  # the zombies can wait until there are descriptors again


def become_subreaper() -> None:
    """
    Make this process adopt the orphans of the CLI's processes, so that none can leave the tree; once, at start.

    Raises:
        OSError: The kernel does not know the call.
    """
    linux.set_subreaper()
