"""
Check on a loopback stand-in of the API whether this very CLI reads its credentials file again while it runs.

The behaviour is undocumented and differs between versions. It is therefore checked for the executable in use, and the
result is stored with the executable's hash. Two ways in which a token can change under a running CLI are tried, each
with a process of its own:

- between two requests: does the next one carry the new token? From 2.1.114 on, not on 2.1.30;
- after a refusal: does the CLI's own retry carry it? From 2.1.30 on, not up to 2.0.76.

The CLI is started as attempts start it, but in a home of its own, with made-up tokens, and without any variable that
could send requests to a host other than loopback.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shlex
import shutil
import tempfile
import threading
import time
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec

from agent_runtime.claude import invocation
from agent_runtime.claude.credential_env import (
    BASE_URL_VARIABLE,
    CONFIG_DIR_VARIABLE,
    PROXIES,
    SHELL_PREFIX_VARIABLE,
    SOCKET_VARIABLE,
)
from agent_runtime.claude.executable import Binary
from agent_runtime.delivery.check_run import CheckRun, DoesNotRun, EndedEarly, ReloadCheckFailed
from agent_runtime.delivery.cli_options import CliOptions
from agent_runtime.delivery.credentials_file import CredentialsFile
from agent_runtime.delivery.private_files import (
    make_directory,
    owner_of,
    short_directory,
    write_new,
    write_shell_prefix,
)
from agent_runtime.model.task import Task
from agent_runtime.model.tokens import OAUTH_PREFIX, OAUTH_VARIABLE, Token
from agent_runtime.process.containment.registry import new_mark
from agent_runtime.process.spawn import Command, Spawner

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from agent_runtime.standins.messages_api import MessagesApi

log = logging.getLogger(__name__)

DIRECTORY_PREFIX = "agent-runtime-reload-check-"
VERSION_LIMIT = 40
HELP_LINES = 2000
NOWHERE = "http://127.0.0.1:9"
NOWHERE_BY_NAME = "http://reload-check.invalid"
"""No host can have this name (RFC 6761, 6.4)."""

SOCKET_SECONDS = 15.0
"""How long a CLI may take to use a socket; a current one needs 2 s, an old one looks for the host for minutes."""

PROMPT = "[[script:check]] Run the command."
REDIRECTING_PREFIXES = ("ANTHROPIC_", "CLAUDE", "OTEL_", "BETA_TRACING_", "SENTRY_")
"""Prefixes of variables that could send requests or reports elsewhere, or change the checked behaviour."""


HELP, RELOAD, SOCKET = "help", "reload_behaviour", "takes_socket"
"""The facts that a check can find out, by their fields in :class:`CliFacts`."""


class ReloadBehaviour(StrEnum):
    """
    When a running CLI takes a newer token from its credentials file.

    ``never``: up to 2.0.76, or not known. ``on_refusal``: on its own retry after a 401, and no sooner: until its token
    is refused it continues with that one (2.1.30). ``on_request``: on its next request (2.1.114, 2.1.330).

    Source: measured on these versions and 1.0.128.
    """

    NEVER = "never"
    ON_REFUSAL = "on_refusal"
    ON_REQUEST = "on_request"


class CliFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    The facts about one executable; None: not tried, unless a field says otherwise.

    Attributes:
        version: As the CLI reports it.
        help: The text that the CLI prints on ``--help``.
        reload_behaviour: When a running process takes a newer token from its file.
        takes_socket: The CLI sends its requests to a Unix socket if it is told to, and its tools do not see the
            variables for that.
    """

    version: str | None = None
    help: str | None = None
    reload_behaviour: ReloadBehaviour | None = None
    takes_socket: bool | None = None

    @property
    def options(self) -> CliOptions | None:
        """The options that the CLI has; None: not known."""
        return None if self.help is None else CliOptions(self.version, self.help)

    def is_missing_any(self, wanted: Collection[str]) -> bool:
        """Whether one of the facts *wanted* is not known."""
        return any(getattr(self, name) is None for name in wanted)

    def updated(self, newer: CliFacts) -> CliFacts:
        """Return these facts, replaced by those that are known in *newer*."""
        known = {name: value for name, value in msgspec.structs.asdict(newer).items() if value is not None}
        return msgspec.structs.replace(self, **known)


