"""Run what is measured: a supervisor, a bare server, and the small children that they start."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agent_runtime.secret.writer import put

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

START_SECONDS = 30.0
TOKEN = "sk-ant-oat01-the-token-of-these-benches-0000000000001"
ROOT = Path(__file__).parents[1]
SERVE = ("-m", "agent_runtime", "serve")
BARE = ("-m", "benchmarks.bare")
CHILD = Path(__file__).with_name("child.py")
DATA_ROOT = "/dev/shm"
"""Data directories are in memory where possible, so that the program is measured and not this machine's disk."""

NOTHING = """#!/bin/sh
while read -r line; do :; done
printf '%s\\n' '{"type":"system","subtype":"init","session_id":"00000000-0000-4000-8000-000000000000","permissionMode":"bypassPermissions"}'
printf '%s\\n' '{"type":"result","subtype":"success","is_error":false,"result":"x","num_turns":1}'
"""  # noqa: E501 - frames are lines
"""A CLI that does nothing and says so; a shell with builtins only starts in a millisecond."""


def token(number: int) -> str:
    """Return the made-up token with this number."""
    return f"sk-ant-oat01-the-token-of-these-benches-{number:013}"


@contextlib.contextmanager
def directory(*, in_memory: bool = True) -> Iterator[Path]:
    """Make a private directory that exists while the block lasts."""
    root = DATA_ROOT if in_memory and os.access(DATA_ROOT, os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="agent-runtime-bench-", dir=root))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def until(condition: Callable[[], Any], what: str, within_seconds: float = START_SECONDS) -> Any:
    """Return the first true value of *condition*, called repeatedly; *what* is named if none comes in time."""
    deadline = time.monotonic() + within_seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within_seconds:g} s")
        time.sleep(0.001)
    return value


class Http:
    """A lasting HTTP connection by the standard library's client, which adds least to what is measured."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.address = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        self._connection = http.client.HTTPConnection(*self.address, timeout=300)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        try:
            self._connection.request(method, path, body)
        except ConnectionError:  # the connection was idle for too long: the next request makes a new one
            self._connection.close()
            self._connection.request(method, path, body)
        response = self._connection.getresponse()
        return response.status, response.read()

    def get(self, path: str) -> Any:
        status, body = self.ask("GET", path)
        if status >= 300:
            raise RuntimeError(f"{path}: {status} {body[:300]!r}")
        return json.loads(body)

    def post(self, message: str = "x", **fields: Any) -> dict[str, Any]:
        """Run one execution; return its answer, be it a success or an error."""
        answer: dict[str, Any] = json.loads(
            self.ask("POST", "/api/task", json.dumps({"message": message, **fields}).encode())[1]
        )
        return answer

    def ended(self, execution_id: str) -> dict[str, Any]:
        """Wait until an execution's record is final, and return it."""
        path = f"/api/executions/{execution_id}"
        until(lambda: self.get(path)["state"] == "finished", "the execution's end", 120)
        record: dict[str, Any] = self.get(path)
        return record

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class Supervised:
    """A running supervisor."""

    pid: int
    home: Path
    http: Http = field(repr=False)

    @property
    def token_file(self) -> Path:
        return self.home / "secret" / "token"


def environment(home: Path, claude: str, **settings: str) -> dict[str, str]:
    """Make a supervisor's environment, without anything of this machine's user, and the directories named in it."""
    for name in ("secret", "workspace", "data", "config", "home"):
        (home / name).mkdir(parents=True, exist_ok=True)
    put(home / "secret" / "token", TOKEN.encode())
    named = {
        "TOKEN_FILE": str(home / "secret" / "token"),
        "DATA_DIR": str(home / "data"),
        "CONFIG_DIR": str(home / "config"),
        "WORKSPACE": str(home / "workspace"),
        "CLAUDE": claude,
        "PORT": "0",
        "TOKEN_DELIVERY": "env",
        "PROBE": "off",
        "PARK": "0",
        **settings,
    }
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home / "home"),
        "LANG": "C.UTF-8",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
        **{f"AGENT_RUNTIME_{name}": value for name, value in named.items()},
    }


@contextlib.contextmanager
def supervisor(
    home: Path,
    claude: str,
    *,
    program: Sequence[str] = SERVE,
    api_url: str | None = None,
    **settings: str,
) -> Iterator[Supervised]:
    """Run a supervisor while the block lasts; the names of *settings* lack their common prefix."""
    env = environment(home, claude, **settings)
    if api_url is not None:
        env["ANTHROPIC_BASE_URL"] = api_url
    with (
        (home / "log").open("ab") as log,
        started([sys.executable, *program], env=env, stderr=log, cwd=ROOT) as process,
    ):
        url = first_line(process).removeprefix("listening on ")
        if not url.startswith("http"):
            raise RuntimeError(f"the supervisor did not start: {(home / 'log').read_text()[-300:]}")
        with contextlib.closing(Http(url)) as connection:
            yield Supervised(process.pid, home, connection)


@contextlib.contextmanager
def started(argv: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with its stdout piped while the block lasts, and end it."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def first_line(process: subprocess.Popen[bytes]) -> str:
    """Wait for the first line that a process prints; return it."""
    if process.stdout is None:
        raise ValueError("its stdout is not piped")
    return process.stdout.readline().decode().strip()


@contextlib.contextmanager
def bare_server() -> Iterator[tuple[subprocess.Popen[bytes], Http]]:
    """Run starlette and uvicorn with nothing else; yield the process and a connection to it."""
    with contextlib.ExitStack() as held:
        process = held.enter_context(started([sys.executable, *BARE], cwd=ROOT))
        url = first_line(process).removeprefix("listening on ")
        yield process, held.enter_context(contextlib.closing(Http(url)))


def child_command(*words: str) -> str:
    """Return the command of the child that plays *words*: a Python without site packages, which starts soon."""
    return " ".join([sys.executable, "-I", "-S", str(CHILD), *words])


def nothing_cli(home: Path) -> str:
    """Write the CLI that does nothing to *home*; return its command."""
    path = home / "nothing"
    path.write_text(NOTHING)
    path.chmod(0o755)
    return str(path)


def epoch(text: str) -> float:
    """Convert an instant in a record to seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


def message(**fields: Any) -> str:
    """Return the message that tells a child what to do."""
    return json.dumps(fields)
