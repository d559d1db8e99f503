"""
The children a scripted CLI can have: each kind is one way to escape a supervisor.

All are forks of the CLI itself, so they start in a millisecond and are seen with its command line; ``empty_env`` alone
is another program. Every one of them ends by itself when its time is over.
"""

from __future__ import annotations

import os
import select
import signal
import time

KINDS = ("plain", "setsid", "double_fork", "empty_env", "tree", "runaway")
STOPPABLE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def spawn(
    kind: str,
    *,
    seconds: float,
    count: int = 0,
    hold_pipes: bool = False,
    ignore_signals: bool = False,
    pid_file: str | None = None,
) -> int:
    """
    Start a child of one of the :data:`KINDS` and return the pid of the process forked first.

    Args:
        kind: One of :data:`KINDS`.
        seconds: When whatever was started ends by itself.
        count: Of a tree: its processes, at most two below each; 0: 6. Of a runaway: how often it may fork; 0: 20 000.
        hold_pipes: Keep the CLI's stdin, stdout and stderr open instead of /dev/null.
        ignore_signals: Take no notice of what can be ignored.
        pid_file: Gets one line with the pid of each process that stays, when it is ready.
    """
    pid = os.fork()
    if pid:
        if kind == "double_fork":
            os.waitpid(pid, 0)
        return pid
    try:
        _become_child(ignore_signals=ignore_signals, hold_pipes=hold_pipes)
        deadline = time.monotonic() + seconds
        match kind:
            case "plain":
                _stay(deadline, pid_file)
            case "setsid":
                os.setsid()
                _stay(deadline, pid_file)
            case "double_fork":
                os.setsid()
                if os.fork() == 0:
                    _stay(deadline, pid_file)
            case "empty_env":
                _tell(pid_file)
                os.execve("/usr/bin/env", ["env", "-i", "setsid", "nohup", "sleep", str(seconds)], {})  # noqa: S606 (no shell wanted)
            case "tree":
                _grow((count or 6) - 1, deadline, pid_file)
            case "runaway":
                _run_away(count or 20_000, deadline, pid_file)
    finally:
        os._exit(0)  # never return into the CLI's own code
    raise AssertionError("unreachable")


def wake_after(seconds: float) -> None:
    """Have a child that continues this process when it has been stopped for *seconds*: no stop lasts for ever."""
    pidfd = os.pidfd_open(os.getpid())
    if os.fork() == 0:
        _become_child(ignore_signals=False, hold_pipes=False)
        if not select.select([pidfd], [], [], seconds)[0]:
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        os._exit(0)
    os.close(pidfd)


def _become_child(*, ignore_signals: bool, hold_pipes: bool) -> None:
    signal.alarm(0)
    for number in STOPPABLE:
        signal.signal(number, signal.SIG_IGN if ignore_signals else signal.SIG_DFL)
    if not hold_pipes:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(null)


def _tell(pid_file: str | None) -> None:
    if pid_file is not None:
        descriptor = os.open(pid_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, b"%d\n" % os.getpid())
        os.close(descriptor)


def _stay(deadline: float, pid_file: str | None) -> None:
    _tell(pid_file)
    time.sleep(max(0.0, deadline - time.monotonic()))


def _grow(below: int, deadline: float, pid_file: str | None) -> None:
    """Have *below* more processes below this one, half of them under each of two children."""
    for share in (below // 2, below - below // 2):
        if share and os.fork() == 0:
            _grow(share - 1, deadline, pid_file)
            os._exit(0)
    _stay(deadline, pid_file)


def _run_away(times: int, deadline: float, pid_file: str | None) -> None:
    """Be a new process in a new session all the time: whoever looks finds one that is about to be gone."""
    _tell(pid_file)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(times):
        if time.monotonic() > deadline or os.fork():
            os._exit(0)
        os.setsid()
    _stay(deadline, None)
