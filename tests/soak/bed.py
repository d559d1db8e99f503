"""Where a soak takes place: one supervisor after the other on the same directories, and all that is below them."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from agent_runtime.process.containment.registry import tag_of
from agent_runtime.process.forkserver.shim import FORK_SERVER_NAME, SHIM_NAME
from agent_runtime.process.linux import cgroup_setup
from agent_runtime.process.linux.syscalls import set_subreaper
from agent_runtime.secret.writer import put
from tests.soak.journal import Invariant, Journal, Tokens
from tests.support.supervised import SCRIPTED, Supervised, supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_runtime.standins.messages_api import MessagesApi

FORK_SERVER, SHIM = FORK_SERVER_NAME.decode(), SHIM_NAME.decode()
ANSWER_SECONDS = 75.0

CLI = """#!/bin/sh
# The lock is held by this process, the CLI it becomes and all that these start: as long as one of them lives.
if [ -n "$AGENT_RUNTIME_EXECUTION_ID" ]; then
    lock="{home}/locks/$AGENT_RUNTIME_EXECUTION_ID"
    exec 9>>"$lock"
    flock -n 9 || echo "$AGENT_RUNTIME_EXECUTION_ID $$ beside $(tail -n 1 "$lock")" >>"{home}/twice"
    echo $$ >&9
    echo "begin $AGENT_RUNTIME_EXECUTION_ID $$" >>"{home}/ran"
