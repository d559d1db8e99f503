"""Read a child's stdout and stderr, and write its stdin; no other module does."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import select
import threading
import time
from collections.abc import Callable

import msgspec

from agent_runtime.evidence.detector import Channel
from agent_runtime.process.child import Child
from agent_runtime.process.framing import MOST_BYTES, LineFramer, Lines

WRITE_BYTES = 256 * 1024
"""The largest single write to stdin."""


class Wake:
    """Wakes a poll loop; :meth:`set` may be called from any thread, at any time, and does not block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._fd

    def set(self) -> None:
        """Wake the loop; does nothing after :meth:`close`."""
        # With a full counter the loop is awake already.
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Reset the wake-up."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            fd, self._fd = self._fd, -1
        os.close(fd)


class _Stream(msgspec.Struct):
    channel: Channel
    fd: int
    framer: LineFramer
    peeked_bytes: int = -1
    open: bool = True


class Pipes:
    """
    Moves bytes between one child and its attempt: each :meth:`turn` waits once and passes on what has arrived.

    Memory is bounded by one chunk and one unfinished line for each stream. If the child is silent in the middle of a
    line, *on_quiet* gets the unfinished line, so that a message without an end is still seen.

    Args:
        wake: Ends the wait of a turn; None: only the child does.
        stdin_bytes: Are written to the child's stdin, which is then closed; the first of them by the constructor.
        on_lines: Called with the lines of one chunk and the monotonic time at which it was read.
        on_quiet: Called with a stream's unfinished line, once, after :data:`QUIET_SECONDS` of silence.
    """

    QUIET_SECONDS = 0.1

    def __init__(
        self,
        child: Child,
        *,
        wake: Wake | None = None,
        stdin_bytes: bytes,
        frame_limit_bytes: int,
        on_lines: Callable[[Channel, Lines, float], None],
        on_quiet: Callable[[Channel, bytes, float], None],
    ) -> None:
        self._child = child
        self._unsent = memoryview(stdin_bytes)
        self._wake = wake
        self._on_lines = on_lines
        self._on_quiet = on_quiet
        # stderr first: if both are ready, its line says more than the frame on stdout about the same failure.
        self._streams = [
            _Stream(Channel.STDERR, child.stderr, LineFramer(frame_limit_bytes)),
            _Stream(Channel.STDOUT, child.stdout, LineFramer(frame_limit_bytes)),
        ]
        self._poll = select.poll()
        self._poll.register(child.pidfd, select.POLLIN)
        if wake is not None:
            self._poll.register(wake.fileno(), select.POLLIN)
        for stream in self._streams:
            self._poll.register(stream.fd, select.POLLIN)
            _widen(stream.fd)
        self._has_stdin = True
        self._poll.register(child.stdin, select.POLLOUT)
        self._write()  # at once: the child waits for it
        self.leader_gone = False
        """Whether the leader has ended; other processes may still hold its pipes."""

    @property
    def open(self) -> bool:
        """Whether any process can still write to us."""
        return any(stream.open for stream in self._streams)

    def turn(self, timeout_seconds: float) -> bool:
        """Wait for an event, at most for *timeout_seconds*, handle it, and return whether a stream had data."""
        unfinished = any(s.open and 0 < s.framer.pending_bytes != s.peeked_bytes for s in self._streams)
        if unfinished:
            timeout_seconds = min(timeout_seconds, self.QUIET_SECONDS)
        ready = dict(
            self._poll.poll(None if math.isinf(timeout_seconds) else max(0, math.ceil(timeout_seconds * 1000)))
        )
        if self._wake is not None and self._wake.fileno() in ready:
            self._wake.clear()
        if self._has_stdin and self._child.stdin in ready:
            self._write()
        had_data = False
        for stream in self._streams:
            if stream.open and stream.fd in ready:
                had_data = True
                self._read(stream)
        if self._child.pidfd in ready and not self.leader_gone:
            self.leader_gone = True
            self._poll.unregister(self._child.pidfd)
        if unfinished and not had_data:
            self._peek()
        return had_data

    def catch_up(self, limit_seconds: float) -> None:
        """Read all data that has arrived, without waiting for more; at most for *limit_seconds*."""
        until = time.monotonic() + limit_seconds
        while self.open and self.turn(0) and time.monotonic() < until:
            pass

    def drain(self, timeout_seconds: float) -> None:
        """Read on until every writer is gone, or for *timeout_seconds*, and pass on unfinished lines."""
        until = time.monotonic() + timeout_seconds
        while self.open and (left := until - time.monotonic()) > 0:
            self.turn(left)
        for stream in self._streams:
            self._end(stream)

    def _read(self, stream: _Stream) -> None:
        try:
            count = os.readv(stream.fd, (stream.framer.room(),))
        except BlockingIOError:
            return
        except OSError:
            count = 0
        now = time.monotonic()
        if count:
            stream.peeked_bytes = -1
            self._on_lines(stream.channel, stream.framer.feed(count), now)
        else:
            self._end(stream)

    def _end(self, stream: _Stream) -> None:
        if stream.open:
            stream.open = False
            self._poll.unregister(stream.fd)
            self._on_lines(stream.channel, stream.framer.close(), time.monotonic())

    def _peek(self) -> None:
        now = time.monotonic()
        for stream in self._streams:
            pending = stream.framer.pending_bytes
            if stream.open and 0 < pending != stream.peeked_bytes:
                stream.peeked_bytes = pending
                self._on_quiet(stream.channel, stream.framer.peek(), now)

    def _write(self) -> None:
        try:
            sent = os.write(self._child.stdin, self._unsent[:WRITE_BYTES])
        except BlockingIOError:
            return
        except OSError:
            # The child does not read. That alone is no failure; its exit code decides.
            sent = len(self._unsent)
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._poll.unregister(self._child.stdin)
            self._end_stdin()

    def _end_stdin(self) -> None:
        # An open stdin costs the CLI three seconds a run (measured, 1.0.128 to 2.1.330).
        self._has_stdin = False
        self._child.close_stdin()


def _widen(fd: int) -> None:
    # In a larger pipe a child with much output blocks less often. Beyond the user's pipe quota it is not permitted.
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, MOST_BYTES)
