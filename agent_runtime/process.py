"""
Start the CLI, signal it, and end everything it has started.

The only place that spawns. All of it is called from threads, none of it needs the event loop, and to stop something it
takes neither a fork nor a thread. A process is signalled through a pidfd only.
"""

from __future__ import annotations

import errno
import os
import pwd
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from agent_runtime import containment, linux, proc_table
from agent_runtime.containment import Layer, ScanLayer, SweepReport
from agent_runtime.errors import SpawnFailed
from agent_runtime.leftovers import sweep_leftovers
from agent_runtime.living import (
    EXECUTION_VARIABLE,
    MARK_VARIABLE,
    SPARE,
    become_subreaper,
    living,
    new_mark,
    reap_orphans,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agent_runtime.living import Kin

__all__ = [
    "EXECUTION_VARIABLE",
    "MARK_VARIABLE",
    "Child",
    "Command",
    "Exit",
    "NotSpawned",
    "SpawnReason",
    "SweepReport",
    "become_subreaper",
    "living",
    "new_mark",
    "reap_orphans",
    "spawn",
    "sweep_leftovers",
]

_RAISE_OOM_SCORE_BY = 500


class SpawnReason(Enum):
    """Why a child could not be started; the value is fit to be shown to a caller."""

    NOT_FOUND = "the command was not found"
    NOT_EXECUTABLE = "the command cannot be executed"
    NO_DIRECTORY = "the working directory is missing or cannot be entered"
    TOO_LONG = "an argument or the environment is too long"
    NUL = "an argument or the environment has a NUL byte in it"
    BAD_NAME = "the environment has a name that is empty or has an equals sign in it"
    NO_PROCESSES = "no more processes can be started here for now"
    NO_DESCRIPTORS = "no more files can be opened here for now"
    NO_MEMORY = "there is not enough memory"
    UNKNOWN_USER = "the user to run it as is unknown"
    NOT_PERMITTED = "it is not permitted to run it as that user"
    OTHER = "the operating system refused"


class NotSpawned(SpawnFailed):
    """The operating system would not start the CLI, for one of the known reasons."""

    def __init__(self, reason: SpawnReason, detail: str | None = None) -> None:
        super().__init__(f"cannot start the CLI: {reason.value}" + (f" ({detail})" if detail else ""))
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Command:
    """
    What to start.

    Attributes:
        env: The whole environment; the mark is added to it as ``AGENT_RUNTIME_ATTEMPT_MARK``.
        user: Name or number of the user to run as; None: as we do.
        mark: As :func:`new_mark` returns it, of this attempt alone; every descendant inherits it.
    """

    argv: tuple[str, ...] = field(repr=False)
    env: Mapping[str, str] = field(repr=False)
    cwd: Path
    mark: str
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """
    How the leader ended.

    Attributes:
        code: As :attr:`subprocess.Popen.returncode`; negative: killed by that signal; None: somebody else reaped it.
    """

    code: int | None


class Child:
    """
    A running CLI and all it starts. Made by :func:`spawn` only.

    Every method may be called from any thread, at any time, any number of times; after :meth:`close` they do nothing.

    Attributes:
        started_at: Seconds since the epoch.
        pidfd: Readable as soon as the leader has ended.
        stdin: Raw, non-blocking, as the other two; the caller may close it through :meth:`close_stdin` only.
    """

    def __init__(self, pid: int, pidfd: int, pipes: tuple[int, int, int], kin: Kin, *, lost: bool) -> None:
        self.pid = pid
        self.started_at = time.time()
        self.pidfd = pidfd
        self.stdin, self.stdout, self.stderr = pipes
        self._kin = kin
        self._layers: tuple[Layer, ...] = (ScanLayer(kin),)
        self._lock = threading.Lock()
        self._open: set[int] = {pidfd, *pipes}
        self._exit: Exit | None = Exit(None) if lost else None

    def __repr__(self) -> str:
        state = "running" if self._exit is None else f"exit {self._exit.code}"
        return f"<Child {self.pid} {state}{'' if self._open else ', closed'}>"

    @property
    def mark(self) -> str:
        """The value that every descendant carries in its environment."""
        return self._kin.mark

    @property
    def exited(self) -> bool:
        """Whether the leader has ended and been reaped; see :meth:`poll`."""
        return self.poll() is not None

    def interrupt(self) -> bool:
        """
        Ask the leader to end: SIGINT, and SIGCONT in case it is stopped. Its descendants get nothing.

        Returns whether it was still there.
        """
        return self._send(signal.SIGINT, signal.SIGCONT)

    def remember_descendants(self) -> None:
        """Note the processes below the leader, to know them again once their parents are gone."""
        if not self._open:
            return
        self.poll()
        for layer in self._layers:
            layer.remember()

    def kill(self) -> None:
        """Kill the leader and everything that can be found of it now; :meth:`sweep` makes sure of the rest."""
        if not self._open:
            return
        self._kin.ending = True
        self.poll()
        for layer in self._layers:
            layer.strike(thorough=False)
        self._send(signal.SIGKILL, group=True)

    def sweep(self, deadline: float) -> SweepReport:
        """
        Kill what is left of the attempt, until two looks in a row find nothing.

        Args:
            deadline: When to give up, on the monotonic clock.
        """
        if not self._open:
            return SweepReport(killed=0, survivors=0, unowned=0, seconds=0.0)
        self._kin.ending = True
        self.poll()
        return containment.sweep(self._layers, deadline)

    def poll(self) -> Exit | None:
        """Reap the leader if it has ended; None as long as it lives."""
        with self._lock:
            if self._exit is None and self.pidfd in self._open:
                before_ticks = linux.boot_ticks()
                self._exit = _reap(self.pidfd)
                if self._exit is not None:
                    self._kin.leader_was_reaped(before_ticks if self._exit.code is not None else None)
            return self._exit

    def close_stdin(self) -> None:
        """Close our end of the child's stdin, so that it reads an end of file."""
        with self._lock:
            self._close(self.stdin)

    def close(self) -> None:
        """Close all descriptors and count the attempt as ended; what it left behind has no owner from now on."""
        self.poll()
        with self._lock:
            for descriptor in tuple(self._open):
                self._close(descriptor)
        living.leave(self._kin)

    def _send(self, *numbers: int, group: bool = False) -> bool:
        with self._lock:  # a closed descriptor's number may already mean another attempt's child
            if self.pidfd not in self._open or self._exit is not None:
                return False
            if group:
                for number in numbers:
                    linux.send_to_group(self.pidfd, number)
            if linux.has_ended(self.pidfd):
                return False
            return all(linux.send(self.pidfd, number) for number in numbers)

    def _close(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.remove(descriptor)
            os.close(descriptor)


def spawn(command: Command) -> Child:
    """
    Start a child in a session of its own, with pipes for stdin, stdout and stderr.

    Raises:
        NotSpawned: It could not be started; nothing is left open or running.
    """
    kin = living.enter(command.mark)
    try:
        return _spawn(command, kin)
    except BaseException:
        living.leave(kin)
        raise


def _spawn(command: Command, kin: Kin) -> Child:
    ours: list[int] = []
    theirs: list[int] = []
    try:
        try:
            for our_end in (1, 0, 0):
                pair = os.pipe()
                ours.append(pair[our_end])
                theirs.append(pair[1 - our_end])
            for descriptor in ours:
                os.set_blocking(descriptor, False)
            pid = _start(command, theirs)
        except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
            raise NotSpawned(*_reason(error, command)) from None
        finally:
            while theirs:
                os.close(theirs.pop())
        try:
            pidfd, lost = _open_child(pid)
            ours.append(pidfd)
            leader = proc_table.read_process(pid)
        except OSError:
            _abandon(pid, ours)
            raise NotSpawned(SpawnReason.NO_DESCRIPTORS) from None
    except BaseException:
        while ours:
            os.close(ours.pop())
        raise
    if not lost and leader is not None and leader.parent == os.getpid() and leader.session == pid:
        kin.took(leader)
        score = linux.raise_oom_score(pid, pidfd, _RAISE_OOM_SCORE_BY)
        living.raised_oom_score = score if score is not None else living.raised_oom_score
    else:
        kin.lost_its_leader(pid)
    return Child(pid, pidfd, (ours[0], ours[1], ours[2]), kin, lost=lost)


def _start(command: Command, pipes: list[int]) -> int:
    identity = _resolve(command.user) if command.user is not None else None
    env = {**command.env, MARK_VARIABLE: command.mark}
    with linux.no_signal_blocked():
        process = subprocess.Popen(
            command.argv,
            stdin=pipes[0],
            stdout=pipes[1],
            stderr=pipes[2],
            cwd=command.cwd,
            env=env,
            close_fds=True,
            start_new_session=True,
            user=identity.uid if identity else None,
            group=identity.gid if identity else None,
            extra_groups=identity.groups if identity else None,
        )
    # We reap it through its pidfd: the object must never wait for a pid that may be somebody else's by then.
    process.returncode = 0
    return process.pid


@dataclass(frozen=True, slots=True)
class _Identity:
    uid: int
    gid: int
    groups: list[int]


def _resolve(user: str) -> _Identity | None:
    """Return whom to become; None: we are that user already."""
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        if not user.isdecimal():
            raise NotSpawned(SpawnReason.UNKNOWN_USER) from None
        identity = _Identity(int(user), int(user), [])  # a number needs no name; never the group of root
    else:
        identity = _Identity(entry.pw_uid, entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid))
    return None if identity.uid == os.geteuid() else identity


def _open_child(pid: int) -> tuple[int, bool]:
    """
    Return a descriptor that is readable once the child has ended, and whether the child was lost.

    Lost: a library that waits for any child has reaped it already.
    """
    try:
        return os.pidfd_open(pid), False
    except ProcessLookupError:
        return os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK), True


