"""
A shim: the small process between the supervisor and one attempt's leader, which adopts the leader's orphans.

It is a subreaper: descendants stay below it even after double forks and ``setsid``, so everything below it belongs to
its attempt. It reaps, reports how the leader ended, and ends the remaining processes when its supervisor is gone. So
nothing outlives a supervisor that was killed.

This module is a program. The *fork server*, one for each supervisor, forks a shim for each request of ``server``. It
imports little, because each shim copies the memory that it changes, and it is single-threaded, so that it may fork. A
process that may signal a shim can end it; the supervisor then adopts its orphans.

The protocol on a shim's own socket, a stream:

1. The :data:`SpawnRequest`, marshalled, behind 4 bytes of length. With the length come, as ancillary data, the leader's
   three pipes, its working directory, for a leader under Landlock its ruleset and, for a leader in a cgroup, the
   cgroup's ``cgroup.procs`` and its directory.
2. From the shim one :data:`STARTED` with its own pidfd, the leader's, and a pipe; or one :data:`FAILED`.
3. Later one :data:`ENDED`.

Every message of the shim has :data:`MESSAGE_BYTES`. The pipe closes when the program is executed; if it cannot be
executed, the pipe carries the rest of a :data:`FAILED`.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import marshal
import os
import resource
import select

# The modules below `signal` and `socket`, which would make every shim heavier by their enums; and no `typing`.
from _signal import (  # type: ignore[import-not-found]  # typeshed has none
    SIG_BLOCK,
    SIG_DFL,
    SIG_IGN,
    SIG_UNBLOCK,
    pthread_sigmask,
    set_wakeup_fd,
    signal,
    valid_signals,
)
from _socket import MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOL_SOCKET, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

Identity = tuple[int, int, list[int]] | None
"""User, group and further groups of the leader; None: those of the shim."""

SpawnRequest = tuple[list[bytes], dict[bytes, bytes], Identity, int | None, int | None, int]
"""Arguments, environment, identity, ``oom_score_adj``, how many files may be open, and how it is restricted."""

UNRESTRICTED, RESTRICTED, LANDLOCKED = range(3)
"""How a leader is restricted: not at all; it gains no privileges and leaves no core dump; it also has a ruleset."""

STARTED, FAILED, ENDED = b"s", b"f", b"e"
"""Kinds of messages. Two numbers follow: pids of shim and leader; step that failed and errno; wait status and 0."""

FORKING, JOINING_CGROUP, CHANGING_USER, ENTERING_DIRECTORY, EXECUTING, CONFINING = range(6)
"""The step at which a start failed: fork, cgroup, user, working directory, program, ruleset."""

FORK_SERVER_NAME, SHIM_NAME = b"agent-forks", b"agent-shim"
"""The names in lists of processes."""

MESSAGE_BYTES = 9
MOST_DESCRIPTORS = 8

_SIGHUP, _SIGINT, _SIGKILL, _SIGPIPE, _SIGTERM, _SIGCHLD, _SIGCONT, _SIGSTOP = 1, 2, 9, 13, 15, 17, 18, 19
_IGNORED_BY_SHIM = (_SIGHUP, _SIGINT, _SIGTERM)
_PR_SET_NAME, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 15, 24, 36, 38
_DROPPED_CAPABILITIES = (13, 19, 21, 38)
"""CAP_NET_RAW, SYS_PTRACE, and SYS_ADMIN and PERFMON, with which root reads an environment past Landlock (6.18)."""

_CLONE_INTO_CGROUP = 0x200000000
_SYS_CLONE3, _SYS_LANDLOCK_RESTRICT_SELF = 435, 446  # the same on every architecture that has had the calls
_NICER = 10
_GRACE_MILLISECONDS = 500
_LOOK_AGAIN_MILLISECONDS = 2
_LOOK_AGAIN_AT_MOST_MILLISECONDS = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc_with_gil = ctypes.PyDLL(None)
_libc_with_gil.syscall.restype = ctypes.c_long
_libc_with_gil.syscall.argtypes = (ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t)


def fork_server(descriptor: int, guard: int | None = None) -> None:
    """
    Fork a shim for every message on *descriptor*, until that is closed.

    This process and its shims hold the locked *guard* open: the next supervisor waits for the lock, and then nothing of
    this one can start any more.

    A message is one datagram: a meaningless byte, and as ancillary data the shim's socket.
    """
    requests = socket(fileno=descriptor)
    if guard is not None:
        os.set_inheritable(guard, False)
    _libc.prctl(_PR_SET_NAME, FORK_SERVER_NAME, 0, 0, 0)
    for number in valid_signals():
        if number not in (_SIGKILL, _SIGSTOP, _SIGPIPE):
            signal(number, SIG_DFL)  # leaders must not ignore what the supervisor ignores
    signal(_SIGCHLD, SIG_IGN)  # the kernel reaps our children
    gc.disable()
    gc.freeze()  # objects that are never touched are never copied
    while True:
        message, ancillary, _, _ = requests.recvmsg(16, MOST_DESCRIPTORS * 8 + 64, MSG_CMSG_CLOEXEC)
        if not message:
            return
        descriptors = _descriptors(ancillary)
        if descriptors:
            _fork_shim(descriptors[0], requests)
        for one in descriptors:
            os.close(one)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            found += [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data) - 3, 4)]
    return found


def _fork_shim(line: int, requests: socket) -> None:
    """Fork a shim; it outlives this process, and the supervisor adopts it."""
    try:
        if os.fork():
            return
    except OSError as error:
        _fail(line, FORKING, error)
        return
    try:
        requests.close()
        Shim(line).run()
    except OSError as error:
        _fail(line, FORKING, error)
    finally:
        os._exit(0)


class Shim:
    """Starts a leader, reports its end, reaps orphans, and ends the rest when the supervisor is gone."""

    def __init__(self, line: int) -> None:
        os.setsid()
        _libc.prctl(_PR_SET_NAME, SHIM_NAME, 0, 0, 0)
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._urgent = _raise_priority()
        for number in _IGNORED_BY_SHIM:
            signal(number, SIG_IGN)  # a signal to the whole tree is not meant for its shim
        self._line = line
        self._leader = 0
        self._woken, wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(wake, False)
        set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal(_SIGCHLD, lambda _number, _frame: None)
        self._poll = select.poll()
        self._poll.register(self._woken, select.POLLIN)

    def run(self) -> None:
        """Serve the spawn request that comes on the line."""
        line = socket(fileno=self._line)
        try:
            self._start(*_spawn_request(line), line)
        except OSError as error:
            _fail(self._line, FORKING, error)
        else:
            self._poll.register(self._line, select.POLLIN)
            self._reap()
            while all(descriptor == self._woken for descriptor, _ in self._poll.poll()):
                if not self._leader:
                    self._pause()
                os.read(self._woken, 4096)
                self._reap()
            self._poll.unregister(self._line)
        self._end_all()

    def _start(self, spawn_request: SpawnRequest, descriptors: list[int], line: socket) -> None:
        report, theirs = os.pipe()
        ruleset = descriptors.pop(4) if spawn_request[5] == LANDLOCKED else None
        self._leader = _fork_into(descriptors[5]) if len(descriptors) > 5 else -1
        is_in_place = self._leader >= 0
        if not is_in_place:
            self._leader = os.fork()
        if self._leader == 0:
            if is_in_place:
                del descriptors[4:]
            # Our own real-time priority resets a child's niceness. Without it children give way, so that the processes
            # that end them always get CPU time.
            os.nice(max(0, self._nice) if self._urgent else _NICER)
            _run_leader(spawn_request, descriptors, theirs, ruleset)
        os.close(theirs)
        if ruleset is not None:
            os.close(ruleset)
        while descriptors:
            os.close(descriptors.pop())
        answer = (os.pidfd_open(os.getpid()), os.pidfd_open(self._leader), report)
        rights = b"".join(one.to_bytes(4, "little") for one in answer)
        line.sendmsg([_message(STARTED, os.getpid(), self._leader)], [(SOL_SOCKET, SCM_RIGHTS, rights)])
        for one in answer:
            os.close(one)

    def _pause(self) -> None:
        """Wait a moment, so that dying processes get CPU time; return at once if the supervisor is gone."""
        pthread_sigmask(SIG_BLOCK, (_SIGCHLD,))
        poll = select.poll()
        poll.register(self._line, 0)
        poll.poll(_LOOK_AGAIN_MILLISECONDS)
        pthread_sigmask(SIG_UNBLOCK, (_SIGCHLD,))

    def _reap(self) -> bool:
        """Reap ended children, and report the leader's end; return whether there are children left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._leader:
                self._leader = 0
                _send(self._line, _message(ENDED, status, 0))

    def _end_all(self) -> None:
        """
        End the remaining processes, the leader by SIGINT first.

        Only children are killed, no grandchildren: a child's pid cannot be reused, because only this process reaps it.
        """
        if self._leader:
            _kill(self._leader, _SIGINT)
            _kill(self._leader, _SIGCONT)
            for _ in range(_GRACE_MILLISECONDS // _LOOK_AGAIN_MILLISECONDS):
                if not self._reap() or not self._leader:
                    break
                self._wait()
        pause = _LOOK_AGAIN_MILLISECONDS
        while self._reap():
            for pid in _children():
                _kill(pid, _SIGKILL)
            # Back off: a process in uninterruptible sleep must not make us spin.
            something_ended = self._wait(pause)
            pause = _LOOK_AGAIN_MILLISECONDS if something_ended else min(2 * pause, _LOOK_AGAIN_AT_MOST_MILLISECONDS)

    def _wait(self, milliseconds: int = _LOOK_AGAIN_MILLISECONDS) -> bool:
        """Wait until a child has ended, at most for this time; return whether one has."""
        ended = bool(self._poll.poll(milliseconds))
        if ended:
            os.read(self._woken, 4096)
        return ended


def _spawn_request(line: socket) -> tuple[SpawnRequest, list[int]]:
    """Read the request and its descriptors; exit if the supervisor is gone."""
    length, ancillary, _, _ = line.recvmsg(4, MOST_DESCRIPTORS * 8 + 64, MSG_CMSG_CLOEXEC)
    wanted, data = int.from_bytes(length, "little"), bytearray()
    while len(data) < wanted:
        chunk = line.recv(min(wanted - len(data), 1 << 20))
        if not chunk:
            break
        data += chunk
    descriptors = _descriptors(ancillary)
    if len(descriptors) < 4 or len(data) < wanted:
        os._exit(0)
    spawn_request: SpawnRequest = marshal.loads(data)  # noqa: S302 - it comes from our own supervisor
    return spawn_request, descriptors


def _fork_into(group: int) -> int:
    """
    Fork as :func:`os.fork` does, but into a cgroup; -1 if this kernel, or a filter of its calls, does not allow it.

    To join a group later costs up to 16 ms on an idle machine, because the kernel waits until no processor forks (Linux
    6.18). Python need not know of this fork, because there are no threads and the child soon executes its program.

    Source: https://man7.org/linux/man-pages/man2/clone.2.html (CLONE_INTO_CGROUP, Linux 5.7)
    """
    arguments = (ctypes.c_uint64 * 11)(_CLONE_INTO_CGROUP, 0, 0, 0, _SIGCHLD, 0, 0, 0, 0, 0, group)
    return int(_libc_with_gil.syscall(_SYS_CLONE3, arguments, ctypes.sizeof(arguments)))


def _run_leader(spawn_request: SpawnRequest, descriptors: Sequence[int], report: int, ruleset: int | None) -> NoReturn:
    """Turn into the leader. The execution of the program closes all other descriptors."""
    argv, env, identity, oom_score, most_files, restricted = spawn_request
    step = JOINING_CGROUP
    try:
        os.setsid()
        if len(descriptors) > 4:
            os.write(descriptors[4], b"0")
        if oom_score is not None:
            _write_number("/proc/self/oom_score_adj", oom_score)
        if most_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        for place in range(3):
            os.dup2(descriptors[place], place)  # all of them lie above: 0, 1 and 2 were open when they came
        if restricted:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for capability in _DROPPED_CAPABILITIES:
                _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails without a privilege, and then it has none
        step = CHANGING_USER
        if identity is not None:
            os.setgroups(identity[2])
            os.setregid(identity[1], identity[1])
            os.setreuid(identity[0], identity[0])
        step = ENTERING_DIRECTORY
        os.fchdir(descriptors[3])
        if restricted:
            step = CONFINING
            _confine(ruleset)
        step = EXECUTING
        for number in (*_IGNORED_BY_SHIM, _SIGPIPE):
            signal(number, SIG_DFL)
        _execute(argv, env)
    except OSError as error:
        os.write(report, _message(b"", step, error.errno or errno.EIO))
    finally:
        os._exit(255)


def _confine(ruleset: int | None) -> None:
    """Give up, with all descendants, the privileges of setuid programs, and access that the ruleset does not allow."""
    one, nothing = ctypes.c_ulong(1), ctypes.c_ulong(0)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, one, nothing, nothing, nothing) or (
        ruleset is not None and _libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, ruleset, nothing)
    ):
        raise OSError(ctypes.get_errno(), "")


