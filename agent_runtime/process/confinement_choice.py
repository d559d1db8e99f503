"""Choose at start how children are kept away from the secret and the supervisor, by letting one of them try."""

from __future__ import annotations

import logging
import os
import select
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from agent_runtime.errors import CannotStart, SpawnFailed
from agent_runtime.process.linux import landlock
from agent_runtime.process.linux import syscalls as linux
from agent_runtime.process.linux.landlock import Confinement, Mode
from agent_runtime.process.spawn import Command
from agent_runtime.process.users import UnknownUser, other_user
from agent_runtime.settings import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.process.spawn import Spawner
    from agent_runtime.settings import Settings

log = logging.getLogger(__name__)

AUTO = "auto"
LOCK_NAME = "lock"
"""Of a file that is in every data directory."""

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

_FOUND = 128
_HUNT = f"""
import ctypes, os, sys
pid, secret, kept, key = int(sys.argv[1]), *sys.argv[2:5]
libc = ctypes.CDLL(None, use_errno=True)
def opened(path):
    if path:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    return path
def traced():
    return libc.ptrace(0x4206, pid, ctypes.c_void_p(0), ctypes.c_void_p(0)) == 0  # PTRACE_SEIZE stops nothing
tries = (
    lambda: opened(secret), lambda: opened(kept), lambda: opened(key), lambda: opened(f"/proc/{{pid}}/environ"),
    lambda: opened(f"/proc/{{pid}}/mem"), traced, lambda: os.kill(pid, 0) is None,
)
code = {_FOUND}
for place, reached in enumerate(tries):
    try:
        code |= bool(reached()) << place
    except OSError:
        pass
os._exit(code)
"""
_HUNT_SECONDS = 10.0


def choose(spawner: Spawner, settings: Settings, data_dir: Path, next_mark: Callable[[], str]) -> Confinement:
    """
    Return the confinement that was asked for; ``auto``: the best that works, else none, with a warning.

    This process itself leaves no core and cannot be read by others of its user from here on, unless it is ``off``.

    Raises:
        CannotStart: The one that was asked for is not available here.
    """
    asked = settings.confine
    if asked == Mode.OFF:
        return Confinement()
    linux.make_undumpable()
    lacking: dict[str, str] = {}
    for mode in (Mode.LANDLOCK, Mode.USER):
        if asked not in (AUTO, mode):
            continue
        candidate = Confinement(mode, asked, _closed(settings, data_dir), _open(settings), {}, lacking)
        try:
            _check(candidate, settings)
            reached = hunt(spawner, candidate, settings, data_dir, next_mark)
        except SpawnFailed as error:
            lacking[mode] = str(error)
            continue
        failed = [item for item, is_open in reached.items() if is_open and item != SIGNALS]
        if not failed:
            return replace(candidate, reached=reached)
        lacking[mode] = f"a child that tried could reach: {', '.join(failed)}"
    if asked == AUTO:
        log.warning("agents can reach the secret and the supervisor: %s", "; ".join(lacking.values()))
        return Confinement(asked=asked, lacking=lacking)
    raise CannotStart(f"{PREFIX}CONFINE: {asked} cannot be had here: {lacking[asked]}")


def hunt(
    spawner: Spawner, confinement: Confinement, settings: Settings, data_dir: Path, next_mark: Callable[[], str]
) -> dict[str, bool]:
    """
    Run a child as an execution's would run, and return which of :data:`ITEMS` that are there it could reach.

    Raises:
        SpawnFailed: It could not be run.
    """
    paths = (settings.token_file, data_dir / LOCK_NAME, settings.access_key_file or "")
    argv = (os.path.realpath(sys.executable), "-I", "-S", "-c", _HUNT, str(os.getpid()), *map(str, paths))
    user = settings.child_user
    command = Command(argv=argv, env={}, cwd=Path("/"), mark=next_mark(), user=user, confinement=confinement)
    try:
        child = spawner.spawn(command)
    except SpawnFailed as error:
        raise SpawnFailed(f"a child to try it could not be started: {error}") from None
    try:
        select.select([child.pidfd], [], [], _HUNT_SECONDS)
        ended = child.poll()
        child.sweep(time.monotonic() + _HUNT_SECONDS)
    finally:
        child.close()
    if ended is None or ended.code is None or ended.code < _FOUND:
        raise SpawnFailed("a child to try it did not work")
    missing = {item for item, path in zip(ITEMS, paths, strict=False) if not os.path.lexists(path)}
    return {item: bool(ended.code >> place & 1) for place, item in enumerate(ITEMS) if item not in missing}


def _closed(settings: Settings, data_dir: Path) -> tuple[Path, ...]:
    """List what a child has no business in: the directories of secret file and records, and the access key."""
    secret, key = settings.token_file, settings.access_key_file
    found = [secret.parent, Path(os.path.realpath(secret)).parent, data_dir]
    found += [key] if key is not None else []
    return tuple(dict.fromkeys(Path(os.path.realpath(path)) for path in found))


def _open(settings: Settings) -> tuple[Path, ...]:
    return tuple(Path(os.path.realpath(path)) for path in (settings.workspace, settings.config_dir))


def _check(candidate: Confinement, settings: Settings) -> None:
    """
    Look for what stands against it, as far as that shows without a child.

    Raises:
        SpawnFailed: It cannot be.
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
