"""
Find out, on a loopback stand-in, whether this very CLI reads its credentials file again while it runs.

The behaviour is not documented, and the versions differ, so it is proved for the executable in use and the proof is
kept with the executable's hash. Two ways in which a token can change under a running CLI are tried, each with a process
of its own:

- between two requests: does the next one carry the new token? From 2.1.114 on, not on 2.1.30;
- after a refusal: does the CLI's own retry carry it? From 2.1.30 on, not up to 2.0.76.

The CLI is started as attempts start it, but in a home of its own, with made-up tokens, and without anything that would
make it talk to another host than loopback.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec

from agent_runtime.claude import invocation as cli_command
from agent_runtime.claude.credential_env import BASE_URL_VARIABLE, PROXIES
from agent_runtime.claude.executable import Binary
from agent_runtime.claude.last_words import LastWords
from agent_runtime.delivery.credentials_file import CredentialsFile, owner_of
from agent_runtime.delivery.delivery import ReloadBehaviour
from agent_runtime.delivery.private_files import make_directory, write_new
from agent_runtime.errors import AgentRuntimeError, ErrorClass
from agent_runtime.evidence.detector import Channel
from agent_runtime.evidence.verdict import Ending, verdict
from agent_runtime.model.task import Task
from agent_runtime.model.tokens import OAUTH_PREFIX, Token
from agent_runtime.process.child import Command, new_mark, spawn
from agent_runtime.process.pipes import Pipes, Wake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from agent_runtime.process.child import Child
    from agent_runtime.process.framing import Lines
    from agent_runtime.standins.messages_api import MessagesApi

TIMEOUT_SECONDS = 30.0
"""How long each of the two processes may take; a current CLI needs one to two seconds."""

TURN_SECONDS = 0.005
CATCH_UP_SECONDS = 0.25
SWEEP_SECONDS = 5.0
LINE_LIMIT_BYTES = 64 * 1024
VERSION_LIMIT = 40
NOWHERE = "http://127.0.0.1:9"
PROMPT = "[[script:proof]] Run the command."
ELSEWHERE = ("ANTHROPIC_", "CLAUDE", "OTEL_", "BETA_TRACING_", "SENTRY_")
"""Variables that could send requests or reports elsewhere, or change what is proved."""


class ReloadCheckFailed(AgentRuntimeError):
    """It could not be found out; that says nothing about the CLI."""


class DoesNotRun(ReloadCheckFailed):
    """The CLI ended by itself, badly, each time it was started; the message says what it said."""


class _EndedEarly(ReloadCheckFailed):
    """It ended before it had made a request."""


class ReloadResult(msgspec.Struct, frozen=True, kw_only=True):
    """
    What was found out about one executable.

    Attributes:
        version: What the CLI says of itself.
        rereads: Whether a newer token gets to a running process at all; for what that takes see :attr:`reach`.
        seconds_from_write_to_request: To the next request, with a short tool call in between; None: that had the old
            token.
        seconds_from_write_to_retry: To the CLI's own retry after a refusal; None: that had the old token.
        at: Epoch seconds.
    """

    version: str | None
    binary_hash: str
    rereads: bool
    seconds_from_write_to_request: float | None = None
    seconds_from_write_to_retry: float | None = None
    at: float = 0.0

    @property
    def reload_behaviour(self) -> ReloadBehaviour:
        """When a running process gets a newer token."""
        if not self.rereads:
            return ReloadBehaviour.NEVER
        return ReloadBehaviour.ON_REFUSAL if self.seconds_from_write_to_request is None else ReloadBehaviour.ON_REQUEST


def check_reload(
    command: tuple[str, ...],
    environ: Mapping[str, str],
    *,
    user: str | None = None,
    called_off: threading.Event | None = None,
    mark: Callable[[], str] | None = None,
    directory: Path | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> ReloadResult:
    """
    Run the CLI and tell what it does; when this returns nothing of it is left.

    Args:
        environ: The supervisor's.
        user: As whom the CLI runs; None: as we do.
        called_off: Set it to end at once.
        mark: Gives a mark for each process, so that one that a killed supervisor has left is found again.
        directory: Where the CLI's home is made, so that one that a killed supervisor has left is found again; the
            system's own for temporary files where that is None, or where another user must get there.
        timeout_seconds: For each of the processes.

    Raises:
        ReloadCheckFailed: It could not be found out.
        SpawnFailed: The CLI could not be started.
    """
    binary = Binary.of(command, environ.get("PATH"))
    binary_hash = binary.content_hash()
    root: Path | None = None
    try:
        if directory is not None and user is None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        root = Path(tempfile.mkdtemp(prefix="agent-runtime-proof-", dir=directory if user is None else None))
        if user is not None:
            root.chmod(0o711)  # ours, so that nothing can be planted in it; the CLI's homes in it are the user's
        stage = _Stage(
            root, command, environ, user=user, called_off=called_off, mark=mark, timeout_seconds=timeout_seconds
        )
        version, fault = stage.version()
        try:
            to_request = stage.next_request()
        except _EndedEarly:
            if fault is not None:
                raise DoesNotRun(fault) from None
            raise
        to_retry = stage.retry()
    except (OSError, RuntimeError) as error:
        raise ReloadCheckFailed(f"the stand-in for the proof could not be set up: {error}") from None
    finally:
        if root is not None:
            shutil.rmtree(root, ignore_errors=True)
    if Binary.of(command, environ.get("PATH")).key != binary.key:
        raise ReloadCheckFailed("the CLI was replaced meanwhile")
    return ReloadResult(
        version=version,
        binary_hash=binary_hash,
        rereads=to_retry is not None,
        seconds_from_write_to_request=to_request,
        seconds_from_write_to_retry=to_retry,
        at=time.time(),
    )


class _Stage:
    """A home for the CLI, and what the two ways have in common."""

    def __init__(
        self,
        root: Path,
        command: tuple[str, ...],
        environ: Mapping[str, str],
        *,
        user: str | None,
        called_off: threading.Event | None,
        mark: Callable[[], str] | None,
        timeout_seconds: float,
    ) -> None:
        self._root = root
        self._command = command
        self._environ = environ
        self._user = user
        self._called_off = called_off or threading.Event()
        self._mark = mark or (lambda: new_mark(root))
        self._timeout_seconds = timeout_seconds

    def version(self) -> tuple[str | None, str | None]:
        """Ask the CLI for its version, and tell how it ended where it ended badly."""
        said: list[bytes] = []
        with self._running(("--version",), b"", self._home("version"), take=said.append) as run:
            run.until(lambda: False)
            fault = run.fault
        words = b" ".join(said[:1]).decode(errors="replace").split()
        return words[0][:VERSION_LIMIT] if words and words[0].isprintable() else None, fault

    def next_request(self) -> float | None:
        """
        Write the new token while a request waits for its answer.

        Returns:
            Seconds from the write to the next request; None: that had the old token.
        """
        from agent_runtime.standins import messages_api

        api, old, new = messages_api.MessagesApi(), _made_up(), _made_up()
        api.script("proof", messages_api.Tool(command="true", gate="written"), messages_api.Text(text="done"))
        with self._conversation(api, old) as (run, file):
            run.must_see(lambda: api.seen(old).requests >= 1)
            file.write(new)
            written_at = time.monotonic()
            api.open_gate("written")
            run.until(lambda: api.seen(new).requests >= 1 or api.seen(old).requests >= 2)
        return _seconds_from(written_at, api, new)

    def retry(self) -> float | None:
        """
        Write the new token after the old one was refused.

        Returns:
            Seconds from the write to the CLI's own retry; None: that had the old token, or there was none.
        """
        from agent_runtime.standins.messages_api import MessagesApi

        api, old, new = MessagesApi(), _made_up(), _made_up()
        api.on(old, "expired")
        with self._conversation(api, old) as (run, file):
            run.must_see(lambda: api.seen(old).by_status[HTTPStatus.UNAUTHORIZED] >= 1)
            file.write(new)
            written_at = time.monotonic()
            refused_before = api.seen(old).requests
            # One with the old token may have been on its way.
            run.until(lambda: api.seen(new).requests >= 1 or api.seen(old).requests >= refused_before + 2)
        return _seconds_from(written_at, api, new)

    @contextlib.contextmanager
    def _conversation(self, api: MessagesApi, token: Token) -> Iterator[tuple[_Run, CredentialsFile]]:
        home = self._home(secrets.token_hex(4))
        file = CredentialsFile(home, self._user)
        file.write(token)
        with self._talking(api, home, {}) as run:
            yield run, file

    @contextlib.contextmanager
    def _talking(self, api: MessagesApi, home: Path, delivered: Mapping[str, str]) -> Iterator[_Run]:
        from agent_runtime.standins.messages_api import serve

        with serve(api) as base_url:
            settings_file = cli_command.write_settings(
                lambda name, content: write_new(self._root, f"{home.name}-{name}", content, owner_of(self._user)),
                delivered,
                {BASE_URL_VARIABLE: base_url},
            )
            task, session = Task(message=PROMPT), cli_command.Session(uuid4())
            words = cli_command.arguments(task, session, settings_file=settings_file, mcp_file=None)
            stdin_bytes = cli_command.stdin_bytes(task, session)
            with self._running(words, stdin_bytes, home, base_url=base_url, delivered=delivered) as run:
                yield run

    @contextlib.contextmanager
    def _running(
        self,
        words: tuple[str, ...],
        stdin_bytes: bytes,
        home: Path,
        *,
        base_url: str = NOWHERE,
        delivered: Mapping[str, str] | None = None,
        take: Callable[[bytes], None] = lambda _: None,
    ) -> Iterator[_Run]:
        inherited = {
            name: value
            for name, value in self._environ.items()
            if name not in PROXIES and not name.upper().startswith(ELSEWHERE)
        }
        env = cli_command.environment(
            inherited | {BASE_URL_VARIABLE: base_url, "HOME": str(home)},
            execution_id="proof",
            config_dir=home,
            delivered=delivered or {},
            as_root=self._user is None and os.geteuid() == 0,
        )
        argv = (*cli_command.resolve(self._command, env.get("PATH")), *words)
        command = Command(argv=argv, env=env, cwd=home, user=self._user, mark=self._mark())
        child = spawn(command)
        wake = Wake()
        try:
            give_up_at = time.monotonic() + self._timeout_seconds
            yield _Run(child, wake, stdin_bytes, take=take, called_off=self._called_off, give_up_at=give_up_at)
        finally:
            child.kill()
            child.sweep(time.monotonic() + SWEEP_SECONDS)
            child.close()
            wake.close()

    def _home(self, name: str) -> Path:
        return make_directory(self._root, name, owner_of(self._user))


class _Run:
    """One CLI process, read until something is seen."""

    def __init__(
        self,
        child: Child,
        wake: Wake,
        stdin_bytes: bytes,
        *,
        take: Callable[[bytes], None],
        called_off: threading.Event,
        give_up_at: float,
    ) -> None:
        self._take = take
        self._called_off = called_off
        self._give_up_at = give_up_at
        self._child = child
        self._last_words = LastWords()
        self._pipes = Pipes(
            stdin=child.stdin,
            stdout=child.stdout,
            stderr=child.stderr,
            pidfd=child.pidfd,
            wake=wake,
            stdin_bytes=stdin_bytes,
            close_stdin=child.close_stdin,
            frame_limit_bytes=LINE_LIMIT_BYTES,
            on_lines=self._lines,
            on_quiet=lambda *_: None,
        )

    def until(self, happened: Callable[[], bool]) -> bool:
        """
        Read on until something has happened, and tell whether it did before the process ended.

        Raises:
            ReloadCheckFailed: It took too long, or the proof was called off.
        """
        while not happened():
            if self._called_off.is_set():
                raise ReloadCheckFailed("the proof was called off")
            if time.monotonic() >= self._give_up_at:
                raise ReloadCheckFailed("the CLI took too long")
            if self._pipes.leader_gone:
                self._pipes.catch_up(CATCH_UP_SECONDS)
                return happened()
            self._pipes.turn(TURN_SECONDS)
        return True

    @property
    def fault(self) -> str | None:
        """How it ended, where it has ended badly, and neither killed nor for want of memory."""
        ended = self._child.poll()
        if ended is None or ended.code == 0:
            return None
        reached = verdict(Ending(ended.code, began=False, last_words=self._last_words.most_informative or None))
        return reached.detail if reached.error_class in (ErrorClass.SPAWN, ErrorClass.LOST_RESULT) else None

    def must_see(self, happened: Callable[[], bool]) -> None:
        """
        Read on until something has happened.

        Raises:
            ReloadCheckFailed: It did not.
        """
        if not self.until(happened):
            raise _EndedEarly("the CLI ended before it had made a request" + (f": {self.fault}" if self.fault else ""))

    def _lines(self, channel: Channel, lines: Lines, _read_at: float) -> None:
        for line in lines:
            if channel is Channel.STDOUT:
                self._take(line.removesuffix(b"\n"))
            else:
                self._last_words.add(line.removesuffix(b"\n"))


def _made_up() -> Token:
    return Token(f"{OAUTH_PREFIX}01-made-up-for-a-proof-{secrets.token_hex(8)}")


def _seconds_from(written_at: float, api: MessagesApi, token: Token) -> float | None:
    arrived_at = [request.at for request in api.requests if request.carries(token) and not request.aside]
    return max(0.0, arrived_at[0] - written_at) if arrived_at else None
