"""The attempts that are alive under this supervisor, what is known of each, and the zombies that are nobody's."""

from __future__ import annotations

import os
import secrets
import threading
from itertools import count
from typing import TYPE_CHECKING

from agent_runtime.process.forkserver.server import fork_server
from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.linux import syscalls as linux

if TYPE_CHECKING:
    from pathlib import Path

    from agent_runtime.process.linux.proc import Identity, Process

EXECUTION_VARIABLE = "AGENT_RUNTIME_EXECUTION_ID"
MARK_VARIABLE = "AGENT_RUNTIME_ATTEMPT_MARK"
"""In the environment of every child: by it leftovers are known after ``setsid`` and double forks."""

_START = secrets.token_hex(6)
_numbers = count(1)
SPARE = linux.Spare(3)


def new_mark(data_dir: Path) -> str:
    """
    Return a mark that nobody else has, this supervisor or another; a caller may append a suffix of its own.

    It tells the data directory and the start of the supervisor, so that the next one knows what was left to it.
    """
    return f"{tag_of(data_dir)}.{_START}.{next(_numbers)}"


def is_of_this_start(mark: str) -> bool:
    """Tell whether this very process made the mark."""
    return mark.split(".")[1:2] == [_START]


def is_of_an_earlier_start(mark: str, data_dir: Path) -> bool:
    """Tell whether an earlier supervisor of this data directory made the mark."""
    return mark.startswith(f"{tag_of(data_dir)}.") and not is_of_this_start(mark)


def tag_of(data_dir: Path) -> str:
    """Name a data directory in few characters; every mark made for it begins so."""
    status = data_dir.stat()  # two containers that share a PID namespace may give two directories the same path
    return f"{status.st_dev:x}-{status.st_ino:x}"


class AttemptProcesses:
    """
    What is known of one attempt's processes.

    Attributes:
        leader: The CLI's process; None while it is being started, (pid, -1) where it was reaped before it was seen.
        shim: The process to which orphans of the attempt go; None where there is none, or while it is being started.
        ending: Everything that belongs to the attempt may be killed.
        remembered: Processes seen under the attempt that lived at the last look.
    """

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.began_ticks = linux.boot_ticks() - 1
        self.leader: Identity | None = None
        self.shim: Identity | None = None
        self.ending = False
        self.remembered: frozenset[Identity] = frozenset()


class AttemptRegistry:
    """The attempts that have not ended, under this supervisor: who must be spared when one of them is swept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attempt: dict[str, AttemptProcesses] = {}
        self._first_ticks: int | None = None
        self.raised_oom_score: int | None = None

    def enter(self, mark: str) -> AttemptProcesses:
        """Count an attempt as living; before its leader is forked, so that nobody takes the leader for an orphan."""
        attempt = AttemptProcesses(mark)
        SPARE.fill()
        with self._lock:
            if mark in self._attempt:
                raise ValueError("another living attempt has this mark")
            self._attempt[mark] = attempt
            if self._first_ticks is None:
                self._first_ticks = attempt.began_ticks
        return attempt

    def leave(self, attempt: AttemptProcesses) -> None:
        """Count an attempt as ended; what it left is fair game from now on."""
        with self._lock:
            if self._attempt.get(attempt.mark) is attempt:
                del self._attempt[attempt.mark]

    def all(self) -> tuple[AttemptProcesses, ...]:
        """Return the living attempts."""
        with self._lock:
            return tuple(self._attempt.values())

    def is_quiet(self) -> bool:
        """Tell whether every living attempt is being ended, so that an orphan of unknown owner has no right to live."""
        return all(attempt.ending for attempt in self.all())

    def is_protected(self, process: Process) -> bool:
        """Tell whether a process is one of those that keep attempts: they are nobody's, and end by themselves."""
        return process.identity == fork_server.identity or any(
            attempt.shim == process.identity for attempt in self.all()
        )

    def may_be_ours(self, orphan: Process) -> bool:
        """
        Tell whether an orphan of unknown owner can only come from an attempt.

        Our children's raised score is inherited, and shed by nobody by accident: it tells them from a library's own
        children, and, where we are PID 1, from the orphans of `docker exec`.
        """
        if self._first_ticks is None or orphan.started_ticks < self._first_ticks:
            return False
        if self.raised_oom_score is None:
            return os.getpid() != 1
        score = proc_table.read_oom_score(orphan.pid)
        return score is not None and score >= self.raised_oom_score

    def reap(self, zombie: Process) -> None:
        """
        Reap an adopted zombie, and only that: never a leader, a child being started, or a child of a library.

        Through a pidfd, so that a pid that was given away in the meantime is not touched.
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
            pass  # another thread was faster
        finally:
            os.close(pidfd)


attempt_registry = AttemptRegistry()


def become_subreaper() -> None:
    """
    Make orphans of the CLI's processes our children, so that none can leave the tree; once, at start.

    Raises:
        OSError: The kernel does not know the call.
    """
    SPARE.fill()
    linux.set_subreaper()


def reap_orphans() -> None:
    """Reap the zombies among the orphans given to us, each by its own pid; never a leader that an attempt owns."""
    me = proc_table.read_process(os.getpid())
    if me is None or not proc_table.shows_our_pids():
        return
    try:
        for child in proc_table.look().children(me):
            if child.dead:
                attempt_registry.reap(child)
    except OSError as error:
        if error.errno not in linux.OUT_OF_DESCRIPTORS:
            raise  # else: they can wait until there are descriptors again
