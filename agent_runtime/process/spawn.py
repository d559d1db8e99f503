"""Start the CLI; only this module starts children, from any thread and without an event loop."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path

import msgspec

from agent_runtime.errors import SpawnFailed
from agent_runtime.process.child import Child
from agent_runtime.process.containment import sweep as containment
from agent_runtime.process.containment.cgroup import CgroupLayer
from agent_runtime.process.containment.proc_scan import ScanLayer
from agent_runtime.process.containment.registry import MARK_VARIABLE, AttemptProcesses, AttemptRegistry
from agent_runtime.process.containment.sweep import Kind, Layer
from agent_runtime.process.forkserver import shim
from agent_runtime.process.forkserver.server import ForkServer, PendingShim, ShimFailed
from agent_runtime.process.forkserver.shim import SpawnRequest
from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.linux import syscalls as linux
from agent_runtime.process.linux.cgroup import Group
from agent_runtime.process.linux.cgroup_setup import Groups
from agent_runtime.process.linux.landlock import UNCONFINED, Confinement, Mode
from agent_runtime.process.users import UnknownUser, other_user

_RESTRICTED = {Mode.OFF: shim.UNRESTRICTED, Mode.USER: shim.RESTRICTED, Mode.LANDLOCK: shim.LANDLOCKED}
_RAISE_OOM_SCORE_BY = 500
_END_WITHIN_SECONDS = 1.0
_REMOVE_WITHIN_SECONDS = 0.1


class SpawnReason(Enum):
    """Why a child could not be started; callers may see the value."""

    NOT_FOUND = "the command was not found"
    NOT_EXECUTABLE = "the command cannot be executed"
    NO_DIRECTORY = "the working directory is missing or cannot be entered"
    TOO_LONG = "an argument or the environment is too long"
    NUL = "an argument or the environment has a NUL byte in it"
    BAD_NAME = "the environment has a name that is empty or has an equals sign in it"
    NO_PROCESSES = "no more processes can be started here for now"
    NO_DESCRIPTORS = "no more files can be opened here for now"
    NO_MEMORY = "there is not enough memory"
    UNKNOWN_USER = "the user to run it as is unknown"
    NOT_PERMITTED = "it is not permitted to run it as that user"
    OTHER = "the operating system refused"


class NotSpawned(SpawnFailed):
    """The operating system did not start the CLI, for one of the known reasons."""

    def __init__(self, reason: SpawnReason, detail: str | None = None) -> None:
        super().__init__(f"cannot start the CLI: {reason.value}" + (f" ({detail})" if detail else ""))
        self.reason = reason


class _ShimKilled(NotSpawned):
    """A shim was killed before it answered, and nothing of it is left."""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """
    The program of a child and how it is run.

    Attributes:
        env: The whole environment; the mark is added to it as ``AGENT_RUNTIME_ATTEMPT_MARK``.
        directory: An open descriptor of *cwd*, for the caller to close; None: *cwd* is opened by its path.
        user: Name or number of the user to run as; None: our own.
        mark: From :func:`new_mark`, of this attempt alone; every descendant inherits it.
        confinement: What the child cannot reach.
        needs: Directories whose files the child must read and execute even if they lie below a closed one.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    mark: str
    user: str | None = None
    directory: int | None = None
    confinement: Confinement = UNCONFINED
    needs: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        return f"<Command {self.mark} in {self.cwd}>"


