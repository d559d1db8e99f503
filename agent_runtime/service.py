"""The composition root of ``serve``: everything is put together here, started in order and ended in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import logging
import os
import pwd
import shutil
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from agent_runtime import linux
from agent_runtime.api.access import AccessKey
from agent_runtime.api.access_log import AccessLog
from agent_runtime.api.app import OPEN_PATHS, Api, build_app
from agent_runtime.api.connections import (
    ACCEPTED_AT_ONCE,
    HEADER_LIMIT_BYTES,
    Connection,
    OpenConnections,
    expect_silence,
    places_that_fit,
)
from agent_runtime.api.metrics import Metrics
from agent_runtime.archive import Archive
from agent_runtime.cgroup_group import Limits
from agent_runtime.containment_choice import choose
from agent_runtime.counts import Counts
from agent_runtime.delivery import Deliveries, FileDelivery
from agent_runtime.errors import CannotStart, SettingsInvalid
from agent_runtime.events import EventLog
from agent_runtime.generations import GenerationLedger
from agent_runtime.log import configure
from agent_runtime.nursery import nursery
from agent_runtime.probe import Probe
from agent_runtime.process import await_keepers, become_subreaper, new_mark, sweep_leftovers
from agent_runtime.proofs import BackgroundProver, Proofs
from agent_runtime.redaction import Redactor
from agent_runtime.resumption import Resumption
from agent_runtime.secret_file import SecretFile
from agent_runtime.settings import PREFIX, unknown_variables
from agent_runtime.state import StopReason
from agent_runtime.store.database import StoreUnavailable
from agent_runtime.store.records import RecordStore
from agent_runtime.store.tasks import TaskStore
from agent_runtime.store.transcripts import TranscriptStore
from agent_runtime.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from agent_runtime.log_outlet import Outlet
    from agent_runtime.secret_file import SecretStatus
    from agent_runtime.settings import Settings
    from agent_runtime.starting import Start

log = logging.getLogger(__name__)

DEFAULT_DATA_DIR = Path("/var/lib/agent-runtime")
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
LAG_SECONDS = 1.0
WORKERS = 4
_ANOTHER = "mount a volume that can be written, or name another directory"


def announce(line: str) -> None:
    """Write to stdout; where that is a full pipe that nobody reads, a thread waits, and not the event loop."""
    threading.Thread(target=_write, args=(sys.stdout.fileno(), line.encode()), name="announce", daemon=True).start()


def _write(descriptor: int, data: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(descriptor, data)  # past the buffer of sys.stdout, whose lock the end of the process would wait for


class Server(uvicorn.Server):
    """
    A uvicorn that leaves the signals to us.

    uvicorn would close its listeners first on SIGTERM, so that ``/readyz`` could never say that it drains, and would
    exit by raising the signal again (uvicorn 0.54, ``Server.capture_signals``).
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and say where: the one line that stdout is for."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # asyncio takes one number for how many may wait and how many it accepts at once
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            announce(f"listening on http://{shown}:{port}\n")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


