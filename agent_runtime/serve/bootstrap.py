"""
What a supervisor needs before it exists: directories and their locks, the port, and the containment of attempts.

Once :func:`occupied` has been entered, no process of an earlier supervisor with the same data directory is left here,
except in cgroups: those are gone once :attr:`Bootstrap.containment` is known.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import resource
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
from msgspec.structs import replace

from agent_runtime.claude.credential_env import BASE_URL_VARIABLE
from agent_runtime.delivery.private_files import remove_leftovers, remove_tree
from agent_runtime.errors import CannotStart, SettingsInvalid
from agent_runtime.files import remove_unfinished
from agent_runtime.process import confinement_choice
from agent_runtime.process.containment.leftovers import await_shims, sweep_leftovers
from agent_runtime.process.containment.registry import become_subreaper, new_mark, tag_of
from agent_runtime.process.containment_choice import Containment, choose
from agent_runtime.process.linux import syscalls as linux
from agent_runtime.process.linux.cgroup import Limits
from agent_runtime.process.linux.landlock import Mode
from agent_runtime.process.spawn import Spawner
from agent_runtime.process.users import UnknownUser, other_user
from agent_runtime.serve.startup_signals import Start
from agent_runtime.setting_slips import did_you_mean
from agent_runtime.settings import FEWEST_PLACES, PREFIX, SETTINGS, Settings, is_http, unknown_variables
from agent_runtime.telemetry.logs import LogQueue, configure
from agent_runtime.telemetry.redaction import Redactor

log = logging.getLogger(__name__)

DEFAULT_DATA_DIR = Path("/var/lib/agent-runtime")
_ANOTHER = "mount a volume that can be written, or name another directory"


class Bootstrap(msgspec.Struct, frozen=True):
    """
    The resources that :func:`occupied` holds.

    Attributes:
        run_dir: An empty directory for the files of running children.
        listener: The bound socket, not yet listening.
        most_connections: How many may be open: the setting, or less where the limit on open files leaves less room.
        spawner: Its fork server has been started.
        containment: The result of :func:`_contained`, which runs in a thread of its own.
    """

    data_dir: Path
    run_dir: Path
    listener: socket.socket
    most_connections: int
    spawner: Spawner
    redactor: Redactor
    logs: LogQueue
    containment: Future[Containment]


@contextlib.contextmanager
def occupied(settings: Settings, environ: Mapping[str, str], start: Start) -> Iterator[Bootstrap]:
    """
    Acquire the resources of :class:`Bootstrap`, and hold them while the block lasts.

    Raises:
        CannotStart: The port, a directory or a lock is not available, or the limit on open files is too low.
        SettingsInvalid: The workspace or the children's user does not exist.
        CalledOff: A signal came.
    """
    linux.save_memory()
    redactor = Redactor()
    logs = configure(settings.log_format, settings.log_level, redactor)
    for name in unknown_variables(environ):
        hint = did_you_mean(name, [setting.variable for setting in SETTINGS])
        log.warning("%s is no setting and does nothing%s; see agent-runtime serve --help", name, hint)
    if (base_url := environ.get(BASE_URL_VARIABLE)) and not is_http(base_url):
        log.warning("no execution can reach the API: %s must be an http or https address", BASE_URL_VARIABLE)
    with contextlib.ExitStack() as held:
        held.callback(logs.flush)
        data_dir = _data_dir(settings, environ)
        held.enter_context(_locked(data_dir / "lock", f"{PREFIX}DATA_DIR"))
        _directory(settings.config_dir, f"{PREFIX}CONFIG_DIR")
        if not os.path.isdir(settings.workspace):  # noqa: PTH112 - is_dir() raises behind a closed directory
            raise SettingsInvalid(f"{PREFIX}WORKSPACE: {settings.workspace} is no directory; create it or name another")
        _check_child_user(settings)
        listener = held.enter_context(_listen(settings))
        become_subreaper()
        spawner = Spawner()
        spawner.fork_server.most_files = linux.raise_file_limit()
        most_connections = _most_connections(settings)
        if ended := sweep_leftovers(data_dir):
            log.warning("processes of an earlier supervisor were still there and have been ended: %d", ended)
        try:
            spawner.fork_server.guard = await_shims(data_dir)
        except OSError as error:
            raise _no_lock(data_dir, f"{PREFIX}DATA_DIR", error) from None
        held.callback(spawner.close)
        # Its Python starts while this one goes on. _contained() tries again, and reports a failure.
        with contextlib.suppress(OSError):
            spawner.fork_server.start()
        # Locked only now: processes of an earlier supervisor, gone by now, could have held this lock.
        held.enter_context(_locked(settings.config_dir, f"{PREFIX}CONFIG_DIR"))
        # A supervisor that was killed may have left its children's files, which hold tokens.
        run_dir = data_dir / "run"
        remove_tree(run_dir)
        remove_leftovers(tag_of(data_dir))
        for directory in (data_dir, data_dir / "workspaces", settings.config_dir):
            remove_unfinished(directory)
        held.callback(remove_leftovers, tag_of(data_dir))
        # Only now: a start that a signal ends has also removed everything of an earlier supervisor.
        start.raise_if_called_off()
        _allow_search(_directory(run_dir, f"{PREFIX}DATA_DIR"), settings)
        trials = ThreadPoolExecutor(1, thread_name_prefix="containment")
        held.callback(trials.shutdown)
        containment = trials.submit(_contained, spawner, settings, data_dir)
        trials.shutdown(wait=False)
        yield Bootstrap(data_dir, run_dir, listener, most_connections, spawner, redactor, logs, containment)


def _contained(spawner: Spawner, settings: Settings, data_dir: Path) -> Containment:
    """
    Choose how attempts are contained and confined, and end what an earlier supervisor has left in cgroups.

    Raises:
        CannotStart: The containment, a limit or the confinement asked for is not available here.
    """
    limits = Limits(settings.execution_memory, settings.execution_pids, settings.execution_cpus)
    next_mark = functools.partial(new_mark, data_dir)
    containment = choose(spawner, settings.containment, next_mark, limits)
    containment.sweep_leftovers(data_dir)
    confinement = confinement_choice.choose(spawner, settings, data_dir, next_mark)
    for text in confinement.warnings:
        log.warning("%s", text)
    if confinement.mode is not Mode.OFF and settings.access_key_file is None:
        log.warning("agents can call this supervisor and give it another token: set %sACCESS_KEY_FILE", PREFIX)
    log.info("containment: %s, confinement: %s", containment.kind.value, confinement.mode)
    return replace(containment, confinement=confinement)


def _data_dir(settings: Settings, environ: Mapping[str, str]) -> Path:
    """Return the data directory: the setting's, else the default one, else one in the user's state directory."""
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
    try:
        other_user(settings.child_user)
    except UnknownUser as error:
        text = f"{PREFIX}CHILD_USER: there is no user {error} here; add it to the image, or name another"
        raise SettingsInvalid(text) from None


def _allow_search(path: Path, settings: Settings) -> Path:
    """Add search permission for children that run as another user; they can list nothing."""
    if settings.child_user is not None:
        for directory in (path, path.parent):
            directory.chmod(directory.stat().st_mode | 0o011)
    return path


@contextlib.contextmanager
def _locked(path: Path, variable: str) -> Iterator[None]:
    """
    Hold a lock that the kernel gives back when this process ends, however it ends.

    Args:
        path: A lock file, which is created; or a directory, where a child could replace a lock file.
    """
    directory = path if path.is_dir() else path.parent
    with contextlib.ExitStack() as held:
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            advice = _ANOTHER
            if os.path.lexists(path) and not path.is_file():
                advice = f"{path.name} there is not a file: remove it, if no other supervisor uses the directory"
            text = f"{variable}: cannot create the lock in {directory}: {error.strerror}; {advice}"
            raise CannotStart(text) from None
        held.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(
                f"{variable}: another supervisor uses {directory}; stop it, or name another directory"
            ) from None
        except OSError as error:
            if not (path.is_dir() and error.errno == errno.EBADF):
                raise _no_lock(directory, variable, error) from None
            # NFS locks only files opened for writing, and a directory cannot be opened so.
            held.enter_context(_locked(path / ".agent-runtime.lock", variable))
        yield


def _no_lock(directory: Path, variable: str, error: OSError) -> CannotStart:
    """Build the error for a file system without locks, such as NFS without its lock service, FUSE, or a broken disk."""
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    return CannotStart(
        f"{variable}: files in {directory} cannot be locked: {error.strerror} ({name}); "
        "use a volume on a local disk, mount it with locks, or name another directory"
    )


@contextlib.contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    with contextlib.ExitStack() as held:
        try:
            host = os.fsencode(settings.host)  # for a text Python would load tables of international names
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = held.enter_context(contextlib.closing(socket.socket(family, kind, protocol)))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _detect_vanished_peers(listener, settings.peer_timeout)
            listener.bind(address)
        except OSError as error:
            reason = error.strerror or str(error)
            advice = f"set {PREFIX}PORT to a free one (0 picks one)"
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                advice = f"set {PREFIX}HOST to an address of this machine, 0.0.0.0 for all of them, or leave it out"
            raise CannotStart(f"cannot listen on {settings.host}:{settings.port}: {reason}; {advice}") from None
        yield listener


def _most_connections(settings: Settings) -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted, fitting = settings.max_connections, settings.places_within(limit)
    if fitting < FEWEST_PLACES:
        slots, needed = f"{settings.slots} slot{'s' * (settings.slots > 1)}", limit - fitting + FEWEST_PLACES
        raise CannotStart(
            f"{limit} open files are too few for {slots}, which need {needed}; raise the limit (ulimit -n, "
            f"docker run --ulimit nofile=65536:65536, LimitNOFILE=), or lower {PREFIX}SLOTS"
        )
    if fitting < wanted:
        log.warning("connections are limited to %d by the limit on open files (ulimit -n)", fitting)
    return min(wanted, fitting)


def _detect_vanished_peers(listener: socket.socket, seconds: float) -> None:
    """
    Have the kernel end connections whose caller has vanished; accepted sockets inherit these options.

    Idle connections are probed, and sent data must be acknowledged within *seconds*. The latter also ends a connection
    whose reader takes nothing for so long.

    Source: https://man7.org/linux/man-pages/man7/tcp.7.html (TCP_USER_TIMEOUT, TCP_KEEPIDLE)
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(seconds / 2)))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(seconds / 6)))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
