"""One run of the scripted CLI: what it prints, the tools it has started, its session file, and what a signal does."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from agent_runtime.standins.scripted_cli import frames
from agent_runtime.standins.scripted_cli.frames import Frame, Version

if TYPE_CHECKING:
    import subprocess

STDOUT, STDERR = 1, 2
DEFAULT_TOOL_TIMEOUT_SECONDS = 120.0
TOOL_OUTPUT_LIMIT_BYTES = 30_000
SAFETY_NET_SECONDS = 600
"""The longest life of a scripted CLI."""

EXIT_CODES: dict[int, int] = {signal.SIGINT: 0, signal.SIGTERM: 143, signal.SIGALRM: 70}


class Options(NamedTuple):
    """The arguments that change what the scripted CLI does; all others are accepted and ignored."""

    version_text: str = frames.DEFAULT_VERSION
    session_id: str = ""
    resume: bool = False
    forks: str | None = None
    model: str | None = None
    permission_mode: str = "default"
    max_turns: int | None = None
    system_prompt: str | None = None
    stream_input: bool = False
    partial_messages: bool = False
    debug_stderr: bool = False
    keep_session: bool = True

    @property
    def version(self) -> Version:
        """The version to play, as numbers."""
        return frames.parse_version(self.version_text)

    @property
    def model_name(self) -> str:
        """The model asked for, or the version's own choice."""
        default = "claude-sonnet-5-5" if self.version >= (2, 1, 300) else "claude-sonnet-4-5-20250929"
        return self.model or default


class ToolOutcome(NamedTuple):
    """How a tool's command ended; *exit_code* is None if it was ended by its time limit."""

    output: str
    exit_code: int | None

    @property
    def text(self) -> str:
        """The words of the tool result, as the real CLI chooses them."""
        if self.exit_code is None:
            return f"Command timed out\n{self.output}".rstrip()
        if self.exit_code:
            return f"Exit code {self.exit_code if self.exit_code > 0 else 128 - self.exit_code}\n{self.output}".rstrip()
        return self.output