class CheckedCli(msgspec.Struct, frozen=True):
    """
    A CLI that can be run to find out facts about it; no process and no file of these runs is left afterwards.

    Attributes:
        environ: The supervisor's environment.
        user: The user that the CLI runs as; None: the supervisor's own.
        mark: Returns a new mark for each process, by which the next supervisor recognises a process that was left.
        directory: Where the CLI's home is made, so that the next supervisor finds one that was left. With None, or with
            another user than the supervisor's own, it is made in the system's directory for temporary files.
        cancelled: An event; when it is set, a running check ends at once.
    """

    spawner: Spawner
    command: tuple[str, ...]
    environ: Mapping[str, str]
    user: str | None = None
    mark: Callable[[], str] | None = None
    directory: Path | None = None
    cancelled: threading.Event = msgspec.field(default_factory=threading.Event)

    def binary(self) -> Binary:
        """
        Return the executable that is there now.

        Raises:
            SpawnFailed: There is no such executable.
        """
        return Binary.of(self.command, self.environ.get("PATH"))

    def find_out(self, *wanted: str) -> CliFacts:
        """
        Run the CLI to find out its version and the facts *wanted*; a help that lists no options stays unknown.

        Raises:
            ReloadCheckFailed: There is no result.
            SpawnFailed: The CLI could not be started.
        """
        binary = self.binary()
        with self._root() as root:
            stage = _Stage(self, root)
            version, fault = stage.version()
            try:
                reload_behaviour = stage.reload_behaviour() if RELOAD in wanted else None
            except EndedEarly as error:
                raise error if fault is None else DoesNotRun(fault) from None
            facts = CliFacts(
                version=version,
                reload_behaviour=reload_behaviour,
                takes_socket=stage.takes_socket() if SOCKET in wanted else None,
                help=stage.help(version) if HELP in wanted else None,
            )
        if self.binary().key != binary.key:
            raise ReloadCheckFailed("the CLI was replaced meanwhile")
        return facts

    @contextlib.contextmanager
    def _root(self) -> Iterator[Path]:
        """Make a directory for the CLI's homes while the block lasts."""
        root: Path | None = None
        try:
            if self.directory is not None and self.user is None:
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            where = self.directory if self.user is None else None
            root = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=where))
            if self.user is not None:
                root.chmod(0o711)  # it stays ours, so that nothing can be planted in it; the homes are the user's
            yield root
        except (OSError, RuntimeError) as error:
            raise ReloadCheckFailed(f"the stand-in for the check could not be set up: {error}") from None
        finally:
            if root is not None:
                shutil.rmtree(root, ignore_errors=True)


