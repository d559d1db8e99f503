"""Which layer contains attempts here: the best one there is, found out at start by trying it."""

from __future__ import annotations

import os
import select
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from agent_runtime import process
from agent_runtime.containment import Kind
from agent_runtime.errors import CannotStart
from agent_runtime.process import Command, NotSpawned
from agent_runtime.settings import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_runtime.process import Child

AUTO = "auto"
_TRIAL_SECONDS = 10.0
_TRIAL = "import os; raise SystemExit(os.readlink('/proc/self') != str(os.getpid()))"


@dataclass(frozen=True, slots=True)
class Containment:
    """
    How attempts are contained.

    Attributes:
        asked: The setting.
        lacking: Why a better layer, by its name, is not to be had here.
    """

    kind: Kind = Kind.SCAN
    asked: str = AUTO
    lacking: Mapping[str, str] = field(default_factory=dict)

    @property
    def state(self) -> dict[str, object]:
        """What ``/health`` shows."""
        return {"layer": self.kind.value, "setting": self.asked, "lacking": dict(self.lacking)}

    def spawn(self, command: Command) -> Child:
        """
        Start a child so that all it starts can be ended.

        Raises:
            NotSpawned: It could not be started; nothing is left open or running.
        """
        return process.spawn(command, self.kind)


def choose(asked: str, next_mark: Callable[[], str]) -> Containment:
    """
    Find out which layer can be used.

    Args:
        asked: The setting: ``auto``, or one layer by name.

    Raises:
        CannotStart: The layer asked for is not to be had here, or none.
    """
    lacking: dict[str, str] = {}
    for kind in Kind:
        if asked not in (AUTO, kind.value):
            continue
        obstacle = _OBSTACLES[kind](next_mark)
        if obstacle is None:
            return Containment(kind, asked, lacking)
        lacking[kind.value] = obstacle
    name, obstacle = lacking.popitem()
    advice = "" if asked == AUTO else f"; {PREFIX}CONTAINMENT=auto takes what there is"
    raise CannotStart(f"{PREFIX}CONTAINMENT: {name} cannot be used here: {obstacle}{advice}")


def _no_cgroup(_next_mark: Callable[[], str]) -> str | None:
    return "not built yet"


def _no_namespace(next_mark: Callable[[], str]) -> str | None:
    if os.geteuid() != 0:
        return "making PID namespaces needs root with CAP_SYS_ADMIN"
    return _try(Kind.PIDNS, next_mark())


def _no_scan(next_mark: Callable[[], str]) -> str | None:
    return _try(Kind.SCAN, next_mark())


_OBSTACLES: dict[Kind, Callable[[Callable[[], str]], str | None]] = {
    Kind.CGROUP: _no_cgroup,
    Kind.PIDNS: _no_namespace,
    Kind.SCAN: _no_scan,
}


def _try(kind: Kind, mark: str) -> str | None:
    """Run a child that looks whether it sees itself in ``/proc``, and say what went wrong."""
    argv = (sys.executable, "-I", "-S", "-c", _TRIAL)
    try:
        child = process.spawn(Command(argv=argv, env={}, cwd=Path("/"), mark=mark), kind)
    except NotSpawned as error:
        return str(error)
    try:
        select.select([child.pidfd], [], [], _TRIAL_SECONDS)
        ended = child.poll()
        survivors = child.sweep(time.monotonic() + _TRIAL_SECONDS).survivors
    finally:
        child.close()
    if ended is None or ended.code != 0 or survivors:
        return "a process that was started in it did not find itself, or could not be ended"
    return None
