"""Choose at start the layer that contains attempts: the best one with which a trial child can be ended here."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from agent_runtime.errors import CannotStart
from agent_runtime.process.child import Child
from agent_runtime.process.containment.leftovers import sweep_leftover_groups
from agent_runtime.process.containment.sweep import Kind
from agent_runtime.process.forkserver.server import PendingShim
from agent_runtime.process.linux import cgroup_setup as cgroups
from agent_runtime.process.linux.cgroup import Limits
from agent_runtime.process.linux.cgroup_setup import NO_LIMITS, Groups
from agent_runtime.process.linux.landlock import UNCONFINED, Confinement
from agent_runtime.process.linux.oom_kills import OomKills
from agent_runtime.process.spawn import Command, NotSpawned, Spawner
from agent_runtime.settings import PREFIX

AUTO = "auto"
_TRIAL_SECONDS = 10.0
_TRIAL = "import os; raise SystemExit(os.readlink('/proc/self') != str(os.getpid()))"


class Containment(msgspec.Struct, frozen=True):
    """
    How attempts are contained.

    Attributes:
        spawner: Starts the children.
        asked: The setting: ``auto``, or a layer by name.
        groups: Makes a cgroup for each attempt, to end or limit it; None: attempts get none.
        lacking: For each better layer the reason why it is not available here.
        oom_kills: The count of processes that the kernel killed for lack of memory, for all attempts together.
        confinement: What children cannot reach.
    """

    spawner: Spawner
    kind: Kind = Kind.SCAN
    asked: str = AUTO
    groups: Groups | None = None
    lacking: Mapping[str, str] = msgspec.field(default_factory=dict)
    oom_kills: OomKills = msgspec.field(default_factory=OomKills)
    confinement: Confinement = UNCONFINED

    @property
    def state(self) -> dict[str, Any]:
        """The values that ``/health`` shows."""
        return {"layer": self.kind.value, "setting": self.asked, "lacking": dict(self.lacking)}

    def spawn(self, command: Command, shim: PendingShim | None = None) -> Child:
        """
        Start a child so that its descendants can be ended.

        Args:
            shim: From :meth:`Spawner.forked_shim`.

        Raises:
            NotSpawned: The child could not be started; nothing is left open or running.
        """
        oom_kills_before = self.oom_kills.count()
        confined = replace(command, confinement=self.confinement)
        child = self.spawner.spawn(confined, self.kind, self.groups, shim, also_scan=self.asked == AUTO)
        child.oom_in_container = functools.partial(self.oom_kills.has_risen, oom_kills_before)
        return child

    def reap_orphans(self) -> None:
        """Reap the zombies among the orphans that this process has adopted."""
        self.spawner.registry.reap_orphans()

    def sweep_leftovers(self, data_dir: Path) -> int:
        """End the processes in the cgroups of an earlier supervisor of this data directory; return their number."""
        return 0 if self.groups is None else sweep_leftover_groups(self.groups, data_dir)


def choose(spawner: Spawner, asked: str, next_mark: Callable[[], str], limits: Limits = NO_LIMITS) -> Containment:
    """
    Try the layers and return the best that works.

    Args:
        asked: The setting: ``auto``, or one layer by name.
        next_mark: Returns a new mark for each trial child.
        limits: What each execution may use; a cgroup enforces it, whatever the layer.

    Raises:
        CannotStart: The requested layer or limit is not available here, or no layer is.
    """
    finding = cgroups.find()
    groups = cgroups.prepare(finding, limits)
    limiting = groups if limits.controllers else None
    lacking: dict[str, str] = {}
    for kind in Kind:
        if asked not in (AUTO, kind.value):
            continue
        obstacle = finding.reason if kind is Kind.CGROUP and not finding.has_kill else None
        used = groups if kind is Kind.CGROUP else limiting
        if obstacle is None:
            obstacle = _try(Containment(spawner, kind, asked, used, lacking), next_mark())
        if obstacle is None:
            return Containment(spawner, kind, asked, used, lacking, OomKills.of_this_container())
        lacking[kind.value] = obstacle
    name, obstacle = lacking.popitem()
    advice = "" if asked == AUTO else f"; {PREFIX}CONTAINMENT=auto takes what there is"
    raise CannotStart(f"{PREFIX}CONTAINMENT: {name} cannot be used here: {obstacle}{advice}")


def _try(containment: Containment, mark: str) -> str | None:
    """Run a child that checks that ``/proc`` shows it, and end it; return what failed, if anything."""
    argv = (sys.executable, "-I", "-S", "-c", _TRIAL)  # an image may have no shell
    try:
        child = containment.spawn(Command(argv=argv, env={}, cwd=Path("/"), mark=mark))
    except NotSpawned as error:
        return str(error)
    ended, report = child.finish(_TRIAL_SECONDS)
    if ended is None or ended.code != 0 or report.survivors:
        return "a process that was started in it did not find itself, or could not be ended"
    return None
