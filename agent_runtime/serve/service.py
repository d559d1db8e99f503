"""The composition root of ``serve``: everything is put together here, started in order and ended in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from agent_runtime.api.app import OPEN_PATHS, build_app
from agent_runtime.api.handlers import ApiContext
from agent_runtime.api.metrics import Metrics
from agent_runtime.api.request_body import BodyReader
from agent_runtime.api.streams import OpenStreams
from agent_runtime.delivery.cli_check import CliCheck
from agent_runtime.delivery.credentials_file import CredentialsFile
from agent_runtime.delivery.delivery import RELAY, Deliveries, TokenRelay
from agent_runtime.delivery.private_files import owner_of, short_directory
from agent_runtime.delivery.reload_check import CheckedCli
from agent_runtime.delivery.reload_results import BackgroundReloadChecker, ReloadResults
from agent_runtime.errors import SpawnFailed
from agent_runtime.model.state import StopReason
from agent_runtime.notifier import Notifier
from agent_runtime.process.containment.registry import new_mark
from agent_runtime.secret.file import SecretFile, SecretStatus
from agent_runtime.secret.generations import GenerationLedger
from agent_runtime.secret.writer import put_from_environment
from agent_runtime.serve.bootstrap import Bootstrap
from agent_runtime.serve.startup_signals import SIGNALS, Start
from agent_runtime.settings import Settings
from agent_runtime.store.records import RecordStore
from agent_runtime.store.tasks import TaskStore
from agent_runtime.store.transcripts import TranscriptStore
from agent_runtime.store.workspaces import Workspaces
from agent_runtime.supervisor.admission import BackgroundTasks, resume_interrupted
from agent_runtime.supervisor.archive import Archive
from agent_runtime.supervisor.supervisor import Supervisor
from agent_runtime.telemetry.counters import Counts
from agent_runtime.telemetry.events import EventLog
from agent_runtime.telemetry.redaction import Redactor
from agent_runtime.tokens.probe import Probe
from agent_runtime.web import uvicorn_package
from agent_runtime.web.access import AccessKey
from agent_runtime.web.access_log import AccessLog
from agent_runtime.web.response_buffer import ResponseBuffer
from agent_runtime.web.uvicorn_protocol import (
    ACCEPTED_AT_ONCE,
    HEADER_LIMIT_BYTES,
    Connection,
    OpenConnections,
)

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
SECOND = 1.0
LEAVE_SECONDS = 0.05
"""
How long the server still answers after it was asked to end: what uvicorn's own polling takes on average.

A reader whose stream ends reconnects at once, and in this time is still told that the supervisor drains.
"""
TURNS_TO_CONNECT = 3
"""Turns of the loop from an accept to ``connection_made`` (CPython 3.11, ``_accept_connection2``), and one more."""
WORKERS = 4
SWITCH_SECONDS = 0.0005
"""
How long a thread may hold the interpreter while another wants it.

