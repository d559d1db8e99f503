"""Choose at start how children are kept away from the secret and the supervisor; a trial child tries to reach them."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec.structs import replace

from agent_runtime.errors import CannotStart, SpawnFailed
from agent_runtime.process.linux import landlock
from agent_runtime.process.linux import syscalls as linux
from agent_runtime.process.linux.landlock import Confinement, Mode
from agent_runtime.process.spawn import Command, Spawner
from agent_runtime.process.users import UnknownUser, other_user
from agent_runtime.settings import PREFIX, Settings

log = logging.getLogger(__name__)

AUTO = "auto"
LOCK_NAME = "lock"
"""The name of a file that every data directory has."""

SIGNALS = "signals to the supervisor"
ITEMS = (
    "secret file",
    "data directory",
    "access key",
    "supervisor's environment",
    "supervisor's memory",
    "tracing the supervisor",
    SIGNALS,
)
"""What a child tries to reach."""

_SHARED_DIRECTORIES = ("/tmp", "/var/tmp", "/dev/shm", "~")  # noqa: S108 - only looked at

_PIDFD_GETFD = 438  # the same on every architecture
_FOUND = 128
_TRIAL = f"""
import ctypes, os, sys
pid, secret, kept, key = int(sys.argv[1]), *sys.argv[2:5]
libc = ctypes.CDLL(None, use_errno=True)
def opened(path):
    if path:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    return path
