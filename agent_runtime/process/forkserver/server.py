"""The supervisor's side of ``shim``: start the fork server, request shims from it, and listen to them."""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import agent_runtime
from agent_runtime.process.forkserver import shim
from agent_runtime.process.forkserver.shim import SpawnRequest
from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.linux import syscalls as linux
from agent_runtime.process.linux.proc import Identity, Process

_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from agent_runtime.process.forkserver.shim import fork_server; fork_server({}, {})"
)
_ANSWER_SECONDS = 10.0
_STATUS_SECONDS = 1.0
_END_SECONDS = 0.2
_NEEDED_TO_START_PYTHON = ("LD_LIBRARY_PATH", "PYTHONHOME")


class ShimFailed(OSError):
    """
    A shim or its leader could not be started.

    Attributes:
        step: Which one failed, :data:`agent_runtime.process.forkserver.shim.FORKING` or a constant beside it.
    """

    def __init__(self, step: int, code: int) -> None:
        super().__init__(code, os.strerror(code))
        self.step = step


class ShimHandle:
    """
    A shim and its leader, as seen by the supervisor. Made by :meth:`ForkServer.start_leader` only.

    Attributes:
        pid: The leader's pid.
        started_at: When the leader had executed its program, epoch seconds.
        leader: The leader as it was at first; None if it had been reaped by then.
        pidfd: The leader's pidfd; readable as soon as the leader has ended.
    """

    def __init__(self, line: socket.socket, pidfds: tuple[int, int], pids: tuple[int, int]) -> None:
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, line.detach())
        self.started_at = time.time()
        self._shim_pidfd, self.pidfd = pidfds
        shim_pid, self.pid = pids
        seen = proc_table.read_process(shim_pid) if shim_pid else None
        self._shim = seen.identity if seen is not None else None
        self.leader: Process | None = proc_table.read_process(self.pid)
        self._status: int | None = None

    def __repr__(self) -> str:
        return f"<ShimHandle {self._shim} of {self.pid}>"

    @property
    def shim(self) -> Identity | None:
        """Pid and start time of the shim; None once it has ended."""
        return None if self.shim_has_ended else self._shim

    @property
    def shim_has_ended(self) -> bool:
        """Whether the shim has ended."""
        return linux.has_ended(self._shim_pidfd)

    def kill_group(self) -> bool:
        """Kill the leader's process group in one step; False if it is empty, or the kernel cannot do it."""
        return linux.send_to_group(self.pidfd, signal.SIGKILL)

    def status(self) -> int | None:
        """
        Return the wait status of a leader that has ended; None if it is unknown.

        Waits a moment for the shim's message; the shim may have been stopped by a signal.
        """
        if self._status is None:
            linux.send(self._shim_pidfd, signal.SIGCONT)
            with contextlib.suppress(OSError):  # the shim sends nothing
                self._line.settimeout(_STATUS_SECONDS)
                message = self._line.recv(shim.MESSAGE_BYTES, socket.MSG_WAITALL)
                if message[:1] == shim.ENDED:
                    self._status = int.from_bytes(message[1:5], "little")
        if self._status is None:
            # If the shim has ended, this process has adopted its children.
            _wait(self._shim_pidfd, _STATUS_SECONDS)
            with contextlib.suppress(ChildProcessError):
                self._status = _reaped(self.pidfd)
        return self._status

    def release(self) -> None:
        """Have the shim end its remaining processes and itself; how the leader ended can still be read."""
        with contextlib.suppress(OSError):  # the shim has ended
            self._line.shutdown(socket.SHUT_WR)
        linux.send(self._shim_pidfd, signal.SIGCONT)  # in case it was stopped

    def close(self) -> None:
        """Release the shim, and close all descriptors."""
        self.release()
        self._line.close()
        with contextlib.suppress(ChildProcessError):  # while the fork server lives, the kernel reaps the shim for it
            _reaped(self._shim_pidfd)
        os.close(self._shim_pidfd)
        os.close(self.pidfd)


class PendingShim(NamedTuple):
    """
    A shim that has no leader yet. Made by :meth:`ForkServer.fork_shim` only.

    Attributes:
        line: The socket to the shim, which ends if this end is closed; a :class:`ShimHandle` takes it over.
        parent: The fork server that was asked for it.
    """

    line: socket.socket
    parent: _Running


class _Running(NamedTuple):
    """A fork server's process."""

    requests: socket.socket
    pidfd: int


