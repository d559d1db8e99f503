"""
The scripted CLI with scripts as prompts: what the real one cannot be made to do, floods, forgeries, ways to escape.

Run by its path, as a child has another working directory. A prompt that is a JSON object with a key ``script`` is
played: ``{"script": [{"do": "init"}, {"do": "assistant", "text": "Hello."}, {"do": "result"}]}``. Further keys:
``permission_mode`` (what init says), ``keep_session`` (false: a resume finds no conversation), ``exit_code``.

==============  ==================================================================  ====================================
step            fields (with their defaults)                                        does
==============  ==================================================================  ====================================
``init``        ``fields`` {}                                                       prints ``system/init``
``frame``       ``frame``                                                           prints it, with session id and UUID
``assistant``   ``text``, ``usage`` {}                                              prints a model's text
``partial``     ``text``                                                            prints a ``stream_event``
``tool_use``    ``command``, ``name`` Bash, ``id``                                  prints it, runs nothing
``tool_result`` ``content``, ``is_error`` false, ``id``                             prints it, ran nothing
``result``      ``text`` Done., ``is_error`` false, ``fields`` {}                   prints ``result``, goes on
``retry``       ``status``, ``error``, ``attempt`` 1, ``delay_seconds`` 0.5         prints ``api_retry``
``give_up``     ``text``, ``error``, ``status``, ``kind``                           prints synthetic assistant + result
``rate_limit``  ``status``, ``limit_type``, ``resets_at``                           prints ``rate_limit_event``
``background``  ``tasks`` (names of the pending ones)                               prints ``background_tasks_changed``
``write``       ``text`` or ``base64``, ``stream`` stdout, ``newline`` true,        prints bytes, in one write or cut at
                ``cuts`` [], ``byte_by_byte`` false, ``pause_seconds`` 0            offsets, with a pause after each
``api_error``   ``status`` 401, ``kind``, ``message``, ``attempt`` 1, ``error``,    prints the CLI's exact line on
                ``frame`` true                                                      stderr, and ``api_retry``
``request``     ``prompt`` "Go on.", ``result`` false                               one turn with the API, tools too
``tool``        ``command``, ``timeout_seconds`` 120, ``frames`` true               runs it as the Bash tool does
``sleep``       ``seconds``                                                         waits
``hang``        ``seconds`` 120                                                     waits
``wait_file``   ``path``, ``timeout_seconds`` 120                                   waits until it exists
``exit``        ``code`` 0                                                          leaves at once
``kill``        ``signal`` SIGKILL                                                  dies of it
``touch``       ``path``, ``text`` "ready {pid}"                                    appends a line
``report``      ``path``                                                            writes what it was given: argv,
                                                                                    environment, token's fingerprint, …
``flood``       ``bytes``, ``stream`` stdout, ``bytes_per_second`` 0 (no limit),    prints filler; ``line_bytes`` 0: one
                ``line_bytes`` 4096                                                 line without an end
``lookalike``   ``of`` all (``model_text``, ``tool_result``, ``subagent``,          prints what is no evidence
                ``mcp_stderr``, ``mcp_needs_auth``, ``good_result``)
``forge``       ``stream`` stderr, ``text``                                         a tool writes the refusal line, or
                                                                                    frame, to the CLI's own stream
``wait_signal`` ``signal`` SIGUSR1, ``timeout_seconds`` 120, ``ready_file``         waits; the signal does nothing else
``stubborn``    ``signals`` [SIGINT, SIGTERM]                                       ignores them from here on
``stop``        ``seconds`` 120                                                     stops itself (SIGSTOP)
``close``       ``stream`` (stdin, stdout, stderr)                                  closes it
``spawn``       ``kind`` plain (``setsid``, ``double_fork``, ``empty_env``,         starts children; ``count``: members
                ``tree``, ``runaway``), ``seconds`` 120, ``count`` 0,               of a tree (6), forks of a runaway
                ``hold_pipes`` false, ``ignore_signals`` false, ``pid_file``
``pids``        ``path``                                                            writes ``{pid, children}``
==============  ==================================================================  ====================================

Any step may have ``when`` (``first``: not in a resumed process, ``resumed``: only there) and ``times``. ``--resume``
goes on with the session's first step that has not begun (a ``request`` is repeated unless it was answered), or, with a
new script as prompt, with that. A script that is wrong is reported on stderr; the exit code is then 2.

Environment: ``SCRIPTED_CLI_SCRIPT`` (a file with the script; stdin is then never read).

A step is a public method of :class:`Steps`. Its keyword arguments are the step's fields; their annotations are what a
script is checked against before its first step is played. Children are forks of the CLI itself, so they start in a
millisecond and are seen with its command line; ``empty_env`` alone is another program. Every one of them ends by itself
when its time is over.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from agent_runtime.standins.scripted_cli import frames
from agent_runtime.standins.scripted_cli import main as scripted_cli
from agent_runtime.standins.scripted_cli.api import GaveUp
from agent_runtime.standins.scripted_cli.runtime import STDERR, STDOUT, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_runtime.standins.scripted_cli.api import Api
    from agent_runtime.standins.scripted_cli.frames import Frame

STREAMS = {"stdout": STDOUT, "stderr": STDERR}
FLOOD_CHUNK_BYTES = 65_536
CREDENTIAL_NAMES = ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN")
POLL_SECONDS = 0.005
CHECKS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "str | None": lambda value: value is None or isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "int | None": lambda value: value is None or (isinstance(value, int) and not isinstance(value, bool)),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value >= 0,
    "Frame": lambda value: isinstance(value, dict),
    "list[Frame]": lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value),
    "list[int]": lambda value: isinstance(value, list) and all(isinstance(item, int) for item in value),
    "list[str]": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
}
COMMON_FIELDS = ("do", "when", "times")


class BadScript(Exception):
    """A step that is not known, or a field of it that is missing, unknown or of the wrong type."""


def check(script: Frame) -> None:
    """
    Check every step of a script against the steps there are.

    Raises:
        BadScript: The message says which step and which field.
    """
    steps = script["script"]
    if not isinstance(steps, list):
        raise BadScript("script must be a list of steps")
    for number, step in enumerate(steps, start=1):
        _check_step(f"step {number}", step)


def _check_step(where: str, step: Any) -> None:
    if not isinstance(step, dict) or not isinstance(step.get("do"), str):
        raise BadScript(f"{where}: a step is an object with a key 'do'")
    name = step["do"]
    play = None if name.startswith("_") or name == "play" else getattr(Steps, name, None)
    if play is None:
        raise BadScript(f"{where}: unknown step {name!r}")
    where = f"{where} ({name})"
    if step.get("when", "always") not in {"first", "resumed", "always"}:
        raise BadScript(f"{where}: when must be 'first', 'resumed' or 'always'")
    if not CHECKS["int"](step.get("times", 1)):
        raise BadScript(f"{where}: times must be int")
    annotations = {key: text for key, text in play.__annotations__.items() if key != "return"}
    defaults = play.__kwdefaults__ or {}
    fields = {key: value for key, value in step.items() if key not in COMMON_FIELDS}
    for key, value in fields.items():
        if key not in annotations:
            raise BadScript(f"{where}: unknown field {key!r}")
        if not CHECKS[annotations[key]](value):
            raise BadScript(f"{where}: {key} must be {annotations[key]}")
    missing = sorted(set(annotations) - set(defaults) - set(fields))
    if missing:
        raise BadScript(f"{where}: {missing[0]} is missing")


class ScriptRun(scripted_cli.PromptRun):
    """
    A run that plays the script a prompt holds.

    Attributes:
        played: How many steps of the session's script have begun, in this process and in those before it.
        spawned: The children that steps have forked.
    """

    played = 0
    script: Frame | None = None

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.spawned: list[int] = []

    def restore(self, entry: Frame) -> None:
        """Take over one entry of the session file; scripts and their positions are entries of their own."""
        if "script" in entry:
            self.script, self.played = entry, 0
        elif "played" in entry:
            self.played = entry["played"]
        else:
            super().restore(entry)

    def prompts(self, prompt: str | None) -> Iterator[Message]:
        """Yield the script of ``SCRIPTED_CLI_SCRIPT``, else what the caller asks."""
        if script_file := self.environment.get("SCRIPTED_CLI_SCRIPT"):
            text = Path(script_file).read_text()
            return iter([Message(text, text)])
        return super().prompts(prompt)

    def answer(self, api: Api, message: Message) -> int:
        """Play the script the message holds, or go on with the session's, or behave as the real CLI does."""
        script = script_in(message.text)
        if script is not None:
            check(script)
            if script != self.script:
                self.played = 0
                if script.get("keep_session", True):
                    self.store(script)
            return Steps(self, api, message).play(script, resumed=self.options.resume)
        if self.script is None:
            return super().answer(api, message)
        rest = self.played < len(self.script["script"])
        script = (
            self.script if rest else {"script": [{"do": "init"}, {"do": "result", "text": "Nothing left to play."}]}
        )
        self.played = self.played if rest else 0
        return Steps(self, api, message).play(script, resumed=True)


