"""Calls of the Linux kernel that the standard library lacks, or that need care."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import select
import signal
import time
from collections.abc import Iterator

PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
PIDFD_SIGNAL_PROCESS_GROUP = 4
"""
Send to the whole process group whose leader the pidfd names, also when the leader itself is gone.

Source: https://man7.org/linux/man-pages/man2/pidfd_send_signal.2.html (Linux 6.9; before that EINVAL)
"""

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
_MAPPED_BYTES = 2 * 1024 * 1024
"""A line of one megabyte is below this: to map its pages anew takes a third of the time in which it is processed."""

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_MOST_FILES = 65_536
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

_libc = ctypes.CDLL(None, use_errno=True)


def set_subreaper() -> None:
    """
    Make orphans of this process's descendants its own children.

    Raises:
        OSError: The kernel does not know the call.
    """
    if _prctl(PR_SET_CHILD_SUBREAPER, 1) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def make_undumpable() -> None:
    """Forbid other processes of our user to read our memory and environment, for good; we leave no core dump."""
    _prctl(PR_SET_DUMPABLE, 0)


def save_memory() -> None:
    """
    Make glibc use one heap for all threads, and return large blocks to the kernel when they are freed, for good.

    By default each thread has a heap, whose free memory no other thread can use. And freeing a large block raises the
    size from which blocks are mapped separately, up to 32 MiB; smaller blocks stay in the heap when they are freed.
    Call it before there are threads. With another C library this function does nothing.

    Source: https://man7.org/linux/man-pages/man3/mallopt.3.html (M_ARENA_MAX, M_MMAP_THRESHOLD)
    """
    with contextlib.suppress(AttributeError):
        for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, _MAPPED_BYTES)):
            _libc.mallopt(ctypes.c_int(parameter), ctypes.c_int(value))


def give_back_free_heap() -> None:
    """
    Return the free pages in glibc's heaps to the kernel now; takes about a millisecond.

    With another C library this function does nothing.

    Source: https://man7.org/linux/man-pages/man3/malloc_trim.3.html
    """
    with contextlib.suppress(AttributeError):
        _libc.malloc_trim(ctypes.c_size_t(0))


def _prctl(option: int, value: int) -> int:
    unused = ctypes.c_ulong(0)
    return int(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), unused, unused, unused))


def boot_ticks() -> int:
    """Return the present time on the clock of the start times in ``/proc/PID/stat``."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS_PER_SECOND)


def has_ended(pidfd: int) -> bool:
    """Whether the process and all its threads are dead, reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def has_dead_children() -> bool:
    """Whether a child of this process, its own or adopted, has ended and not been reaped; reaps none."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def send(pidfd: int, number: int) -> bool:
    """
    Send a signal to the process of *pidfd*, even if its pid was reused; False if that process is gone.

    Raises:
        PermissionError: The process runs as a user that we may not signal.
    """
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def send_to_group(pidfd: int, number: int) -> bool:
    """
    Send a signal to the process group of the leader *pidfd*, in one step that no fork can outrun.

    Returns False if there is no such group, or the kernel cannot do it.
    """
    try:
        signal.pidfd_send_signal(pidfd, number, None, PIDFD_SIGNAL_PROCESS_GROUP)
    except (ProcessLookupError, PermissionError):
        return False
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


@contextlib.contextmanager
def no_signal_blocked() -> Iterator[None]:
    """Unblock all signals while the block runs, so that a child that is started in it can be interrupted."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def raise_file_limit() -> int | None:
    """Raise this process's limit of open files as far as allowed; return the former limit if it was lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(hard, _MOST_FILES) if hard != resource.RLIM_INFINITY else _MOST_FILES
    if most <= soft:
        return None
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return soft


@contextlib.contextmanager
def urgent() -> Iterator[None]:
    """
    Give the calling thread real-time priority while the block runs, if that is allowed.

    With normal priority, a thread among a thousand spinning processes gets its next turn a second later.

    Source: https://man7.org/linux/man-pages/man7/sched.7.html (CAP_SYS_NICE, or RLIMIT_RTPRIO)
    """
    before = os.sched_getscheduler(0)
    parameter = os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        try:
            os.sched_setscheduler(0, before, parameter)
        except PermissionError:  # RLIMIT_RTPRIO lets us set this flag, but only a privilege lets us clear it
            os.sched_setscheduler(0, before | os.SCHED_RESET_ON_FORK, parameter)


def raised_oom_score(by: int) -> int | None:
    """
    Return the ``oom_score_adj`` for children: our own plus *by*, so that the kernel kills them first.

    None: our own is the highest already, or unknown.
    """
    try:
        with open("/proc/self/oom_score_adj", "rb", 0) as file:  # noqa: PTH123 - read at every spawn
            own = int(file.read())
    except (OSError, ValueError):
        return None
    return min(1000, own + by) if own < 1000 else None