def _abandon(pid: int, pipes: list[int]) -> None:
    """Kill and reap a child for which no descriptor was left, with those its pipes have held."""
    while pipes:
        os.close(pipes.pop())
    try:
        with SPARE.lent():
            pidfd = os.pidfd_open(pid)
    except OSError:
        return  # gone; or the next sweep ends it, as its mark is of an attempt that is not alive
    try:
        linux.send_to_group(pidfd, signal.SIGKILL)
        linux.send(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        pass  # somebody else has reaped it
    finally:
        os.close(pidfd)


def _reap(pidfd: int) -> Exit | None:
    try:
        status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return Exit(None)
    if status is None:
        return None
    return Exit(status.si_status if status.si_code == os.CLD_EXITED else -status.si_status)


_REASONS = {
    errno.ENOEXEC: SpawnReason.NOT_EXECUTABLE,
    errno.EACCES: SpawnReason.NOT_EXECUTABLE,
    errno.EISDIR: SpawnReason.NOT_EXECUTABLE,
    errno.ELIBBAD: SpawnReason.NOT_EXECUTABLE,
    errno.ETXTBSY: SpawnReason.NOT_EXECUTABLE,
    errno.ELOOP: SpawnReason.NOT_EXECUTABLE,
    errno.ENOENT: SpawnReason.NOT_FOUND,
    errno.ENOTDIR: SpawnReason.NOT_FOUND,
    errno.E2BIG: SpawnReason.TOO_LONG,
    errno.ENAMETOOLONG: SpawnReason.TOO_LONG,
    errno.EAGAIN: SpawnReason.NO_PROCESSES,
    errno.EMFILE: SpawnReason.NO_DESCRIPTORS,
    errno.ENFILE: SpawnReason.NO_DESCRIPTORS,
    errno.ENOMEM: SpawnReason.NO_MEMORY,
    errno.EPERM: SpawnReason.NOT_PERMITTED,
}


def _reason(error: Exception, command: Command) -> tuple[SpawnReason, str | None]:
    """Say in our own words why it failed: the system's would show paths and arguments."""
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in {errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}:
            entered = command.cwd.is_dir() and os.access(command.cwd, os.X_OK)
            if not entered or error.filename == command.cwd:
                return SpawnReason.NO_DIRECTORY, None
            if error.errno == errno.ENOENT and "/" in command.argv[0] and (command.cwd / command.argv[0]).is_file():
                return SpawnReason.NOT_EXECUTABLE, "its interpreter is missing"
        return _REASONS.get(error.errno, SpawnReason.OTHER), errno.errorcode.get(error.errno)
    if "null byte" in str(error):
        return SpawnReason.NUL, None
    if "environment variable name" in str(error):
        return SpawnReason.BAD_NAME, None
    return SpawnReason.OTHER, type(error).__name__