class Spawner:
    """
    Starts children. A process has one spawner: the sweep of one child must know, and spare, the others.

    Attributes:
        registry: The living attempts; each has one child.
    """

    def __init__(self) -> None:
        self.fork_server = ForkServer()
        self.registry = AttemptRegistry(self.fork_server)

    def close(self) -> None:
        """End the fork server; children continue."""
        self.fork_server.close()

    @contextlib.contextmanager
    def forked_shim(self) -> Iterator[PendingShim | None]:
        """Have a shim forked while the block prepares its command; None: impossible now, :meth:`spawn` tries again."""
        try:
            shim = self.fork_server.fork_shim()
        except OSError:
            yield None
        else:
            with shim.line:
                yield shim

    def spawn(
        self,
        command: Command,
        kind: Kind = Kind.SCAN,
        groups: Groups | None = None,
        shim: PendingShim | None = None,
        *,
        also_scan: bool = False,
    ) -> Child:
        """
        Start a child in a session of its own, with pipes for stdin, stdout and stderr.

        Args:
            kind: How the child and its descendants are ended.
            groups: Makes a cgroup for the child, as :attr:`Kind.CGROUP` needs; None: it gets none.
            shim: The child's shim, from :meth:`forked_shim`; None: one is forked now.
            also_scan: Search ``/proc`` as well for processes that have left the cgroup, as root can.

        Raises:
            NotSpawned: The child could not be started; nothing is left open or running.
        """
        attempt = self.registry.add(command.mark)
        group = None
        try:
            group = None if groups is None else _group(groups, command.mark)
            try:
                return self._spawn(command, attempt, kind, group, shim, also_scan=also_scan)
            except _ShimKilled:  # the CLI has not got its prompt yet, so that another start repeats no work
                attempt.ending = False
                return self._spawn(command, attempt, kind, group, None, also_scan=also_scan)
        except BaseException:
            if group is not None:
                group.remove(_REMOVE_WITHIN_SECONDS)  # the next start removes a group that a hanging shim still holds
            self.registry.remove(attempt)
            raise

    def _spawn(
        self,
        command: Command,
        attempt: AttemptProcesses,
        kind: Kind,
        group: Group | None,
        shim: PendingShim | None,
        *,
        also_scan: bool,
    ) -> Child:
        ours: list[int] = []
        theirs: list[int] = []
        try:
            spawn_request = _spawn_request(command, self.fork_server.most_files)
            for our_end in (1, 0, 0):
                pair = os.pipe()
                ours.append(pair[our_end])
                theirs.append(pair[1 - our_end])
            for descriptor in ours:
                os.set_blocking(descriptor, False)
            theirs.append(_working_directory(command))
            if command.confinement.mode is Mode.LANDLOCK:
                theirs.append(command.confinement.ruleset(command.needs))
            join = () if group is None else (group.procs, group.place)
            shim = shim or self.fork_server.fork_shim()
            handle = self.fork_server.start_leader(shim, (*theirs, *join), spawn_request)
        except BaseException as error:
            killed = isinstance(error, OSError) and error.errno == errno.ECONNRESET
            while theirs:
                os.close(theirs.pop())
            lost = len(ours) == 3 and (killed or isinstance(error, TimeoutError))
            has_ended = lost and self._end_without_shim(attempt, ours[1])
            while ours:
                os.close(ours.pop())
            if isinstance(error, OSError):
                failure = _ShimKilled if killed and has_ended else NotSpawned
                raise failure(*_reason(error, command)) from None
            raise
        finally:
            while theirs:
                os.close(theirs.pop())
        attempt.shim = handle.shim
        leader = handle.leader
        attempt.leader = leader.identity if leader is not None and leader.session == handle.pid else (handle.pid, -1)
        score, registry = spawn_request[3], self.registry
        is_known = score is None or score == registry.raised_oom_score
        if leader is not None and not is_known and proc_table.read_oom_score(leader.pid) == score:
            registry.raised_oom_score = score
        layers: list[Layer] = []
        if kind is Kind.CGROUP and group is not None:
            layers.append(CgroupLayer(group, handle))
        if also_scan or not layers:
            layers.append(ScanLayer(attempt, self.registry, handle))
        return Child(handle, (ours[0], ours[1], ours[2]), attempt, self.registry, layers=tuple(layers), group=group)

    def _end_without_shim(self, attempt: AttemptProcesses, stdout: int) -> bool:
        """
        End the leader of a shim that was killed or stopped before it could answer; return whether none can be left.

        While the pipe *stdout* has a writer, a leader may still be about to start, and it has no mark until then.
        """
        attempt.ending = True
        deadline = time.monotonic() + _END_WITHIN_SECONDS
        poll = select.poll()
        poll.register(stdout, 0)
        while True:
            containment.sweep((ScanLayer(attempt, self.registry),), deadline)
            if poll.poll(5):
                return True
            if time.monotonic() >= deadline:
                return False


