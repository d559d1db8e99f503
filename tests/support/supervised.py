"""A real supervisor as a process of its own, with real files, for tests that ask it over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from agent_runtime.client import ClientError
from agent_runtime.secret.writer import put
from tests.support.api_mode import NOBODY, claudes, leading_to, proofs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SCRIPTED_CLI = Path(__file__).with_name("scripted_cli.py")
SCRIPTED = shlex.join([sys.executable, str(SCRIPTED_CLI)])
PROGRAMS = Path(__file__).with_name("programs")
QUICK_CLI = str(PROGRAMS / "quick_cli.sh")
"""A CLI that answers at once, whatever it is asked."""
SUPERVISOR_WITH = ("-m", "tests.support.programs.supervisor_with")
"""For :func:`supervised`: a supervisor with other values of the constants that follow."""

OLD = "sk-ant-oat01-the-old-token-of-these-tests-000000000001"
NEW = "sk-ant-oat01-the-new-token-of-these-tests-000000000002"
API_KEY = "sk-ant-api03-the-api-key-of-these-tests-00000000000003"
DEADLINE_SECONDS = 30.0
TESTED_BY, OWN_PID = "TESTED_BY_PROCESS", str(os.getpid())
"""Variable that each supervisor and its children have, with the pid of the process that runs the test."""


def eventually(condition: Callable[[], Any], within_seconds: float = DEADLINE_SECONDS) -> Any:
    """
    Return the first true value of *condition*, called repeatedly; all tests that must wait use this.

    A 404 counts as not yet: a task that another thread posts may not be admitted.
    """
    until = time.monotonic() + within_seconds
    while True:
        try:
            if value := condition():
                return value
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 404:
                raise
        assert time.monotonic() < until, "it did not happen in time"
        threading.Event().wait(0.01)


@dataclass
class Supervised:
    """A running supervisor, with its files, clients and log."""

    process: subprocess.Popen[str]
    url: str
    home: Path
    log: Path
    client: httpx.Client = field(repr=False)

    @property
    def token_file(self) -> Path:
        return self.home / "secret" / "token"

    @property
    def workspace(self) -> Path:
        return self.home / "workspace"

    @property
    def data_dir(self) -> Path:
        return self.home / "data"

    def write_token(self, token: str) -> None:
        put(self.token_file, token.encode())

    def write_secret(self, content: str) -> None:
        """Write *content* to the secret file by a rename, even if it is no token."""
        fresh = self.token_file.with_name(".fresh")
        fresh.write_text(content)
        fresh.replace(self.token_file)

    def post(self, message: str | dict[str, Any], **fields: Any) -> httpx.Response:
        text = message if isinstance(message, str) else json.dumps(message)
        return self.client.post("/api/task", json={"message": text, **fields})

    def start(self, message: str | dict[str, Any], **fields: Any) -> Pending:
        """Post a task in a thread of its own."""
        return Pending(lambda: self.post(message, **fields))

    def get(self, path: str) -> Any:
        response = self.client.get(path)
        response.raise_for_status()
        return response.json()

    def record(self, execution_id: str) -> dict[str, Any]:
        record: dict[str, Any] = self.get(f"/api/executions/{execution_id}")
        return record

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_SECONDS)


@contextlib.contextmanager
def fails(error_class: str, **words: Any) -> Iterator[pytest.ExceptionInfo[ClientError]]:
    """Expect the client's error of this class; *words* are arguments of :func:`pytest.raises`."""
    with pytest.raises(ClientError, **words) as raised:
        yield raised
    assert raised.value.error_class == error_class, raised.value


class Pending:
    """A request that is under way."""

    def __init__(self, call: Callable[[], httpx.Response]) -> None:
        self._response: httpx.Response | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call: Callable[[], httpx.Response]) -> None:
        try:
            self._response = call()
        except BaseException as error:  # noqa: BLE001 - raised again below
            self._error = error

    def answer(self) -> httpx.Response:
        self._thread.join(DEADLINE_SECONDS * 2)
        if self._error is not None:
            raise self._error
        assert self._response is not None, "no answer in time"
        return self._response