def _execute(argv: list[bytes], env: dict[bytes, bytes]) -> None:
    if b"/" in argv[0]:
        os.execve(argv[0], argv, env)  # noqa: S606 - no shell is wanted
    problem: OSError = FileNotFoundError(errno.ENOENT, "")
    for directory in env.get(b"PATH", os.fsencode(os.defpath)).split(b":"):
        try:
            os.execve(os.path.join(directory or b".", argv[0]), argv, env)  # noqa: S606, PTH118 - bytes; no shell
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            problem = error
    raise problem


def _write_number(path: str, number: int) -> None:
    """Write a number into a file of the kernel, if it is there and that is allowed."""
    try:
        descriptor = os.open(path, os.O_WRONLY)
        os.write(descriptor, b"%d" % number)
        os.close(descriptor)
    except OSError:
        pass  # the supervisor sees that the score was not raised


def _raise_priority() -> bool:
    """
    Run before the processes below us, however many of them spin; forked processes start with the usual priority.

    Returns False if that is not allowed, for lack of CAP_SYS_NICE.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        return False
    return True


def _children() -> list[int]:
    own = os.getpid()
    try:
        with open(f"/proc/self/task/{own}/children", "rb") as listed:  # noqa: PTH123 - pathlib weighs too much
            return [int(pid) for pid in listed.read().split()]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return [int(name) for name in os.listdir("/proc") if name.isdecimal() and _parent(name) == own]  # noqa: PTH208


def _parent(name: str) -> int | None:
    try:
        with open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123 - pathlib weighs too much
            return int(stat.read().rpartition(b")")[2].split()[1])
    except OSError:
        return None


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass  # gone, or of a user we may not signal


def _fail(descriptor: int, step: int, error: OSError) -> None:
    _send(descriptor, _message(FAILED, step, error.errno or errno.EIO))


def _send(descriptor: int, message: bytes) -> None:
    try:
        os.write(descriptor, message)
    except OSError:
        pass  # the supervisor is gone, and the loop is about to see it


def _message(kind: bytes, first: int, second: int) -> bytes:
    return kind + first.to_bytes(4, "little") + second.to_bytes(4, "little")