class _Stage(msgspec.Struct):
    """Runs of one CLI, each with a home directory of its own below *root*."""

    cli: CheckedCli
    root: Path

    def version(self) -> tuple[str | None, str | None]:
        """Return the CLI's version, and the error that it ended with, if any."""
        lines, fault = self._printed("--version")
        words = b" ".join(lines[:1]).decode(errors="replace").split()
        return words[0][:VERSION_LIMIT] if words and words[0].isprintable() else None, fault

    def help(self, version: str | None) -> str | None:
        """Return the text that the CLI prints on ``--help``; None: it fails, or lists no options."""
        lines, fault = self._printed("--help")
        text = b"\n".join(lines[:HELP_LINES]).decode(errors="replace")
        if fault is None and CliOptions(version, text).is_usable:
            return text
        log.warning("the CLI's --help lists no options: it gets those of a task unchecked")
        return None

    def _printed(self, flag: str) -> tuple[list[bytes], str | None]:
        """Return the lines that the CLI prints on *flag*, and the error that it ended with, if any."""
        lines: list[bytes] = []
        with contextlib.closing(self._run((flag,), b"", self._home(), on_stdout=lines.append)) as run:
            run.read_until(lambda: False)
            return lines, run.fault

    def reload_behaviour(self) -> ReloadBehaviour:
        """Return when a running CLI takes a newer token from its file."""
        if self._takes_newer_token(after_refusal=False):
            return ReloadBehaviour.ON_REQUEST
        return ReloadBehaviour.ON_REFUSAL if self._takes_newer_token(after_refusal=True) else ReloadBehaviour.NEVER

    def _takes_newer_token(self, *, after_refusal: bool) -> bool:
        """
        Write a new token while the CLI runs; return whether a request of the run carries it.

        Args:
            after_refusal: Write it after the old one was refused: the CLI's own retry may carry it. Else write it while
                a request waits for its answer: the next request may carry it.
        """
        from agent_runtime.standins import messages_api

        api, old, new, home = messages_api.MessagesApi(), _random_token(), _random_token(), self._home()
        if after_refusal:
            api.on(old, "expired")
        else:
            api.script("check", messages_api.Tool(command="true", gate="written"), messages_api.Text(text="done"))
        file = CredentialsFile(home, self.cli.user)
        file.write(old)
        with self._conversation(api, home, {}) as run:
            status = HTTPStatus.UNAUTHORIZED
            run.require(lambda: api.seen(old).by_status[status] >= 1 if after_refusal else api.seen(old).requests >= 1)
            file.write(new)
            # After a refusal one request with the old token may have been on its way.
            most = api.seen(old).requests + (2 if after_refusal else 1)
            api.open_gate("written")
            run.read_until(lambda: api.seen(new).requests >= 1 or api.seen(old).requests >= most)
        return any(request.carries(new) and not request.aside for request in api.requests)

    def takes_socket(self) -> bool:
        """
        Return whether the CLI sends its requests to a Unix socket, and its tool does not see the variables for that.

        The host of the base URL does not exist, so a CLI that ignores the socket sends nothing to anybody.
        """
        from agent_runtime.standins import messages_api

        api, token, home = messages_api.MessagesApi(), _random_token(), self._home()
        found = home / "found"
        command = f'printf %s "${BASE_URL_VARIABLE}${SOCKET_VARIABLE}" >{shlex.quote(str(found))}'
        api.script("check", messages_api.Tool(command=command), messages_api.Text(text="done"))
        with short_directory(self.root, self._mark(), self.cli.user) as directory:
            path = directory / "api.sock"
            variables = {
                OAUTH_VARIABLE: token.secret,
                BASE_URL_VARIABLE: NOWHERE_BY_NAME,
                SOCKET_VARIABLE: str(path),
                SHELL_PREFIX_VARIABLE: str(write_shell_prefix(directory)),
                "HTTP_PROXY": NOWHERE,  # a CLI that prefers it to the socket would send prompts in clear
            }
            give_up_at = time.monotonic() + SOCKET_SECONDS
            with self._conversation(api, home, variables, unix_socket=path) as run:
                run.read_until(lambda: api.seen(token).requests >= 2 or time.monotonic() >= give_up_at)
        return api.seen(token).requests >= 2 and found.is_file() and found.stat().st_size == 0

    @contextlib.contextmanager
    def _conversation(
        self, api: MessagesApi, home: Path, delivered: Mapping[str, str], *, unix_socket: Path | None = None
    ) -> Iterator[CheckRun]:
        from agent_runtime.standins.messages_api import serve

        with serve(api, unix_socket=unix_socket) as url:
            if unix_socket is not None and (owner := owner_of(self.cli.user)) is not None:
                os.chown(unix_socket, *owner)
            base_url = url if unix_socket is None else NOWHERE_BY_NAME
            settings_file = invocation.write_settings(
                lambda name, content: write_new(self.root, f"{home.name}-{name}", content, owner_of(self.cli.user)),
                delivered,
                {BASE_URL_VARIABLE: base_url, CONFIG_DIR_VARIABLE: str(home)},
            )
            task, session = Task(message=PROMPT), invocation.Session(uuid4())
            words = invocation.arguments(task, session, settings_file=settings_file, mcp_file=None)
            stdin_bytes = invocation.stdin_bytes(task, session)
            run = self._run(words, stdin_bytes, home, base_url=base_url, delivered=delivered)
            with contextlib.closing(run):
                yield run

    def _run(
        self,
        words: tuple[str, ...],
        stdin_bytes: bytes,
        home: Path,
        *,
        base_url: str = NOWHERE,
        delivered: Mapping[str, str] | None = None,
        on_stdout: Callable[[bytes], None] = lambda _: None,
    ) -> CheckRun:
        inherited = {
            name: value
            for name, value in self.cli.environ.items()
            if name not in PROXIES and not name.upper().startswith(REDIRECTING_PREFIXES)
        }
        env = invocation.environment(
            inherited | {BASE_URL_VARIABLE: base_url, "HOME": str(home)},
            execution_id="reload-check",
            config_dir=home,
            delivered=delivered or {},
            as_root=self.cli.user is None and os.geteuid() == 0,
        )
        argv = (*invocation.resolve(self.cli.command, env.get("PATH")), *words)
        child = self.cli.spawner.spawn(Command(argv=argv, env=env, cwd=home, user=self.cli.user, mark=self._mark()))
        return CheckRun(child, stdin_bytes, on_stdout, self.cli.cancelled)

    def _mark(self) -> str:
        return new_mark(self.root) if self.cli.mark is None else self.cli.mark()

    def _home(self) -> Path:
        return make_directory(self.root, secrets.token_hex(4), owner_of(self.cli.user))


def _random_token() -> Token:
    return Token(f"{OAUTH_PREFIX}01-made-up-for-a-check-{secrets.token_hex(8)}")