fi
exec {cli} "$@"
"""


class Bed:
    """
    The supervisor that runs now, and what is around it.

    Attributes:
        lifetime: Rises whenever the supervisor is begun, ended, stopped or continued.
        answers: The supervisor is meant to answer.
        starts: When each was begun, and when it answered (monotonic seconds).
        storms: When each storm of writes began and ended.
        full: Likewise the times of a full disk.
    """

    def __init__(self, home: Path, journal: Journal, api: MessagesApi, api_url: str, flags: tuple[str, ...]) -> None:
        self.home, self.journal, self.api = home, journal, api
        self.tokens = Tokens(journal, api)
        self.stop, self.calm = threading.Event(), threading.Event()
        self.lifetime = 0
        self.answers = False
        self.storms: list[tuple[float, float]] = []
        self.starts: list[tuple[float, float]] = []
        self.kills: list[float] = []
        self.full: list[tuple[float, float]] = []
        self._api_url, self._flags = api_url, flags
        self._port = "0"
        self._life = contextlib.ExitStack()
        self._running: Supervised | None = None
        set_subreaper()  # whatever the supervisor loses becomes ours, so nothing can be left over unseen
        (home / "locks").mkdir()
        self._cli = home / "cli"
        self._cli.write_text(CLI.format(home=home, cli=SCRIPTED))
        self._cli.chmod(0o755)

    @property
    def running(self) -> Supervised:
        assert self._running is not None
        return self._running

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def client(self, seconds: float = ANSWER_SECONDS) -> httpx.Client:
        """Return a client that keeps no connection open."""
        limits = httpx.Limits(max_keepalive_connections=0)
        return httpx.Client(base_url=self.url, timeout=seconds, limits=limits, trust_env=False)

    # -- the life of the supervisor

    def begin(self) -> None:
        """Start a supervisor on the directories of the one before, and check that nothing of that one is left."""
        environment = {"SCRIPTED_CLI_PAUSE_FACTOR": "0.1"}
        life = supervised(
            self.home,
            api_url=self._api_url,
            claude=str(self._cli),
            token=None,
            environment=environment,
            flags=(*self._flags, "--port", self._port),
            expect_exit=None,
        )
        self.starts.append((time.monotonic(), math.inf))
        self._running = self._life.enter_context(life)
        self.starts[-1] = (self.starts[-1][0], time.monotonic())
        self._port = self._running.url.rpartition(":")[2]
        self._changed(answers=True)
        ours = self._running.process.pid
        self._nothing_else(lambda: [one for one in psutil.Process().children() if one.pid != ours], within_seconds=2)

    def end(self, number: int) -> None:
        """End the supervisor by a signal: SIGTERM lets it drain, and must give 0."""
        if self._running is None:
            return
        self._changed(answers=False)
        self.kills.append(time.monotonic())
        process, log = self._running.process, self._running.log
        before = process.poll()
        code = before if before is not None else self._running.stop(number)
        if code != (0 if number == signal.SIGTERM else -number):
            self.journal.violated(Invariant.EXITS, f"signal {number}: exit {code}")
        self._running = None
        try:
            self._life.close()  # holds the log against every token of its own and against tracebacks
        except AssertionError as error:
            self.journal.violated(Invariant.LOG, str(error)[-2000:])
        self.journal.see("log", log.read_bytes())
        with log.open("rb") as lines:
            for line in lines:
                if b"a fault of the supervisor" in line or b"Task exception" in line:
                    self.journal.violated(Invariant.LOG, line.decode(errors="replace").strip()[:300])
        log.rename(log.with_name(f"supervisor-{len(self.starts)}.log"))

    def suspend(self, seconds: float) -> None:
        """Stop the supervisor for a while."""
        process = self.running.process
        self._changed(answers=False)
        process.send_signal(signal.SIGSTOP)
        try:
            self.stop.wait(seconds)
        finally:
            process.send_signal(signal.SIGCONT)
            self._changed(answers=True)

    def _changed(self, *, answers: bool) -> None:
        self.answers = answers
        self.lifetime += 1

    # -- the token

    def began_in_a_storm(self, asked_at: float) -> bool:
        """Whether a supervisor that was asked then may have found no token yet: it was begun in a storm of writes."""
        return any(
            since < answering and begun <= until and until + 2 > asked_at
            for since, until in self.storms
            for begun, answering in self.starts
        )

    @property
    def token_file(self) -> Path:
        return self.home / "secret" / "token"

    def publish(self, token: str) -> None:
        put(self.token_file, token.encode())

    def heal(self) -> None:
        """Publish a token that is good."""
        self.publish(self.tokens.fresh())

    # -- what is below it

    def family(self) -> list[psutil.Process]:
        """List every living process of the soak but the driver's own."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def named(self, name: str) -> list[psutil.Process]:
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                if process.name() == name:
                    found.append(process)
        return found

    def clis(self) -> list[psutil.Process]:
        """List the leaders of attempts: what the shims have started."""
        found = []
        for shim in self.named(SHIM):
            with contextlib.suppress(psutil.Error):
                found += [one for one in shim.children() if one.name() != SHIM]
        return found

    def cgroups(self) -> list[Path]:
        """List the cgroups of attempts of this data directory."""
        tag = tag_of(self.home / "data")
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        return [
            Path(directory, name)
            for mount in mounts
            if mount[2] == "cgroup2"
            for directory, names, _ in os.walk(mount[1])
            for name in names
            if name.startswith(f"{cgroup_setup.PREFIX}{tag}")
        ]

    def reap(self) -> None:
        """Reap the orphans that have become ours, by their pids; the supervisor is waited for by its own object."""
        ours = self._running.process.pid if self._running else None
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and found.si_pid != ours:
                os.waitpid(found.si_pid, os.WNOHANG)

    def _nothing_else(self, looked_for: Callable[[], list[psutil.Process]], *, within_seconds: float) -> None:
        until = time.monotonic() + within_seconds
        while left := [one for one in looked_for() if _lives(one)]:
            if time.monotonic() > until:
                for one in left:
                    self.journal.violated(Invariant.PROCESSES, described(one))
                return
            time.sleep(0.05)

    def nothing_is_left(self) -> None:
        """Check that nothing of an attempt is left; without a supervisor nothing at all."""
        ours = {self._running.process.pid} if self._running else set()

        def left() -> list[psutil.Process]:
            self.reap()
            found = [one for one in self.family() if one.pid not in ours]
            servers = [one for one in found if _name(one) == FORK_SERVER]
            return [one for one in found if not (ours and len(servers) <= 1 and one in servers)]

        self._nothing_else(left, within_seconds=10)
        until = time.monotonic() + 10  # a group is removed after the last process in it has gone
        while (groups := self.cgroups()) and time.monotonic() < until:
            time.sleep(0.05)  # the supervisor removes it, and nothing tells this process of that
        for group in groups:
            self.journal.violated(Invariant.CGROUPS, group.name)

    def end_all(self) -> None:
        """Kill whatever is still there, each by its pid."""
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.reap()


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return ""


def described(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.pid} {process.name()} below {process.ppid()}: {' '.join(process.cmdline())[:160]}"
    return f"{process.pid}, gone since"


@contextlib.contextmanager
def small_disk(directory: Path, mebibytes: int) -> Iterator[None]:
    """
    Mount a small file system on *directory* for the time of the block.

    Raises:
        subprocess.CalledProcessError: It may not be mounted here.
    """
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(directory)], check=True, capture_output=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=False, capture_output=True)


def fields(body: bytes) -> dict[str, Any]:
    """Decode an object of JSON; anything else is an empty one."""
    import json

    with contextlib.suppress(ValueError):
        value = json.loads(body)
        if isinstance(value, dict):
            return value
    return {}