def serve(settings: Settings, environ: Mapping[str, str], start: Start) -> int:
    """
    Run a supervisor until a signal ends it.

    Returns:
        The exit code: 0 after a drain.

    Raises:
        CannotStart: The port, a directory or a lock is not to be had.
        CalledOff: A signal came before the supervisor was there.
    """
    redactor = Redactor()
    counts = Counts(time.time())
    outlet = configure(settings.log_format, settings.log_level, redactor)
    for name in unknown_variables(environ):
        log.warning("%s is no setting and does nothing; see agent-runtime serve --help", name)
    with contextlib.ExitStack() as held:
        held.callback(outlet.flush)
        data_dir = _data_dir(settings, environ)
        held.enter_context(_locked(data_dir / "lock", f"{PREFIX}DATA_DIR"))
        _directory(settings.config_dir, f"{PREFIX}CONFIG_DIR")
        held.enter_context(_locked(settings.config_dir / ".agent-runtime.lock", f"{PREFIX}CONFIG_DIR"))
        if not os.path.isdir(settings.workspace):  # noqa: PTH112 - is_dir() raises behind a closed directory
            raise SettingsInvalid(f"{PREFIX}WORKSPACE: {settings.workspace} is no directory; create it or name another")
        _check_child_user(settings)
        listener = held.enter_context(_listen(settings))
        become_subreaper()
        nursery.most_files = linux.raise_file_limit()
        if ended := sweep_leftovers(data_dir):
            log.warning("processes of an earlier supervisor were still there and have been ended: %d", ended)
        nursery.guard = await_keepers(data_dir)
        held.callback(nursery.close)
        # A supervisor that was killed may have left its children's files, which hold tokens.
        shutil.rmtree(data_dir / "run", ignore_errors=True)
        start.go_on()  # not earlier: also who is called off leaves nothing behind of an earlier supervisor
        ledger = GenerationLedger(data_dir)
        prover = BackgroundProver(
            settings.claude,
            environ,
            Proofs(data_dir),
            user=settings.child_user,
            mark=functools.partial(new_mark, data_dir),
            directory=_passable(_directory(data_dir / "run", f"{PREFIX}DATA_DIR"), settings),
        )
        limits = Limits(settings.execution_memory, settings.execution_pids, settings.execution_cpus)
        containment = choose(settings.containment, functools.partial(new_mark, data_dir), limits)
        containment.sweep_leftovers(data_dir)
        log.info("containment: %s", containment.kind.value)
        deliveries = Deliveries(settings.token_delivery, FileDelivery(settings.config_dir, settings.child_user), prover)
        held.callback(deliveries.close)
        deliveries.start()
        start.go_on()
        changes = SecretChanges(redactor, deliveries)
        secret = SecretFile(
            settings.token_file,
            ledger=ledger,
            withdraw_after_seconds=settings.token_withdraw_after,
            on_change=changes.put,
        )
        records = held.enter_context(contextlib.closing(RecordStore.open(data_dir / "records.sqlite")))
        transcripts, tasks = TranscriptStore(data_dir / "transcripts"), TaskStore(data_dir / "tasks", redactor)
        archive = Archive(records, transcripts, tasks, counts)
        supervisor = Supervisor(
            settings,
            secret=secret,
            ledger=ledger,
            redactor=redactor,
            archive=archive,
            deliveries=deliveries,
            containment=containment,
            probe=None if settings.probe == "off" else Probe(environ),
            events=EventLog(redact=redactor.redact_text, happened=counts.happened),
            environ=environ,
            run_dir=data_dir / "run",
            next_mark=functools.partial(new_mark, data_dir),
            counts=counts,
        )
        start.go_on()
        try:
            archive.account()
        except StoreUnavailable as error:
            log.error("earlier executions cannot be accounted for: %s", error)
        start.go_on()
        secret.start()
        if secret.status.generation is None:
            log.warning(
                "no token yet: %s; it is expected at %s, and agent-runtime doctor says more",
                secret.status.error,
                settings.token_file,
            )
        held.callback(secret.stop)
        start.go_on()
        return asyncio.run(_serve(supervisor, listener, changes, redactor, outlet=outlet, start=start))


class SecretChanges:
    """Carry changes of the secret file from the thread that notices them to the event loop, once there is one."""

    def __init__(self, redactor: Redactor, deliveries: Deliveries) -> None:
        self._redactor = redactor
        self._deliveries = deliveries
        self._loop: asyncio.AbstractEventLoop | None = None
        self._take: Callable[[SecretStatus], None] | None = None

    def put(self, status: SecretStatus) -> None:
        """Take a status, from any thread: its token is replaced in output from here on, and handed to the running."""
        if status.generation is not None:
            self._redactor.add(status.generation.token)
            self._deliveries.generation_loaded(status.generation)
        if self._loop is not None and self._take is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to care
                self._loop.call_soon_threadsafe(self._take, status)

    def deliver_to(self, take: Callable[[SecretStatus], None]) -> None:
        """Call *take* on the running loop from now on."""
        self._loop, self._take = asyncio.get_running_loop(), take


async def _serve(
    supervisor: Supervisor,
    listener: socket.socket,
    changes: SecretChanges,
    redactor: Redactor,
    *,
    outlet: Outlet,
    start: Start,
) -> int:
    settings = supervisor.settings
    access = AccessKey(settings.access_key_file, settings.access_header, redactor)
    if access.required and access.read() is None:
        log.warning("no usable access key in %s: nobody may call until there is one", settings.access_key_file)
    connections = OpenConnections(_places(settings), request_seconds=settings.request_timeout, open_paths=OPEN_PATHS)
    app = build_app(Api(supervisor, access, connections, Metrics(supervisor, lambda: outlet.lost)))
    config = uvicorn.Config(
        AccessLog(app, supervisor.counts, told=settings.access_log),
        http=functools.partial(Connection, places=connections),  # type: ignore[arg-type]  # it is only called
        ws="none",
        h11_max_incomplete_event_size=HEADER_LIMIT_BYTES,
        backlog=ACCEPTED_AT_ONCE,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    server = Server(config)
    ending = Ending(supervisor, server)
    loop = asyncio.get_running_loop()
    # Few, because each keeps memory of its own; what they do is short and goes to one disk.
    loop.set_default_executor(ThreadPoolExecutor(WORKERS, thread_name_prefix="worker"))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.signalled, number)
    start.done()
    webhook = None
    if settings.events_url is not None:
        from agent_runtime.webhook import Webhook

        webhook = Webhook(settings.events_url, access.read, supervisor.events, environ=supervisor.environ)
        webhook.start()
    changes.deliver_to(supervisor.secret_changed)
    supervisor.secret_changed(supervisor.secret.status)
    chores = [asyncio.create_task(supervisor.keep_house()), asyncio.create_task(_watch_lag(supervisor.counts))]
    if settings.resume_interrupted:
        resumption = Resumption(supervisor)
        resumption.turn()  # before anybody can ask for something else
        chores.append(asyncio.create_task(resumption.run()))
    await server.serve(sockets=[listener])
    await ending.finished()
    for chore in chores:
        chore.cancel()
    if webhook is not None:
        await webhook.stop()
    return 0