def hanging_task() -> str:
    """Return the message of a task that does nothing until it is ended."""
    return json.dumps({"script": [{"do": "init"}, {"do": "hang"}]})


def marked_processes(execution_id: str) -> list[psutil.Process]:
    """
    Find, in the process table, every process that has the execution's id in its environment.

    Those of other test runs, and of tests that run beside this one, do not count; they may use the same id.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environ = process.environ()
            is_marked = environ.get("AGENT_RUNTIME_EXECUTION_ID") == execution_id
            if is_marked and environ.get(TESTED_BY, OWN_PID) == OWN_PID and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def listening_url(pid: int) -> str:
    """Return the URL at which a process listens, found without its help."""
    process = psutil.Process(pid)
    found = eventually(lambda: [one for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN])
    return f"http://127.0.0.1:{found[0].laddr.port}"


@contextlib.contextmanager
def supervised(
    home: Path,
    *,
    api_url: str = NOBODY,
    claude: str = SCRIPTED,
    token: str | None = OLD,
    environment: Mapping[str, str] | None = None,
    flags: tuple[str, ...] = (),
    expect_exit: int | None = 0,
    prefix: tuple[str, ...] = (),
    program: tuple[str, ...] = ("-m", "agent_runtime"),
    output: int | None = None,
) -> Iterator[Supervised]:
    """
    Run a supervisor in *home* until the block ends; its log is checked for every token the tests use.

    A real CLI reaches the API as :mod:`tests.support.api_mode` describes, unless *environment* has a base URL. The
    results of its reload check are in the data directory from the start, as in an image.

    Args:
        prefix: Words put before the command, such as ``unshare``.
        program: What Python runs instead of the package itself, such as :mod:`tests.support.dying_supervisor`.
        output: A descriptor that gets stdout and stderr; the log is then not checked.
    """
    for name in ("secret", "workspace", "data", "config", "home"):
        (home / name).mkdir(parents=True, exist_ok=True)
    if token is not None:
        put(home / "secret" / "token", token.encode())
    if claude in claudes(os.environ, and_older=True):
        shutil.copy(proofs_of(claude), home / "data")
    log = home / "supervisor.log"
    given = environment or {}
    with leading_to(NOBODY if "ANTHROPIC_BASE_URL" in given else api_url, claude, home / "tls") as way:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home / "home"),
            "LANG": "C.UTF-8",
            TESTED_BY: OWN_PID,
            **way,
            "AGENT_RUNTIME_TOKEN_FILE": str(home / "secret" / "token"),
            "AGENT_RUNTIME_DATA_DIR": str(home / "data"),
            "AGENT_RUNTIME_CONFIG_DIR": str(home / "config"),
            "AGENT_RUNTIME_WORKSPACE": str(home / "workspace"),
            "AGENT_RUNTIME_CLAUDE": claude,
            "AGENT_RUNTIME_LOG_LEVEL": "debug",
            **given,
        }
        with log.open("ab") as sink:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-W", "error", *program, "serve", "--port", "0", *flags],
                env=environ,
                stdout=subprocess.PIPE if output is None else output,
                stderr=sink if output is None else output,
                text=True,
            )
        try:
            line = (
                process.stdout.readline()
                if process.stdout is not None
                else f"listening on {listening_url(process.pid)}"
            )
            if not line.startswith("listening on http://"):
                pytest.fail(f"exit {process.wait(DEADLINE_SECONDS)}: {line!r}\n{log.read_text()}")
            url = line.split()[-1]
            with httpx.Client(base_url=url, timeout=DEADLINE_SECONDS * 2, trust_env=False) as client:
                yield Supervised(process, url, home, log, client)
            if process.poll() is None:
                process.terminate()
            code = process.wait(DEADLINE_SECONDS)
            assert expect_exit is None or code == expect_exit, log.read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
    text = log.read_text()
    assert not any(secret in text for secret in (OLD, NEW, API_KEY)), "a token was logged"
    assert "Traceback" not in text, text