class ForkServer:
    """
    The process that forks shims: unlike the supervisor it is small and single-threaded.

    Attributes:
        identity: Pid and start time of the fork server; None: it has not started, or was gone at once.
        guard: A locked descriptor that every shim holds open; None: nobody waits for the end of the shims.
        most_files: How many files a leader may have open, if this process has raised its own limit.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self.identity: Identity | None = None
        self.guard: int | None = None
        self.most_files: int | None = None

    def __repr__(self) -> str:
        return f"<Fork server {'running' if self._running else 'not started'} {self.identity}>"

    def start(self) -> None:
        """
        Start the fork server, if there is none yet.

        Raises:
            OSError: No process can be started for now.
        """
        with self._lock:
            self._start()

    def close(self) -> None:
        """End the process; its shims continue."""
        with self._lock:
            self._close()

    def fork_shim(self) -> PendingShim:
        """
        Have a shim forked, without waiting for it.

        Raises:
            OSError: Descriptors are lacking, or no fork server can be started.
        """
        line, its_line = socket.socketpair()
        try:
            with self._lock, its_line:
                try:
                    parent = self._send(its_line)
                except ConnectionError:  # the fork server has been killed: ask another one
                    parent = self._send(its_line)
        except BaseException:
            line.close()
            raise
        line.settimeout(_ANSWER_SECONDS)
        return PendingShim(line, parent)

    def start_leader(self, shim: PendingShim, pipes: Sequence[int], spawn_request: SpawnRequest) -> ShimHandle:
        """
        Have a shim start its leader.

        Args:
            pipes: The leader's stdin, stdout and stderr, and its working directory; for a leader under Landlock its
                ruleset; for a leader in a cgroup the cgroup's ``cgroup.procs`` and its directory.

        Raises:
            ShimFailed: The leader could not be started; nothing of it is left.
            OSError: Descriptors are lacking, or the shim does not answer.
        """
        try:
            return _request_leader(shim.line, pipes, spawn_request)
        except BaseException as error:
            shim.line.close()
            with self._lock:
                # The fork server was stopped, and another thread has not replaced it: the next request starts another.
                if isinstance(error, TimeoutError) and self._running is shim.parent:
                    self._close()
            raise

    def _send(self, its_line: socket.socket) -> _Running:
        """Send a request; return the fork server that got it."""
        running = self._start()
        try:
            linux.send(running.pidfd, signal.SIGCONT)  # in case it was stopped
            socket.send_fds(running.requests, [b"."], [its_line.fileno()])
        except (TimeoutError, ConnectionError):  # it has been stopped again, and its queue is full; or it was killed
            self._close()
            raise
        return running

    def _start(self) -> _Running:
        if self._running is not None:
            return self._running
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs, linux.no_signal_blocked():
                process = subprocess.Popen(
                    (
                        *(sys.executable, "-I", "-S", "-c", _PROGRAM.format(theirs.fileno(), self.guard)),
                        str(Path(agent_runtime.__file__).parent.parent),
                    ),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={name: os.environ[name] for name in _NEEDED_TO_START_PYTHON if name in os.environ},
                    cwd="/",
                    pass_fds=(theirs.fileno(),) if self.guard is None else (theirs.fileno(), self.guard),
                    start_new_session=True,
                )
            process.returncode = 0  # it is reaped by pid, as orphans are: the object must not wait for it
            self._running = _Running(ours, os.pidfd_open(process.pid))
        except BaseException:
            ours.close()  # a process that was started ends by itself
            raise
        ours.settimeout(_ANSWER_SECONDS)  # a full queue must not block all threads for ever
        seen = proc_table.read_process(process.pid)
        self.identity = seen.identity if seen is not None else None
        return self._running

    def _close(self) -> None:
        if self._running is not None:
            (requests, pidfd), self._running = self._running, None
            requests.close()
            linux.send(pidfd, signal.SIGKILL)
            _wait(pidfd, _END_SECONDS)
            with contextlib.suppress(ChildProcessError):
                _reaped(pidfd)
            os.close(pidfd)


def _request_leader(line: socket.socket, pipes: Sequence[int], spawn_request: SpawnRequest) -> ShimHandle:
    data = marshal.dumps(spawn_request)
    with contextlib.suppress(ConnectionError):  # the answer, if any, gives the reason
        message = len(data).to_bytes(4, "little") + data
        sent = socket.send_fds(line, [message], pipes)
        line.sendall(message[sent:])
    message, descriptors, flags, _ = socket.recv_fds(line, shim.MESSAGE_BYTES, 3, socket.MSG_CMSG_CLOEXEC)
    kind, first, second = _fields(message)
    try:
        if kind == shim.STARTED:
            if flags & socket.MSG_CTRUNC or len(descriptors) < 3:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            _await_execution(descriptors[2])
            os.close(descriptors.pop())
            return ShimHandle(line, (descriptors[0], descriptors[1]), (first, second))
    except BaseException:
        for leader in descriptors[1:2]:
            linux.send(leader, signal.SIGKILL)  # the shim would send SIGINT first
        for one in descriptors:
            os.close(one)
        raise
    raise ShimFailed(first, second) if kind == shim.FAILED else ShimFailed(shim.FORKING, errno.ECONNRESET)


def _await_execution(report: int) -> None:
    """Wait until the leader has executed its program, which closes the pipe."""
    if not _wait(report, _ANSWER_SECONDS):
        raise TimeoutError
    if failure := os.read(report, shim.MESSAGE_BYTES):
        raise ShimFailed(*_fields(shim.FAILED + failure)[1:])


def _fields(message: bytes) -> tuple[bytes, int, int]:
    return message[:1], int.from_bytes(message[1:5], "little"), int.from_bytes(message[5:9], "little")


def _wait(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _reaped(pidfd: int) -> int | None:
    """Reap a child of this process and return its wait status; None while it lives."""
    found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    if found is None:
        return None
    return found.si_status << 8 if found.si_code == os.CLD_EXITED else found.si_status