def _places(settings: Settings) -> int:
    wanted = settings.max_connections
    fitting = places_that_fit(wanted, settings.slots)
    if fitting < wanted:
        log.warning("connections are limited to %d by the limit on open files (ulimit -n)", fitting)
    return fitting


async def _watch_lag(counts: Counts) -> None:
    """Measure once a second how long what is due waits for the event loop."""
    while True:
        asked = time.perf_counter()
        await asyncio.sleep(LAG_SECONDS)
        counts.observe("event_loop_lag_seconds", time.perf_counter() - asked - LAG_SECONDS)


class Ending:
    """What signals do: the first drains, the second ends everything at once; either way nothing is left running."""

    def __init__(self, supervisor: Supervisor, server: Server) -> None:
        self._supervisor = supervisor
        self._server = server
        self._draining: asyncio.Task[None] | None = None

    def signalled(self, number: int) -> None:
        """Take a signal."""
        if self._draining is None:
            log.info("draining on %s", signal.Signals(number).name)
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        else:
            log.warning("ending at once on %s", signal.Signals(number).name)
            self._supervisor.stop_all(StopReason.SHUTDOWN, at_once=True)

    async def _drain(self) -> None:
        try:
            await self._supervisor.drain(self._supervisor.settings.drain_timeout)
        finally:
            # Who follows the events gets a last one, so that no open stream delays the exit.
            self._supervisor.events.close()
            self._server.should_exit = True

    async def finished(self) -> None:
        """Wait for the drain to end."""
        if self._draining is not None:
            await self._draining


def _data_dir(settings: Settings, environ: Mapping[str, str]) -> Path:
    """Find the data directory, or make do with the user's."""
    if settings.data_dir is not None:
        return _directory(settings.data_dir, f"{PREFIX}DATA_DIR")
    with contextlib.suppress(CannotStart):
        return _directory(DEFAULT_DATA_DIR, f"{PREFIX}DATA_DIR")
    state_home = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    fallback = _directory(Path(state_home) / "agent-runtime", f"{PREFIX}DATA_DIR")
    log.warning("%s cannot be written; records are kept in %s", DEFAULT_DATA_DIR, fallback)
    return fallback


def _directory(path: Path, variable: str) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"{variable}: cannot create the directory {path}: {error.strerror}; {_ANOTHER}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise CannotStart(f"{variable}: cannot write to {path} as uid {os.geteuid()}; {_ANOTHER}")
    return path


def _check_child_user(settings: Settings) -> None:
    user = settings.child_user
    if user is None or user.isdecimal():
        return
    try:
        pwd.getpwnam(user)
    except KeyError:
        raise SettingsInvalid(
            f"{PREFIX}CHILD_USER: there is no user {user} here; add it to the image, or name another"
        ) from None


def _passable(path: Path, settings: Settings) -> Path:
    """Let children that run as another user pass through to the files that are theirs; they can list nothing."""
    if settings.child_user is not None:
        for directory in (path, path.parent):
            directory.chmod(directory.stat().st_mode | 0o011)
    return path


@contextlib.contextmanager
def _locked(path: Path, variable: str) -> Iterator[None]:
    """Hold a lock that the kernel gives back when this process ends, however it ends."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotStart(
            f"{variable}: cannot create the lock in {path.parent}: {error.strerror}; {_ANOTHER}"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise CannotStart(
            f"{variable}: another supervisor uses {path.parent}; stop it, or name another directory"
        ) from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    with contextlib.ExitStack() as held:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = held.enter_context(contextlib.closing(socket.socket(family, kind, protocol)))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            expect_silence(listener, settings.peer_timeout)
            listener.bind(address)
        except OSError as error:
            reason = error.strerror or str(error)
            advice = f"set {PREFIX}PORT to a free one (0 picks one)"
            if error.errno != errno.EADDRINUSE:
                advice = f"set {PREFIX}HOST to an address of this machine, 0.0.0.0 for all of them, or leave it out"
            raise CannotStart(f"cannot listen on {settings.host}:{settings.port}: {reason}; {advice}") from None
        yield listener
