"""
What a scenario of the demo plays on: a stand-in API, a supervisor process, tokens, executions, temporary directories.

Everything that a scenario does, or waits for, is a method here; the scenarios say in which order, and what must hold.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import psutil

from agent_runtime.claude.invocation import EXECUTION_ID_VARIABLE
from agent_runtime.client import SyncAgentClient
from agent_runtime.delivery.delivery import RELAY
from agent_runtime.demo.choice import Cli
from agent_runtime.demo.execution import DemoExecution, result_of
from agent_runtime.demo.report import Report
from agent_runtime.demo.timeline import Timeline
from agent_runtime.model.tokens import Token
from agent_runtime.secret.writer import put
from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, serve

STEP_TIMEOUT_SECONDS = 100.0
END_TIMEOUT_SECONDS = 20.0
GONE_TIMEOUT_SECONDS = 10.0
PATIENCE_SECONDS = 2.0
LOOK_AGAIN_SECONDS = 0.01
RAISED_AGAIN_SECONDS = 0.2
SLOTS = 5


class CannotContinue(Exception):
    """The demo cannot go on; the message says why."""


class Interrupted(BaseException):
    """A signal asked for the end of the demo; no :class:`Exception`, so that no handler of errors catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """
    Raise :class:`Interrupted` in the block, in the main thread, when SIGINT, SIGTERM or SIGHUP arrives.

    After the block these signals are ignored, so that cleaning up is not interrupted. A signal that was ignored before
    the block, as under ``nohup``, stays ignored.
    """
    arrived: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        # Python drops an exception that is raised within a finalizer, so it is raised again until the block ends.
        arrived.append(number)
        signal.setitimer(signal.ITIMER_REAL, RAISED_AGAIN_SECONDS)
        raise Interrupted(arrived[0])

    wanted = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    for number in (*wanted, signal.SIGALRM):
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in (*wanted, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)


def processes_of(execution_ids: Collection[str]) -> set[psutil.Process]:
    """Return all live processes of this machine that have one of these execution ids in their environment."""
    found = set()
    for process in psutil.process_iter():
        # A process that has ended has no environment; that of another user's process cannot be read.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(EXECUTION_ID_VARIABLE) in execution_ids:
                found.add(process)
    return found