class Run:
    """
    The state of one run, that is, of the process.

    Attributes:
        messages: The conversation in the API's form; in a resumed session it begins with the earlier messages.
        tools: Process groups of tools that have not been seen to end.
    """

    def __init__(self, options: Options, environment: dict[str, str]) -> None:
        self.options = options
        self.environment = environment
        self.started = time.monotonic()
        self.messages: list[Frame] = []
        self.tools: dict[int, subprocess.Popen[bytes]] = {}
        self.num_turns = 0
        self.usage: Frame = dict(frames.NO_USAGE)
        self._writing = False
        self._initialised = False
        self._tool_is_starting = False
        self._postponed: int | None = None

    # Printing

    def write(self, stream: int, data: bytes) -> None:
        """Write all of *data*; a reader that has gone away ends the process, as it ends the real one."""
        self._writing = True
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(stream, view) :]
        except BrokenPipeError:
            self.end(1)
        self._writing = False

    def emit(self, frame: Frame) -> None:
        """Print a frame; session id and UUID are added where it has none."""
        frame.setdefault("session_id", self.options.session_id)
        frame.setdefault("uuid", frames.new_uuid())
        self.write(STDOUT, json.dumps(frame, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")

    def debug(self, line: str) -> None:
        """Print a line of the CLI's debug log, which goes to stderr only with ``--debug-to-stderr``."""
        if self.options.debug_stderr:
            self.write(STDERR, line.encode() + b"\n")

    def init(self, *, key_source: str = "none", **fields: Any) -> None:
        """Print ``system/init``, once."""
        if self._initialised:
            return
        self._initialised = True
        frame = frames.init(
            self.options.version_text,
            cwd=str(Path.cwd()),
            model=self.options.model_name,
            permission_mode=self.options.permission_mode,
            key_source=key_source,
        )
        self.emit(frame | fields)

    def result(self, text: str | None, **fields: Any) -> None:
        """Print the ``result`` frame with what this run has counted."""
        model = self.options.model_name if any(self.usage.values()) else None
        counted: dict[str, Any] = {"num_turns": max(self.num_turns, 1), "usage": self.usage, "model": model}
        elapsed_ms = int((time.monotonic() - self.started) * 1000)
        self.emit(frames.result(text, duration_ms=elapsed_ms, **(counted | fields)))

    def give_up(self, text: str, *, error: str, status: int | None = None, kind: str | None = None) -> None:
        """Print what the CLI prints when it stops asking the API: its own assistant frame and the result."""
        self.emit(frames.synthetic(text, error=error, status=status, kind=kind))
        self.result(text, is_error=True, status=status)

    def count(self, usage: Frame) -> None:
        """Add one API message's usage to the run's."""
        for key in frames.USAGE_KEYS:
            self.usage[key] += usage.get(key) or 0

    # The session

    @property
    def config_dir(self) -> Path:
        """The directory of the CLI's credentials and sessions."""
        return Path(self.environment.get("CLAUDE_CONFIG_DIR") or "~/.claude").expanduser()

    @property
    def session_file(self) -> Path:
        """The file that stores this session."""
        return self._file_of(self.options.session_id)

    def _file_of(self, session_id: str) -> Path:
        return self.config_dir / "projects" / "scripted" / f"{session_id}.jsonl"

    def load_session(self) -> bool:
        """Read the session file of an earlier process; return False if there is none."""
        try:
            stored = self._file_of(self.options.forks or self.options.session_id).read_bytes()
        except FileNotFoundError:
            return False
        if self.options.forks:
            self.session_file.write_bytes(stored)
        lines = stored.splitlines()
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line of a process that was killed while it wrote
            if "message" in entry:
                self.messages.append(entry["message"])
        self._answer_open_tools()
        return True

    def _answer_open_tools(self) -> None:
        # The API takes no tool_use without its result; the real CLI writes this answer for a tool that was cut short.
        content = self.messages[-1]["content"] if self.messages else ()
        open_tools = [block["id"] for block in content if isinstance(block, dict) and block["type"] == "tool_use"]
        if open_tools:
            answers = [frames.tool_result_block(tool, frames.INTERRUPTED, is_error=True) for tool in open_tools]
            self.add_message({"role": "user", "content": answers})

    def append_to_session(self, entry: Frame) -> None:
        """Append *entry* to the session file in one write."""
        if not self.options.keep_session:
            return
        self.session_file.parent.mkdir(parents=True, exist_ok=True)
        with self.session_file.open("ab", buffering=0) as file:
            file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")

    def add_message(self, message: Frame) -> None:
        """Add a message to the conversation and to the session file."""
        self.messages.append(message)
        self.append_to_session({"message": message})

    # Tools

    def bash(self, command: str, *, timeout_seconds: float = DEFAULT_TOOL_TIMEOUT_SECONDS) -> ToolOutcome:
        """
        Run *command* as the Bash tool does: in a session of its own, until its shell ends.

        The output goes to a file in memory, not to a pipe, so that processes which the command leaves behind delay
        nothing.

        Source: Claude Code 2.1.330 ``eval`` s the command in ``bash -c`` with stdin at /dev/null; the OAuth token is
        missing from its environment, an API key is not.
        """
        import subprocess  # noqa: PLC0415 (start-up time: most scripts run no tool)

        environment = dict(self.environment)
        environment.pop("CLAUDE_CODE_OAUTH_TOKEN", None)
        environment |= {"CLAUDECODE": "1", "CLAUDE_CODE_SESSION_ID": self.options.session_id}
        with open(os.memfd_create("tool"), "w+b", buffering=0) as output:  # noqa: PTH123 (a descriptor has no path)
            self._tool_is_starting = True  # a signal now would not find the tool in self.tools
            tool = subprocess.Popen(  # noqa: S602 (running what it is told is the Bash tool's purpose)
                command,
                shell=True,
                executable="/bin/bash",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            self.tools[tool.pid] = tool
            self._tool_is_starting = False
            if self._postponed is not None:
                os.kill(os.getpid(), self._postponed)
            ended = _wait(tool.pid, timeout_seconds)
            if not ended:
                kill_group(tool.pid)
            tool.wait()
            del self.tools[tool.pid]
            output.seek(0)
            text = output.read(TOOL_OUTPUT_LIMIT_BYTES).decode(errors="replace")
        return ToolOutcome(text.rstrip("\n"), tool.returncode if ended else None)

    # The end

    def end(self, code: int) -> NoReturn:
        """Leave at once; everything has been written unbuffered."""
        os._exit(code)

    def install_signals(self) -> None:
        """Answer SIGINT and SIGTERM as the real CLI does; end after :data:`SAFETY_NET_SECONDS` in any case."""
        for number in EXIT_CODES:
            signal.signal(number, self._stop)
        signal.alarm(SAFETY_NET_SECONDS)

    def _stop(self, number: int, _frame: object) -> None:
        """
        End the tools and the process.

        Source: 2.1.330 prints a result with ``is_error`` and no text first when it is interrupted.
        """
        if self._tool_is_starting:
            self._postponed = number
            return
        for group in self.tools:
            kill_group(group)
        if number == signal.SIGINT and self._initialised and not self._writing:
            self.result(None, is_error=True, subtype="error_during_execution", errors=["[ede_diagnostic]"])
        self.end(EXIT_CODES[number])


def _wait(pid: int, timeout_seconds: float) -> bool:
    """Wait for a child without the pauses of :meth:`subprocess.Popen.wait`; return False if the time is over first."""
    pidfd = os.pidfd_open(pid)
    try:
        return bool(select.select([pidfd], [], [], timeout_seconds)[0])
    finally:
        os.close(pidfd)


def kill_group(group: int) -> None:
    """Kill a tool's process group, if there still is one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