def _group(groups: Groups, mark: str) -> Group:
    try:
        return groups.make(mark)
    except OSError as error:
        code = error.errno or 0
        reason = _REASONS[code] if code in _SHORTAGES else SpawnReason.OTHER
        raise NotSpawned(reason, f"no cgroup can be made for it: {errno.errorcode.get(code)}") from None


def _spawn_request(command: Command, most_files: int | None) -> SpawnRequest:
    """
    Build the request for the shim.

    Raises:
        NotSpawned: No program can be started with these arguments or this environment, or the user is unknown.
    """
    argv = [os.fsencode(argument) for argument in command.argv]
    env = {
        os.fsencode(name): os.fsencode(value) for name, value in {**command.env, MARK_VARIABLE: command.mark}.items()
    }
    if any(b"\0" in text for text in (*argv, *env, *env.values(), os.fsencode(command.cwd))):
        raise NotSpawned(SpawnReason.NUL)
    if any(not name or b"=" in name for name in env):
        raise NotSpawned(SpawnReason.BAD_NAME)
    if not argv or not argv[0]:
        raise NotSpawned(SpawnReason.NOT_FOUND)
    try:
        user = other_user(command.user)
    except UnknownUser:
        raise NotSpawned(SpawnReason.UNKNOWN_USER) from None
    identity = (user.uid, user.gid, user.groups) if user is not None else None
    restricted = _RESTRICTED[command.confinement.mode]
    return argv, env, identity, linux.raised_oom_score(_RAISE_OOM_SCORE_BY), most_files, restricted


def _working_directory(command: Command) -> int:
    flags, given = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, command.directory
    try:
        return os.open(command.cwd, flags) if given is None else os.dup(given)
    except OSError as error:
        raise ShimFailed(shim.ENTERING_DIRECTORY, error.errno or 0) from None


_REASONS = {
    **dict.fromkeys((errno.ENOEXEC, errno.EACCES, errno.EISDIR, errno.ELIBBAD), SpawnReason.NOT_EXECUTABLE),
    **dict.fromkeys((errno.ETXTBSY, errno.ELOOP), SpawnReason.NOT_EXECUTABLE),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), SpawnReason.NOT_FOUND),
    **dict.fromkeys((errno.E2BIG, errno.ENAMETOOLONG), SpawnReason.TOO_LONG),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS), SpawnReason.NO_DESCRIPTORS),
    errno.EAGAIN: SpawnReason.NO_PROCESSES,
    errno.ENOMEM: SpawnReason.NO_MEMORY,
    errno.EPERM: SpawnReason.NOT_PERMITTED,
}
_SHORTAGES = {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def _reason(error: OSError, command: Command) -> tuple[SpawnReason, str | None]:
    """Return the reason, and details in our own words: the system's message would show paths and arguments."""
    code = error.errno or 0
    name = errno.errorcode.get(code)
    if isinstance(error, TimeoutError):
        return SpawnReason.OTHER, "its shim does not answer"
    step = error.step if isinstance(error, ShimFailed) else shim.FORKING
    steps = {shim.JOINING_CGROUP: "put into its cgroup", shim.CONFINING: "confined"}
    if step in steps and code != errno.EAGAIN:
        return SpawnReason.OTHER, f"it cannot be {steps[step]}: {name}"
    if step == shim.ENTERING_DIRECTORY and code not in _SHORTAGES:
        return SpawnReason.NO_DIRECTORY, None
    is_path = step == shim.EXECUTING and "/" in command.argv[0]
    if is_path and code == errno.ENOENT and (command.cwd / command.argv[0]).is_file():
        return SpawnReason.NOT_EXECUTABLE, "its interpreter is missing"
    return _REASONS.get(code, SpawnReason.OTHER), name