def copied():
    ours = (ctypes.c_size_t * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
    one = ctypes.c_ulong(1)
    got = libc.process_vm_readv(pid, ours, one, (ctypes.c_size_t * 2)(4096, 8), one, ctypes.c_ulong(0))
    return got > 0 or ctypes.get_errno() == {errno.EFAULT}  # there is nothing at that place
def traced():
    seized = libc.ptrace(0x4206, pid, ctypes.c_void_p(0), ctypes.c_void_p(0)) == 0  # PTRACE_SEIZE stops nothing
    return seized or libc.syscall({_PIDFD_GETFD}, os.pidfd_open(pid), 0, 0) >= 0
tries = (
    lambda: opened(secret), lambda: opened(kept), lambda: opened(key), lambda: opened(f"/proc/{{pid}}/environ"),
    lambda: copied() or opened(f"/proc/{{pid}}/mem"), traced, lambda: os.kill(pid, 0) is None,
)
code = {_FOUND}
for place, reached in enumerate(tries):
    try:
        code |= bool(reached()) << place
    except OSError:
        pass
os._exit(code)
"""
_TRIAL_SECONDS = 10.0
_PYTHONS = (sys.executable, "/usr/bin/python3")
"""The interpreters to try; the second is for a user that may not enter the directory of the first, as that of root."""


def choose(spawner: Spawner, settings: Settings, data_dir: Path, next_mark: Callable[[], str]) -> Confinement:
    """
    Return the confinement that was asked for; ``auto``: the best that works, else none, with a warning.

    Unless the setting is ``off``, this process leaves no core dump and cannot be read by other processes of its user
    from here on.

    Args:
        next_mark: Returns a new mark for each trial child.

    Raises:
        CannotStart: The confinement that was asked for is not available here.
    """
    asked = settings.confine
    if asked == Mode.OFF:
        return Confinement()
    linux.make_undumpable()
    lacking: dict[str, str] = {}
    for mode in (Mode.LANDLOCK, Mode.USER):
        if asked not in (AUTO, mode):
            continue
        candidate = Confinement(mode, asked, _closed(settings, data_dir), _open(settings), lacking=lacking)
        try:
            _check(candidate, settings)
            reached = try_to_reach(spawner, candidate, settings, data_dir, next_mark)
        except SpawnFailed as error:
            lacking[mode] = str(error)
            continue
        failed = [item for item, is_open in reached.items() if is_open and item != SIGNALS]
        if not failed:
            return replace(candidate, reached=reached, warnings=tuple(_warnings(candidate, settings)))
        lacking[mode] = f"a child that tried could reach: {', '.join(failed)}"
    if asked == AUTO:
        log.warning("agents can reach the secret and the supervisor: %s", "; ".join(lacking.values()))
        return Confinement(asked=asked, lacking=lacking)
    raise CannotStart(f"{PREFIX}CONFINE: {asked} cannot be had here: {lacking[asked]}")


def try_to_reach(
    spawner: Spawner, confinement: Confinement, settings: Settings, data_dir: Path, next_mark: Callable[[], str]
) -> dict[str, bool]:
    """
    Run a child, confined like that of an execution, which tries to reach each of :data:`ITEMS`.

    Returns for each item that exists here whether the child could reach it.

    Raises:
        SpawnFailed: No such child could be run.
    """
    paths = (settings.token_file, data_dir / LOCK_NAME, settings.access_key_file or "")
    problem = ""
    for python in map(os.path.realpath, _PYTHONS):
        argv = (python, "-I", "-S", "-c", _TRIAL, str(os.getpid()), *map(str, paths))
        user = settings.child_user
        command = Command(argv=argv, env={}, cwd=Path("/"), mark=next_mark(), user=user, confinement=confinement)
        try:
            child = spawner.spawn(command)
        except SpawnFailed as error:
            problem = problem or f"a child to try it, {python}, could not be started: {error}"
            continue
        ended, _ = child.finish(_TRIAL_SECONDS)
        if ended is not None and ended.code is not None and ended.code >= _FOUND:
            missing = {item for item, path in zip(ITEMS, paths, strict=False) if not os.path.lexists(path)}
            return {item: bool(ended.code >> place & 1) for place, item in enumerate(ITEMS) if item not in missing}
        problem = problem or f"a child to try it, {python}, did not work"
    raise SpawnFailed(problem)


def _closed(settings: Settings, data_dir: Path) -> tuple[Path, ...]:
    """List what a child must not reach: the directories of secret file and records, and the file of the access key."""
    secret, key = settings.token_file, settings.access_key_file
    found = [secret.parent, Path(os.path.realpath(secret)).parent, data_dir]
    found += [key] if key is not None else []
    return tuple(dict.fromkeys(Path(os.path.realpath(path)) for path in found))


def _open(settings: Settings) -> tuple[Path, ...]:
    return tuple(Path(os.path.realpath(path)) for path in (settings.workspace, settings.config_dir))


def _warnings(candidate: Confinement, settings: Settings) -> Iterator[str]:
    """Describe where agents can make no file because a closed one lies there, and which closed one they can replace."""
    for closed in candidate.closed:
        on_the_way = (closed, *closed.parents)
        if candidate.mode is Mode.LANDLOCK:
            for name in _SHARED_DIRECTORIES:
                place = Path(os.path.realpath(os.path.expanduser(name)))  # noqa: PTH111 - that raises
                if place in on_the_way:
                    yield f"agents can make no file in {place}, because {closed} lies in it: move that"
        elif (user := other_user(settings.child_user)) is not None:
            for place in filter(os.path.exists, on_the_way):
                if user.may_replace_in(place.stat()):
                    yield f"agents can put another {closed} in its place: they may write to {place}"


def _check(candidate: Confinement, settings: Settings) -> None:
    """
    Check that a confinement is possible, as far as that shows without a child.

    Raises:
        SpawnFailed: The confinement is not possible here.
    """
    if candidate.mode is Mode.USER:
        try:
            is_other = other_user(settings.child_user) is not None
        except UnknownUser:
            is_other = False
        if not is_other:
            raise SpawnFailed(f"{PREFIX}CHILD_USER names no other user")
        return
    if landlock.version() < landlock.LEAST_ABI:
        raise SpawnFailed("this kernel has no Landlock (Linux 5.19), or the container forbids it")
    for closed in candidate.closed:
        for place in candidate.open:
            if closed.is_relative_to(place):
                raise SpawnFailed(f"{closed} lies in {place}, where an agent works")
    if Path("/") in candidate.closed:
        raise SpawnFailed("the secret file and the records need directories of their own")
    os.close(candidate.ruleset())