class Stage:
    """
    The processes, servers and directories of one supervisor; all are removed at its end.

    Args:
        held: Removes everything at its end.
        delivery: ``env``, so that on every version of the CLI a token is fixed at the spawn; or ``relay``.
        tokens: How many tokens the API accepts.

    Attributes:
        executions: Those that :meth:`start` has started.
        arguments: Those of processes of executions, as far as they were collected.
        check: As in :class:`Report`, as is ``figure``.
        client: The client of the supervisor; set by :meth:`start_supervisor`, as is ``supervisor``, its process.
    """

    supervisor: subprocess.Popen[bytes]
    client: SyncAgentClient

    def __init__(
        self,
        cli: Cli,
        timeline: Timeline,
        report: Report,
        held: contextlib.ExitStack,
        *,
        delivery: str = "env",
        tokens: int = 1,
    ) -> None:
        directory = tempfile.TemporaryDirectory(prefix="agent-runtime-demo-", ignore_cleanup_errors=True)
        home = Path(held.enter_context(directory))
        self.say, self.check, self.figure = timeline.say, report.check, report.figure
        self.workspace, self.data_dir = home / "workspace", home / "data"
        self.log = home / "supervisor.log"
        self.executions: list[DemoExecution] = []
        self.arguments: list[str] = []
        self.tokens = [Token(f"sk-ant-oat01-demo-{secrets.token_hex(24)}") for _ in range(tokens)]
        self.api = MessagesApi()
        self.api.on_other_tokens("invalid")
        for token in self.tokens:
            self.api.accept(token)
        self._run_id = secrets.token_hex(4)
        self._token_file = home / "secret" / "token"
        self._held = held
        for name in ("workspace", "data", "secret", "config", "home"):
            (home / name).mkdir(mode=0o700)
        api_url = held.enter_context(serve(self.api))
        held.callback(self._end_executions)
        self.say("api", f"a stand-in of the Messages API answers on {api_url}; nothing leaves this machine")
        settings = {
            "TOKEN_FILE": self._token_file,
            "DATA_DIR": self.data_dir,
            "CONFIG_DIR": home / "config",
            "WORKSPACE": self.workspace,
            "CLAUDE": cli.command,
            "SLOTS": SLOTS,
            "TIMEOUT": 90,
            "STOP_GRACE": 1,
            "DRAIN_TIMEOUT": 2,
            "PARK": 60 if delivery == RELAY else 0,
            "TOKEN_DELIVERY": delivery,
        }
        self._environ = {f"AGENT_RUNTIME_{name}": str(value) for name, value in settings.items()}
        self._environ |= {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home / "home"), "LANG": "C.UTF-8"}
        self._environ["ANTHROPIC_BASE_URL"] = api_url

    # -- the supervisor

    def start_supervisor(self) -> None:
        """
        Write the first token, start the supervisor, and wait until it is ready.

        Raises:
            CannotContinue: The supervisor did not start.
        """
        self.write_token(0)
        with self.log.open("ab") as log:
            supervisor = self.supervisor = subprocess.Popen(
                [sys.executable, "-m", "agent_runtime", "serve", "--port", "0"],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # so that Ctrl-C in a terminal reaches only the demo
            )
        self._held.callback(self._stop_supervisor)
        out = supervisor.stdout
        assert out is not None, "it is piped"  # noqa: S101
        url = out.readline().decode(errors="replace").strip().removeprefix("listening on ")
        if not url.startswith("http://127.0.0.1:"):
            raise CannotContinue(f"the supervisor did not start: {self._last_log_line()}")
        self.client = self._held.enter_context(SyncAgentClient(url, patience_seconds=PATIENCE_SECONDS))
        self.say("supervisor", f"listening on {url}, pid {supervisor.pid}, {SLOTS} slots")
        self.wait_until_ready()

    def end_supervisor(self) -> int | None:
        """End the supervisor by SIGTERM, as a container's stop does; return its exit code, None if it does not end."""
        self.supervisor.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.supervisor.wait(END_TIMEOUT_SECONDS)
        return None

    def save_log(self) -> Path:
        """Copy the supervisor's log to a file that is not removed at the end, and return its path."""
        descriptor, name = tempfile.mkstemp(prefix="agent-runtime-demo-", suffix=".log")
        os.close(descriptor)
        return Path(shutil.copyfile(self.log, name))

    # -- tokens and executions

    def write_token(self, number: int) -> None:
        """Write a token to the secret file as a backend does."""
        token = self.tokens[number]
        put(self._token_file, token.secret.encode())
        self._written_at = time.monotonic()
        self.say("backend", f"wrote token {token.fingerprint} to the secret file; that is all it does")

    def refuse_token(self, number: int, fault: str) -> None:
        """Make the API answer a token with *fault* from now on, and end the tools with the same number."""
        token = self.tokens[number]
        self.api.on(token, fault)
        self.say("api", f"answers token {token.fingerprint} from now on: {fault.replace('_', ' ')}")
        self.end_tools(number)

    def measure_first_request(self, number: int, what: str = "first request with it") -> None:
        """Measure the time from the write of a token to its first request, unless an execution ends without one."""
        token = self.tokens[number]

        def first() -> float | None:
            return next((each.at for each in self.api.requests if each.script and each.carries(token)), None)

        self.wait_until("a request with the new token", lambda: first() or any(each.answer for each in self.executions))
        at = first()
        self.figure(f"token file written -> {what}", seconds(None if at is None else at - self._written_at))

    def start(self, name: str, *tools: Tool) -> DemoExecution:
        """Submit a task whose model calls these tools, one after the other."""
        self.api.script(name, *tools, Text(text=result_of(name)))
        execution = DemoExecution(name, f"demo-{self._run_id}-{name}", self.client, self.say)
        self.executions.append(execution)
        return execution

    def end_tools(self, number: int) -> None:
        """Create the file that the tools with this number wait for, so that they end."""
        (self.workspace / f"go-{number}").touch()

    def tools_run(self, execution: DemoExecution) -> list[str]:
        """Return the number of each waiting tool of the execution that has begun, once for each time."""
        trace = self.workspace / f"ran-{execution.name}"
        return trace.read_text().split() if trace.exists() else []

    def collect_arguments(self) -> None:
        """Add the arguments of all processes of executions to :attr:`arguments`."""
        for process in processes_of([each.execution_id for each in self.executions]):
            with contextlib.suppress(psutil.Error):
                self.arguments += process.cmdline()

    def search_for_tokens(self) -> tuple[int, int, int]:
        """
        Search the supervisor's files, its log, the answers and the processes' arguments.

        Returns:
            How many bytes were searched, and how many of the texts hold a token, or the mark that stands for one.
        """
        files = [path for path in self.data_dir.rglob("*") if path.is_file()]
        texts = [path.read_bytes() for path in [*files, self.log]]
        texts += [argument.encode(errors="replace") for argument in self.arguments]
        texts += [each.text for each in self.executions]
        secrets = [token.secret.encode() for token in self.tokens]
        marks = [f"[token:{token.fingerprint}]".encode() for token in self.tokens]
        found, marked = (sum(any(each in text for each in these) for text in texts) for these in (secrets, marks))
        return sum(map(len, texts)), found, marked

    # -- waiting

    def wait_until(self, what: str, happened: Callable[[], object]) -> None:
        """
        Wait until *happened* returns a true value; *what* names that in the error.

        Raises:
            CannotContinue: It did not within the time limit, or the supervisor has ended.
        """
        deadline = time.monotonic() + STEP_TIMEOUT_SECONDS
        while not happened():
            if self.supervisor.poll() is not None:
                raise CannotContinue(f"the supervisor has ended by itself: {self._last_log_line()}")
            if time.monotonic() > deadline:
                raise CannotContinue(f"{what}: not within {STEP_TIMEOUT_SECONDS:.0f} s")
            time.sleep(LOOK_AGAIN_SECONDS)  # nothing announces a change in the process table or a log

    def wait_until_ready(self) -> None:
        """Wait until the supervisor has loaded a usable token."""
        self.wait_until("ready", lambda: self.client.health().unready is None)

    def wait_for_answer(self, execution: DemoExecution) -> None:
        """Wait until the execution has been answered."""
        self.wait_until(f"an answer to {execution.name}", lambda: execution.answer)

    def wait_until_all(
        self, executions: list[DemoExecution], what: str, happened: Callable[[DemoExecution], object]
    ) -> int:
        """Wait until *happened* is true of all executions, or one has ended; return of how many it is true."""

        def count() -> int:
            return sum(each.answer is None and bool(happened(each)) for each in executions)

        self.wait_until(what, lambda: count() == len(executions) or any(each.answer for each in executions))
        return count()

    def wait_until_busy(self, executions: list[DemoExecution], number: int) -> int:
        """Wait until all run the tool with this number, or one execution has ended; return how many run it."""
        what = f"all in the middle of tool {number}"
        return self.wait_until_all(executions, what, lambda each: str(number) in self.tools_run(each))

    def wait_until_gone(self, execution_id: str, seen: set[psutil.Process]) -> float | None:
        """
        Wait until no process of the execution is left; processes that are found meanwhile are added to *seen*.

        Two scans in a row must find nothing: a process in the middle of ``execve`` shows an empty environment.

        Returns:
            The monotonic time at which the first of these scans had ended; None: not all processes ended in time.
        """
        deadline = time.monotonic() + GONE_TIMEOUT_SECONDS
        gone_at: float | None = None
        while time.monotonic() < deadline:
            if found := processes_of([execution_id]):
                seen |= found
                gone_at = None
            elif gone_at is not None:
                return gone_at
            else:
                gone_at = time.monotonic()
            time.sleep(LOOK_AGAIN_SECONDS)  # nothing announces a change in the process table or a log
        return None

    def _last_log_line(self) -> str:
        return ["it said nothing", *self.log.read_text(errors="replace").splitlines()][-1]

    def _stop_supervisor(self) -> None:
        # The first signal lets running executions finish, a second one ends them at once, by their stop sequence. They
        # are different, because two equal signals may arrive as one.
        for number in (signal.SIGTERM, signal.SIGINT):
            self.supervisor.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.supervisor.wait(END_TIMEOUT_SECONDS)
        self.supervisor.kill()
        self.supervisor.communicate()

    def _end_executions(self) -> None:
        left = processes_of([each.execution_id for each in self.executions])
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if left:
            self.say("demo", f"had to end what the supervisor left running: {len(left)} processes")


def seconds(number: float | None) -> str:
    """Format a duration in seconds; ``-`` for None."""
    return "-" if number is None else f"{number:.3f} s"