Between the line that says that a token is refused and the signal, threads hand over to each other several times. With
Python's default each time could take 5 ms while the event loop computes (benchmarks/detection.py).
"""


def announce(line: str) -> None:
    """Write to stdout in a thread: if stdout is a full pipe, that thread waits, not the event loop."""
    threading.Thread(target=_write, args=(sys.stdout.fileno(), line.encode()), name="announce", daemon=True).start()


def _write(descriptor: int, data: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(descriptor, data)  # past the buffer of sys.stdout, whose lock the end of the process would wait for


class Server(uvicorn_package.Server):
    """
    A uvicorn server that handles no signals; :class:`Shutdown` does.

    On SIGTERM uvicorn would first close its listeners, so that ``/readyz`` could never answer that the supervisor
    drains, and would exit by raising the signal again (uvicorn 0.54, ``Server.capture_signals``). It would also wake
    ten times a second to see whether it should end (``Server.main_loop``).

    Attributes:
        second: Notified once a second.
    """

    def __init__(self, config: uvicorn_package.Config, counts: Counts) -> None:
        super().__init__(config)
        self.second = Notifier()
        self._counts = counts
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Ask the server to end once the requests in progress are answered."""
        self.should_exit = True
        self._leaving.set()

    async def main_loop(self) -> None:
        """Notify once a second, renew the date that answers carry, and measure the lag of the event loop."""
        while not await self.on_tick(0):
            asked = time.perf_counter()
            try:
                async with asyncio.timeout(SECOND):
                    await self._leaving.wait()
            except TimeoutError:
                self._counts.observe("event_loop_lag_seconds", time.perf_counter() - asked - SECOND)
                self.second.notify()
            else:
                await asyncio.sleep(LEAVE_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """
        Accept no more, wait until uvicorn knows every accepted connection, so that it closes each, and end.

        asyncio loses a connection whose listener is closed between its accept and the next turns of the loop, and
        uvicorn never closes a connection of which it learns after it has closed the others.
        """
        for listener in sockets or ():
            asyncio.get_running_loop().remove_reader(listener)
        for _ in range(TURNS_TO_CONNECT):
            await asyncio.sleep(0)
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and announce the address: the only line on stdout."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # asyncio has one number for the backlog and for the accepts of one turn
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            announce(f"listening on http://{shown}:{port}\n")
        gc.freeze()  # What a start has made stays: to search it took 25 ms, in every twentieth list of 200 records.
        gc.enable()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signal handlers as they are."""
        yield


def serve(settings: Settings, environ: Mapping[str, str], bootstrap: Bootstrap, start: Start) -> int:
    """
    Run a supervisor until a signal ends it.

    Returns:
        The exit code: 0 after a drain.

    Raises:
        CannotStart: The containment, a limit, the confinement or the relay asked for is not available here.
        CalledOff: A signal came before the event loop handled signals.
    """
    data_dir, redactor = bootstrap.data_dir, bootstrap.redactor
    containment = bootstrap.containment.result()
    start.raise_if_called_off()
    counts = Counts(time.time())
    with contextlib.ExitStack() as held:
        ledger = GenerationLedger(data_dir)
        cli = CliCheck(settings.claude, environ.get("PATH"))
        try:
            cli.require()
        except SpawnFailed as error:
            searched = "" if "/" in settings.claude[0] else f"; it was looked for on PATH={environ.get('PATH')}"
            log.error("no execution can start: %s%s", error, searched)
        checked = CheckedCli(
            bootstrap.spawner,
            settings.claude,
            environ,
            user=settings.child_user,
            mark=functools.partial(new_mark, data_dir),
            directory=bootstrap.run_dir,
        )
        is_relay = settings.token_delivery == RELAY
        reload_checker = BackgroundReloadChecker(checked, ReloadResults(data_dir), cli, checks_socket=is_relay)
        changes = SecretChanges(redactor)
        secret = SecretFile(
            settings.token_file,
            ledger=ledger,
            withdraw_after_seconds=settings.token_withdraw_after,
            on_change=changes.put,
            on_secret=redactor.add,
        )
        relay = None
        if is_relay:
            takes = reload_checker.takes_socket
            relay = held.enter_context(_relay(settings, environ, bootstrap, secret, takes_socket=takes, counts=counts))
        deliveries = changes.deliveries = Deliveries(
            settings.token_delivery, CredentialsFile(settings.config_dir, settings.child_user), reload_checker, relay
        )
        held.callback(deliveries.close)
        deliveries.start()
        start.raise_if_called_off()
        records = held.enter_context(RecordStore(data_dir / "records.sqlite"))
        transcripts, tasks = TranscriptStore(data_dir / "transcripts"), TaskStore(data_dir / "tasks", redactor)
        workspaces = Workspaces(settings, data_dir / "workspaces")
        archive = Archive(records, transcripts, tasks, workspaces, settings, counts)
        supervisor = Supervisor(
            settings=settings,
            secret=secret,
            ledger=ledger,
            redactor=redactor,
            archive=archive,
            deliveries=deliveries,
            containment=containment,
            probe=None if settings.probe == "off" else Probe(environ),
            events=EventLog(redact=redactor.redact_text, on_event=counts.count_event),
            environ=environ,
            run_dir=bootstrap.run_dir,
            next_mark=functools.partial(new_mark, data_dir),
            counts=counts,
            cli=cli,
            options=reload_checker,
        )
        start.raise_if_called_off()
        archive.end_unfinished()
        start.raise_if_called_off()
        if settings.token_from_env:
            put_from_environment(secret.path, environ)
        secret.start()
        if secret.status.generation is None:
            log.warning(
                "no token yet: %s; it is expected at %s%s, and agent-runtime doctor says more",
                secret.status.error,
                settings.token_file,
                "" if settings.token_file.parent.exists() else ", whose directory does not exist",
            )
        held.callback(secret.stop)
        start.raise_if_called_off()
        return asyncio.run(_serve(supervisor, bootstrap, changes, start))


@contextlib.contextmanager
def _relay(
    settings: Settings,
    environ: Mapping[str, str],
    bootstrap: Bootstrap,
    secret: SecretFile,
    *,
    takes_socket: Callable[[], bool | None],
    counts: Counts,
) -> Iterator[TokenRelay]:
    """Run the relay while the block lasts."""
    from agent_runtime.relay.relay import Relay

    with short_directory(bootstrap.run_dir, new_mark(bootstrap.data_dir), settings.child_user) as directory:
        relay = Relay(
            environ,
            secret,
            directory=directory,
            owner=owner_of(settings.child_user),
            takes_socket=takes_socket,
            first_byte_seconds=settings.relay_timeout,
            count=functools.partial(counts.count, "relay_requests"),
            observe_first_byte=functools.partial(counts.observe, "relay_first_byte_seconds"),
        )
        relay.start()
        try:
            yield relay
        finally:
            relay.close()


class SecretChanges:
    """Carry changes of the secret file from the thread that notices them to the event loop, once that runs."""

    def __init__(self, redactor: Redactor) -> None:
        self.deliveries: Deliveries | None = None
        self._redactor = redactor
        self._loop: asyncio.AbstractEventLoop | None = None
        self._take: Callable[[SecretStatus], None] | None = None

    def put(self, status: SecretStatus) -> None:
        """Redact the token of a new status from now on, and deliver it to running attempts; from any thread."""
        if status.generation is not None:
            self._redactor.add(status.generation.token)
            if self.deliveries is not None:
                self.deliveries.renew(status.generation)
        if self._loop is not None and self._take is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed
                self._loop.call_soon_threadsafe(self._take, status)

    def deliver_to(self, take: Callable[[SecretStatus], None]) -> None:
        """Call *take* with each later status, on the event loop that runs now."""
        self._loop, self._take = asyncio.get_running_loop(), take


async def _serve(
    supervisor: Supervisor,
    bootstrap: Bootstrap,
    changes: SecretChanges,
    start: Start,
) -> int:
    settings = supervisor.settings
    sys.setswitchinterval(SWITCH_SECONDS)
    access = AccessKey(settings.access_key_file, settings.access_header, bootstrap.redactor)
    if access.required and access.read() is None:
        log.warning("no usable access key in %s: no caller is admitted until there is one", settings.access_key_file)
    connections = OpenConnections(
        bootstrap.most_connections,
        request_seconds=settings.request_timeout,
        open_paths=OPEN_PATHS,
        detail_is_object=settings.error_detail == "object",
    )
    buffer = ResponseBuffer(settings.response_buffer_bytes)
    app = build_app(
        ApiContext(
            supervisor,
            settings,
            bootstrap.redactor.redact_text,
            access,
            connections,
            Metrics(supervisor, buffer, lambda: bootstrap.logs.lost),
            BodyReader(settings.body_limit),
            buffer,
            OpenStreams(buffer),
        )
    )
    config = uvicorn_package.Config(
        AccessLog(app, supervisor.counts, is_logged=settings.access_log),
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
    server = Server(config, supervisor.counts)
    shutdown = Shutdown(supervisor, server)
    loop = asyncio.get_running_loop()
    # Few threads, because each has memory of its own; their jobs are short and use one disk.
    loop.set_default_executor(ThreadPoolExecutor(WORKERS, thread_name_prefix="worker"))
    for number in SIGNALS:
        loop.add_signal_handler(number, shutdown.signalled, number)
    start.raise_if_called_off()
    webhook = None
    if settings.events_url is not None:
        from agent_runtime.telemetry.webhook import Webhook

        webhook = Webhook(settings.events_url, access.read, supervisor.events, environ=supervisor.environ)
        webhook.start()
    changes.deliver_to(supervisor.token_upkeep.secret_changed)
    supervisor.token_upkeep.secret_changed(supervisor.secret.status)
    chores = BackgroundTasks()  # cancelled with the event loop
    if settings.resume_interrupted:
        # It takes its first step before the first request is read, and before executions without a runner are deleted.
        chores.spawn(resume_interrupted(supervisor.admission), "resumption")
    chores.spawn(supervisor.run_chores(server.second), "chores")
    await server.serve(sockets=[bootstrap.listener])
    await shutdown.finished()
    if webhook is not None:
        await webhook.stop()
    return 0


class Shutdown:
    """The signal handler: the first signal drains, the second ends everything at once; no process is left."""

    def __init__(self, supervisor: Supervisor, server: Server) -> None:
        self._supervisor = supervisor
        self._server = server
        self._draining: asyncio.Task[None] | None = None

    def signalled(self, number: int) -> None:
        """Handle a signal: drain at the first, end all executions at the second."""
        if self._draining is None:
            log.info("draining on %s", signal.Signals(number).name)
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        else:
            log.warning("ending at once on %s", signal.Signals(number).name)
            self._supervisor.admission.stop_all(StopReason.SHUTDOWN, at_once=True)

    async def _drain(self) -> None:
        try:
            await self._supervisor.admission.drain(self._supervisor.settings.drain_timeout)
        finally:
            # The end of the event log ends its streams, so that none delays the exit.
            self._supervisor.events.close()
            self._server.leave()

    async def finished(self) -> None:
        """Wait for the end of the drain, if there is one."""
        if self._draining is not None:
            await self._draining
