"""What the demo plays on: a stand-in API, a supervisor as a process of its own, and directories that all go again."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from agent_runtime.demo.outside import kill_marked
from agent_runtime.secret_writer import put
from agent_runtime.standins.messages_api import MessagesApi, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_runtime.demo.choice import Cli
    from agent_runtime.demo.interruptions import Interruptions
    from agent_runtime.demo.timeline import Timeline
    from agent_runtime.tokens import Token

START_TIMEOUT_SECONDS = 30.0
STEP_TIMEOUT_SECONDS = 60.0
END_TIMEOUT_SECONDS = 20.0
ANSWER_TIMEOUT_SECONDS = 100.0
LOOK_AGAIN_SECONDS = 0.01
SLOTS = 5
SUPERVISOR_SETTINGS = {
    "SLOTS": str(SLOTS),
    "TIMEOUT": "90",
    "STOP_GRACE": "1",
    "DRAIN_TIMEOUT": "2",
    "LOG_LEVEL": "info",
    "TOKEN_DELIVERY": "env",  # the promises are those of a token that is fixed at the spawn, on every version alike
    "PARK": "0",
}


class Stuck(Exception):
    """The demo cannot go on; the message says why."""


class Stage:
    """
    Everything that has to be there, and has to go again.

    Attributes:
        run: Tells this demo's executions from those of another one that runs at the same time.
    """

    def __init__(self, cli: Cli, timeline: Timeline, interruptions: Interruptions, home: Path) -> None:
        self.cli = cli
        self.timeline = timeline
        self.say = timeline.say
        self.api = MessagesApi()
        self.run = secrets.token_hex(4)
        self.home = home
        self.workspace = home / "workspace"
        self.data_dir = home / "data"
        self.log = home / "supervisor.log"
        self.token_file = home / "secret" / "token"
        self.client = httpx.Client(trust_env=False)
        self.execution_ids: list[str] = []
        self.api_url = ""
        self.supervisor: subprocess.Popen[bytes] | None = None
        self._interruptions = interruptions
        for directory in (self.workspace, self.data_dir, self.token_file.parent, home / "config", home / "home"):
            directory.mkdir(mode=0o700)

    def write_token(self, token: Token) -> float:
        """Write the secret file as a backend does; tells when it was complete, in seconds since the epoch."""
        put(self.token_file, token.secret.encode())
        return time.time()

    def start_supervisor(self) -> None:
        """
        Start it and wait until it answers.

        Raises:
            Stuck: It does not.
        """
        environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.home / "home"),
            "LANG": "C.UTF-8",
            "ANTHROPIC_BASE_URL": self.api_url,
            "AGENT_RUNTIME_TOKEN_FILE": str(self.token_file),
            "AGENT_RUNTIME_DATA_DIR": str(self.data_dir),
            "AGENT_RUNTIME_CONFIG_DIR": str(self.home / "config"),
            "AGENT_RUNTIME_WORKSPACE": str(self.workspace),
            "AGENT_RUNTIME_CLAUDE": self.cli.command,
            **{f"AGENT_RUNTIME_{name}": value for name, value in SUPERVISOR_SETTINGS.items()},
        }
        with self._interruptions.deferred(), self.log.open("ab") as log:
            self.supervisor = subprocess.Popen(
                [sys.executable, "-m", "agent_runtime", "serve", "--port", "0"],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # so that Ctrl-C in a terminal is ours to answer
            )
        url = self._first_line(self.supervisor).removeprefix("listening on ")
        if not url.startswith("http://127.0.0.1:"):
            raise Stuck(f"the supervisor did not start: {self._last_log_line()}")
        self.client.base_url = httpx.URL(url)
        self.client.timeout = httpx.Timeout(ANSWER_TIMEOUT_SECONDS)
        self.say("supervisor", f"listening on {url}, pid {self.supervisor.pid}, {SLOTS} slots")

    def _first_line(self, supervisor: subprocess.Popen[bytes]) -> str:
        if supervisor.stdout is None:
            return ""
        if not select.select([supervisor.stdout], [], [], START_TIMEOUT_SECONDS)[0]:
            raise Stuck(f"the supervisor did not answer within {START_TIMEOUT_SECONDS:.0f} s")
        return supervisor.stdout.readline().decode(errors="replace").strip()

    def _last_log_line(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"

    def until(self, what: str, happened: Callable[[], bool], timeout_seconds: float = STEP_TIMEOUT_SECONDS) -> None:
        """
        Wait until something can be seen to have happened.

        Raises:
            Stuck: It did not, or the supervisor has ended.
        """
        deadline = time.monotonic() + timeout_seconds
        while not happened():
            if self.supervisor is not None and self.supervisor.poll() is not None:
                raise Stuck(f"the supervisor has ended by itself: {self._last_log_line()}")
            if time.monotonic() > deadline:
                raise Stuck(f"{what}: not within {timeout_seconds:.0f} s")
            time.sleep(LOOK_AGAIN_SECONDS)

    def end_supervisor(self) -> int | None:
        """Ask it to end, as a container's stop does; tells its exit code, None if it does not end."""
        if self.supervisor is None:
            return None
        self.supervisor.terminate()
        try:
            return self.supervisor.wait(END_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def keep_log(self) -> Path | None:
        """Save the supervisor's log from the general cleaning up."""
        if not self.log.exists():
            return None
        descriptor, name = tempfile.mkstemp(prefix="agent-runtime-demo-", suffix=".log")
        os.close(descriptor)
        shutil.copyfile(self.log, name)
        return Path(name)

    def clear(self) -> None:
        """End and remove everything, whatever state it is in."""
        supervisor = self.supervisor
        if supervisor is not None:
            if supervisor.poll() is None:
                # The first signal lets running executions finish, a second one ends them politely and at once; two
                # different ones, because two equal ones may arrive as one.
                for number in (signal.SIGTERM, signal.SIGINT):
                    supervisor.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    supervisor.wait(END_TIMEOUT_SECONDS)
            if supervisor.poll() is None:
                supervisor.kill()
                supervisor.wait()
            if supervisor.stdout is not None:
                supervisor.stdout.close()
        if left := kill_marked(self.execution_ids):
            self.say("demo", f"had to end what the supervisor left running: {left} processes")
        self.client.close()
        shutil.rmtree(self.home, ignore_errors=True)


@contextlib.contextmanager
def staged(cli: Cli, timeline: Timeline, interruptions: Interruptions) -> Iterator[Stage]:
    """Set the stage while the block lasts; when it is left, in whatever way, nothing stays behind."""
    with contextlib.ExitStack() as held:
        with interruptions.deferred():
            home = Path(tempfile.mkdtemp(prefix="agent-runtime-demo-"))
            held.callback(shutil.rmtree, home, ignore_errors=True)
            stage = Stage(cli, timeline, interruptions, home)
            stage.api_url = held.enter_context(serve(stage.api))
        timeline.say("api", f"a stand-in of the Messages API answers on {stage.api_url}; nothing leaves this machine")
        try:
            yield stage
        finally:
            with interruptions.deferred():
                stage.clear()
                held.close()
