"""
The steps of a script; ``tests/support/scripted_cli.py`` has the table of them.

A step is a public method of :class:`Steps` or of the class it is built on. Its keyword arguments are the step's fields;
their annotations are what a script is checked against before its first step is played.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from agent_runtime.standins.scripted_cli.api import GaveUp
from tests.support.scripted.printing import BadScript, PrintingSteps

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.standins.scripted_cli.frames import Frame

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


def check(script: Frame, kind: type[Steps]) -> None:
    """
    Check every step of a script against the steps that *kind* has.

    Raises:
        BadScript: The message says which step and which field.
    """
    steps = script["script"]
    if not isinstance(steps, list):
        raise BadScript("script must be a list of steps")
    for number, step in enumerate(steps, start=1):
        _check_step(f"step {number}", step, kind)


def _check_step(where: str, step: Any, kind: type[Steps]) -> None:
    if not isinstance(step, dict) or not isinstance(step.get("do"), str):
        raise BadScript(f"{where}: a step is an object with a key 'do'")
    name = step["do"]
    play = None if name.startswith("_") else getattr(kind, name, None)
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


class Steps(PrintingSteps):
    """Plays the steps of one script in one run."""

    def _play(self, steps: list[Frame], *, begun: int, resumed: bool) -> None:
        """
        Play the steps after the first *begun* ones.

        A step counts as played when it begins, so that a tool never runs twice; a request when it was answered, so
        that a resumed session asks again.
        """
        for number, step in enumerate(steps, start=1):
            if number <= begun:
                if step["do"] == "init":  # every process has its own
                    self.init(**{key: value for key, value in step.items() if key not in COMMON_FIELDS})
                continue
            if step["do"] != "request":
                self._run.append_to_session({"played": number})
            when = step.get("when", "always")
            if when == "always" or (when == "resumed") == resumed:
                fields = {key: value for key, value in step.items() if key not in COMMON_FIELDS}
                for _ in range(step.get("times", 1)):
                    getattr(self, step["do"])(**fields)
            if step["do"] == "request":
                self._run.append_to_session({"played": number})

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
        import signal as signals

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


def play(steps: Steps, script: Frame, *, begun: int, resumed: bool) -> int:
    """Play a checked script from the step after the first *begun* ones, and return the process's exit code."""
    try:
        steps._play(script["script"], begun=begun, resumed=resumed)
    except GaveUp:
        return 1
    return int(script.get("exit_code", 0))


def _fingerprint(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()[:12]


def write_json(path: str, value: Frame) -> None:
    """Write a file by rename, so that a reader never sees half of it."""
    part = Path(f"{path}.part")
    part.write_text(json.dumps(value))
    part.replace(path)
