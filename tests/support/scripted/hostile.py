"""
Steps that only a hostile or broken child would take: floods, forgeries, ways to escape.

Children are forks of the CLI itself, so they start in a millisecond and are seen with its command line; ``empty_env``
alone is another program. Every one of them ends by itself when its time is over.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import time
from typing import TYPE_CHECKING

from agent_runtime.standins.scripted_cli import frames
from tests.support.scripted.printing import STREAMS, BadScript, error_body, stream_of
from tests.support.scripted.steps import Steps, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.standins.scripted_cli.api import Api
    from agent_runtime.standins.scripted_cli.main import Prompt
    from agent_runtime.standins.scripted_cli.runtime import Run

FLOOD_CHUNK_BYTES = 65_536


class HostileSteps(Steps):
    """The steps of :class:`Steps`, and those of a hostile or broken child."""

    def __init__(self, run: Run, api: Api, message: Prompt) -> None:
        super().__init__(run, api, message)
        self._spawned: list[int] = []

    def forge(self, *, stream: str = "stderr", text: str | None = None) -> None:
        """Write the CLI's exact refusal line, frame or *text* to the CLI's own stream, from a tool."""
        if text is None:
            body = error_body("authentication_error", "OAuth token has expired.")
            text = frames.api_error_line(401, body, attempt=1)
            if stream == "stdout":
                text = json.dumps(frames.api_retry(1, delay_seconds=0.5, status=401, error="authentication_failed"))
        self.tool(command=f"printf '%s\\n' {shlex.quote(text)} >> /proc/$PPID/fd/{stream_of(stream)}")

    # Waiting

    def wait_signal(
        self, *, signal: str = "SIGUSR1", timeout_seconds: float = 120.0, ready_file: str | None = None
    ) -> None:
        """Wait for a signal, which then does nothing else; *ready_file* gets a line when it may come."""
        import signal as signals  # the step's field has its name

        number = signals.Signals[signal]
        signals.pthread_sigmask(signals.SIG_BLOCK, {number})
        if ready_file is not None:
            self.touch(path=ready_file)
        signals.sigtimedwait({number}, timeout_seconds)
        signals.pthread_sigmask(signals.SIG_UNBLOCK, {number})

    def stubborn(self, *, signals: list[str] = ["SIGINT", "SIGTERM"]) -> None:  # noqa: B006 (never changed)
        """Ignore these signals from here on; tools do not inherit that."""
        for name in signals:
            signal.signal(signal.Signals[name], lambda _number, _frame: None)

    def stop(self, *, seconds: float = 120.0) -> None:
        """Stop as Ctrl-Z does, until SIGCONT, which a child sends when the time is over."""
        wake_after(seconds)
        os.kill(os.getpid(), signal.SIGSTOP)

    def close(self, *, stream: str) -> None:
        """Close stdin, stdout or stderr."""
        nowhere = os.open(os.devnull, os.O_RDWR)  # so that a later step may still write
        os.dup2(nowhere, {"stdin": 0, **STREAMS}[stream])
        os.close(nowhere)

    def spawn(
        self,
        *,
        kind: str = "plain",
        seconds: float = 120.0,
        count: int = 0,
        hold_pipes: bool = False,
        ignore_signals: bool = False,
        pid_file: str | None = None,
    ) -> None:
        """Start children that stay."""
        if kind not in KINDS:
            raise BadScript(f"spawn: kind must be one of {', '.join(KINDS)}")
        pid = spawn(
            kind,
            seconds=min(seconds, 600.0),
            count=count,
            hold_pipes=hold_pipes,
            ignore_signals=ignore_signals,
            pid_file=pid_file,
        )
        self._spawned.append(pid)

    def pids(self, *, path: str) -> None:
        """Write this process's pid and those it has forked into a file, by rename."""
        write_json(path, {"pid": os.getpid(), "children": self._spawned})

    def flood(
        self,
        *,
        bytes: int,  # noqa: A002 (the step's word)
        stream: str = "stdout",
        bytes_per_second: float = 0.0,
        line_bytes: int = 4096,
    ) -> None:
        """Print *bytes* of filler: lines of *line_bytes* (on stdout each a frame), or none where that is 0."""
        line = self._filler(stream, line_bytes)
        chunk = line * max(1, FLOOD_CHUNK_BYTES // len(line))
        began, written = time.monotonic(), 0
        while written < bytes:
            self._run.write(stream_of(stream), chunk)
            written += len(chunk)
            if bytes_per_second:
                time.sleep(max(0.0, began + written / bytes_per_second - time.monotonic()))

    def _filler(self, stream: str, line_bytes: int) -> bytes:
        if line_bytes == 0:
            return b"x" * FLOOD_CHUNK_BYTES
        if stream == "stderr":
            return f"{frames.timestamp()} [DEBUG] ".encode().ljust(line_bytes - 1, b"x") + b"\n"
        head = json.dumps({"type": "system", "subtype": "filler", "session_id": self._run.options.session_id})
        head = head[:-1] + ', "filler": "'
        return head.encode() + b"x" * max(0, line_bytes - len(head) - 3) + b'"}\n'

    def lookalike(self, *, of: str = "all") -> None:
        """Print what must never be read as evidence: one of the kinds in :meth:`_lookalikes`, or all."""
        for kind, print_it in self._lookalikes().items():
            if of in {kind, "all"}:
                print_it()

    def _lookalikes(self) -> dict[str, Callable[[], None]]:
        body = error_body("authentication_error", "OAuth token has expired.")
        line = frames.api_error_line(401, body, attempt=1)
        retry = json.dumps(frames.api_retry(1, delay_seconds=0.5, status=401, error="authentication_failed"))
        subagent = frames.tool_result("toolu_agent", f"Failed to authenticate. API Error: 401 {body}", is_error=True)
        return {
            "model_text": lambda: self.assistant(text=f"I saw this:\n{line}\n{retry}"),
            "tool_result": lambda: self.tool_result(content=f"{line}\n{retry}"),
            "subagent": lambda: self._run.emit(subagent),
            "mcp_stderr": lambda: self.write(
                text=f'{frames.timestamp()} [ERROR] MCP server "x" Server stderr: {line}', stream="stderr"
            ),
            "mcp_needs_auth": lambda: self._run.emit(
                {"type": "system", "subtype": "status", "mcp_servers": [{"name": "x", "status": "needs-auth"}]}
            ),
            "good_result": lambda: self.result(text=f"The log says: {line}"),
        }


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
    """Go on in a new process in a new session all the time, so that any process that is seen is about to be gone."""
    _tell(pid_file)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(times):
        if time.monotonic() > deadline or os.fork():
            os._exit(0)
        os.setsid()
    _stay(deadline, None)