def script_in(text: str) -> Frame | None:
    """Return the script a prompt holds, if it holds one."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "script" in value else None


class Steps:
    """Plays the steps of one script in one run."""

    def __init__(self, run: ScriptRun, api: Api, message: Message) -> None:
        self._run = run
        self._api = api
        self._message = message
        self._tool_number = 0

    # Frames

    def init(self, *, fields: Frame = {}) -> None:  # noqa: B006 (never changed)
        """Print ``system/init``."""
        self._run.init(key_source=self._api.key_source, **fields)

    def frame(self, *, frame: Frame) -> None:
        """Print a frame as given."""
        self._run.emit(dict(frame))

    def assistant(self, *, text: str, usage: Frame = {}) -> None:  # noqa: B006 (never changed)
        """Print a model's text."""
        self._block({"type": "text", "text": text}, usage)

    def partial(self, *, text: str) -> None:
        """Print one piece of a message as ``--include-partial-messages`` does."""
        event = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        self._run.emit({"type": "stream_event", "event": event, "parent_tool_use_id": None})

    def tool_use(self, *, command: str, name: str = "Bash", id: str | None = None) -> None:  # noqa: A002 (the frame's word)
        """Print that the model wants a tool, without running it."""
        self._tool_number += 1
        tool_use_id = id or f"toolu_{self._tool_number:02d}"
        self._block({"type": "tool_use", "id": tool_use_id, "name": name, "input": {"command": command}}, {})

    def tool_result(self, *, content: str, is_error: bool = False, id: str | None = None) -> None:  # noqa: A002 (the frame's word)
        """Print what a tool gave back, without running it."""
        self._run.emit(frames.tool_result(id or f"toolu_{self._tool_number:02d}", content, is_error=is_error))

    def result(self, *, text: str = "Done.", is_error: bool = False, fields: Frame = {}) -> None:  # noqa: B006 (never changed)
        """Print the ``result`` frame."""
        self._run.result(text, is_error=is_error, **fields)

    def retry(self, *, status: int | None, error: str, attempt: int = 1, delay_seconds: float = 0.5) -> None:
        """Print an ``api_retry`` frame, on any version."""
        self._run.emit(frames.api_retry(attempt, delay_seconds=delay_seconds, status=status, error=error))

    def give_up(self, *, text: str, error: str, status: int | None = None, kind: str | None = None) -> None:
        """Print the CLI's own assistant frame and the result of a run that failed."""
        self._run.give_up(text, error=error, status=status, kind=kind)

    def rate_limit(self, *, status: str, limit_type: str | None = None, resets_at: int | None = None) -> None:
        """Print a ``rate_limit_event``."""
        self._run.emit(frames.rate_limit_event(status, limit_type=limit_type, resets_at=resets_at))

    def background(self, *, tasks: list[str]) -> None:
        """Print which background tasks are pending."""
        pending = [{"task_id": task, "task_type": "local_bash", "description": task} for task in tasks]
        self._run.emit({"type": "system", "subtype": "background_tasks_changed", "tasks": pending})

    def _block(self, block: Frame, usage: Frame) -> None:
        self._run.num_turns += 1
        usage = {**frames.NO_USAGE, "input_tokens": 10, "output_tokens": 5} | usage
        self._run.count(usage)
        model = self._run.options.model_name
        message_id = f"msg_{frames.new_uuid()[:8]}"
        self._run.emit(frames.assistant(block, model=model, message_id=message_id, usage=usage))

    # Bytes

    def write(
        self,
        *,
        text: str | None = None,
        base64: str | None = None,
        stream: str = "stdout",
        newline: bool = True,
        cuts: list[int] = [],  # noqa: B006 (never changed)
        byte_by_byte: bool = False,
        pause_seconds: float = 0.0,
    ) -> None:
        """Print bytes, whole or in pieces."""
        data = _decoded(text, base64) + (b"\n" if newline else b"")
        offsets = list(range(1, len(data))) if byte_by_byte else cuts
        for begin, end in zip([0, *offsets], [*offsets, len(data)], strict=True):
            self._run.write(stream_of(stream), data[begin:end])
            time.sleep(pause_seconds)

    def api_error(
        self,
        *,
        status: int | None = 401,
        kind: str = "authentication_error",
        message: str = "OAuth token has expired. Please obtain a new token or refresh your existing token.",
        attempt: int = 1,
        frame: bool = True,
        error: str = "authentication_failed",
    ) -> None:
        """Print the CLI's own line about a refused request, and the frame where the version has one."""
        version = self._run.options.version
        body = "Connection error." if status is None else frames.error_body(kind, message)
        self._run.write(STDERR, frames.api_error_line(version, status, body, attempt=attempt).encode() + b"\n")
        if frame and version >= frames.SINCE_API_RETRY:
            self._run.emit(frames.api_retry(attempt, delay_seconds=0.5, status=status, error=error))

    def play(self, script: Frame, *, resumed: bool) -> int:
        """Play a checked script and return the process's exit code."""
        self._run.permission_mode = str(script.get("permission_mode", self._run.permission_mode))
        self._run.stores_session = self._run.stores_session and bool(script.get("keep_session", True))
        try:
            self._play(script["script"], resumed=resumed)
        except GaveUp:
            return 1
        return int(script.get("exit_code", 0))

    def _play(self, steps: list[Frame], *, resumed: bool) -> None:
        """
        Play what has not begun yet.

        A step counts as played when it begins, so that a tool never runs twice; a request when it was answered, so
        that a resumed session asks again.
        """
        for number, step in enumerate(steps, start=1):
            if number <= self._run.played:
                if step["do"] == "init":  # every process has its own
                    self.init(**{key: value for key, value in step.items() if key not in COMMON_FIELDS})
                continue
            if step["do"] != "request":
                self._run.store({"played": number})
            when = step.get("when", "always")
            if when == "always" or (when == "resumed") == resumed:
                fields = {key: value for key, value in step.items() if key not in COMMON_FIELDS}
                for _ in range(step.get("times", 1)):
                    getattr(self, step["do"])(**fields)
            if step["do"] == "request":
                self._run.store({"played": number})

    # The API and tools

    def request(self, *, prompt: str = "Go on.", result: bool = False) -> None:
        """Ask the real API, run the tools it wants, until it ends its turn; a refusal ends the process as usual."""
        self._run.init(key_source=self._api.key_source)
        text = self._api.turn(prompt)
        if result:
            self._run.result(text)

    def tool(self, *, command: str, timeout_seconds: float = 120.0, frames: bool = True) -> None:
        """Run a command as the Bash tool does, with its two frames."""
        if frames:
            self.tool_use(command=command)
        outcome = self._run.bash(command, timeout_seconds=timeout_seconds)
        if frames:
            self.tool_result(content=outcome.text, is_error=outcome.exit_code != 0)

    # Waiting

    def sleep(self, *, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def hang(self, *, seconds: float = 120.0) -> None:
        """Wait, doing nothing; the step's name says what for."""
        time.sleep(seconds)

    def wait_file(self, *, path: str, timeout_seconds: float = 120.0) -> None:
        """Wait until a file exists."""
        deadline = time.monotonic() + timeout_seconds
        while not Path(path).exists() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    # Ending

    def exit(self, *, code: int = 0) -> NoReturn:
        """Leave at once."""
        self._run.end(code)

    def kill(self, *, signal: str = "SIGKILL") -> None:
        """Die of a signal."""
        import signal as signals  # the step's field has its name

        number = signals.Signals[signal]
        if number not in {signals.SIGKILL, signals.SIGSTOP}:
            signals.signal(number, signals.SIG_DFL)
        os.kill(os.getpid(), number)

    # Telling a test

    def touch(self, *, path: str, text: str = "ready {pid}") -> None:
        """Append a line to a file."""
        line = text.replace("{pid}", str(os.getpid())) + "\n"
        with Path(path).open("ab", buffering=0) as file:
            file.write(line.encode())

    def report(self, *, path: str) -> None:
        """Write what this process was given into a file, by rename; of credentials the fingerprint only."""
        credential = self._api.credential()
        environment = {
            name: _fingerprint(value) if name in CREDENTIAL_NAMES else value for name, value in os.environ.items()
        }
        content = self._message.content
        given = {
            "argv": sys.argv[1:],
            "cwd": str(Path.cwd()),
            "environment": environment,
            "message": self._message.text,
            "images": [block["source"]["media_type"] for block in content if block["type"] == "image"]
            if isinstance(content, list)
            else [],
            "pid": os.getpid(),
            "token": None if credential is None else _fingerprint(credential.secret),
            "token_source": None if credential is None else credential.source,
        }
        write_json(path, given)

    def forge(self, *, stream: str = "stderr", text: str | None = None) -> None:
        """Let a tool write the CLI's exact refusal line, frame or *text* to the CLI's own stream."""
        if text is None:
            body = frames.error_body("authentication_error", "OAuth token has expired.")
            text = frames.api_error_line(self._run.options.version, 401, body, attempt=1)
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
        """Take no notice of these signals from here on; tools still do."""
        for name in signals:
            signal.signal(signal.Signals[name], lambda _number, _frame: None)

    def stop(self, *, seconds: float = 120.0) -> None:
        """Stop as Ctrl-Z does, until SIGCONT, which a child sends when the time is over."""
        wake_after(seconds)
        os.kill(os.getpid(), signal.SIGSTOP)

    def close(self, *, stream: str) -> None:
        """Close stdin, stdout or stderr."""
        os.close({"stdin": 0, **STREAMS}[stream])

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
        self._run.spawned.append(pid)

    def pids(self, *, path: str) -> None:
        """Write this process's pid and those it has forked into a file, by rename."""
        write_json(path, {"pid": os.getpid(), "children": self._run.spawned})

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
        body = frames.error_body("authentication_error", "OAuth token has expired.")
        line = frames.api_error_line(self._run.options.version, 401, body, attempt=1)
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


def _decoded(text: str | None, encoded: str | None) -> bytes:
    if (text is None) == (encoded is None):
        raise BadScript("write: give either text or base64")
    import base64

    return text.encode() if text is not None else base64.b64decode(encoded or "")


def stream_of(name: str) -> int:
    """Return the descriptor of a stream by its name."""
    if name not in STREAMS:
        raise BadScript("stream must be 'stdout' or 'stderr'")
    return STREAMS[name]


def _fingerprint(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()[:12]


def write_json(path: str, value: Frame) -> None:
    """Write a file by rename, so that a reader never sees half of it."""
    part = Path(f"{path}.part")
    part.write_text(json.dumps(value))
    part.replace(path)


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


def run() -> None:
    """Be the program; a wrong script exits with 2."""
    try:
        scripted_cli.run(ScriptRun)
    except BadScript as wrong:
        sys.stderr.write(f"scripted CLI: {wrong}\n")
        sys.stderr.flush()
        os._exit(2)


if __name__ == "__main__":
    run()
