"""
Find out whether cgroups (version 2) can be made here, and make one for each attempt.

A process that starts in a cgroup leaves it neither by ``setsid`` nor by forks, and one write ends all its processes.
Only a process that may write to cgroups can move out, such as a child that runs as the supervisor's own user.
Therefore the scan layer is used as well.

Limits need controllers, and a cgroup with enabled controllers may hold no process itself. Only if limits are requested,
all processes in our own cgroup (this one, an init, a person's shell) are moved into a leaf below it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent_runtime.errors import CannotStart
from agent_runtime.process.linux import cgroup_mount
from agent_runtime.process.linux.cgroup import Group, Limits, below, remove_tree

log = logging.getLogger(__name__)

PREFIX = "agent-runtime."
LEAF = "agent-runtime-supervisor"
"""With limits, the processes of the supervisor's cgroup are moved into this one; a restarted supervisor is in it."""

_TRIAL = "agent-runtime-trial."
_MOVING_ROUNDS = 100
_MOST_GROUPS_LOOKED_AT = 20_000
_PATIENCE_SECONDS = 1.0

_SETTINGS = {
    "memory": "AGENT_RUNTIME_EXECUTION_MEMORY",
    "pids": "AGENT_RUNTIME_EXECUTION_PIDS",
    "cpu": "AGENT_RUNTIME_EXECUTION_CPUS",
}
_REMEDY = (
    "give the container a writable cgroup v2 of its own (Docker: --cgroupns private with --security-opt "
    "writable-cgroups=true; containerd: cgroup_writable; systemd: Delegate=yes), or leave the setting out"
)


class CgroupSupport(msgspec.Struct, frozen=True):
    """
    Whether cgroups can be made here.

    Attributes:
        base: The cgroup below which they are made; None: they cannot be made.
        reason: A sentence for a person, in either case.
        has_kill: The kernel ends a whole cgroup in one write (Linux 5.14).
        controllers: The controllers that can be enabled here.
    """

    base: Path | None
    reason: str
    has_kill: bool = False
    controllers: frozenset[str] = frozenset()

    @property
    def usable(self) -> bool:
        """Whether each attempt can have a cgroup of its own."""
        return self.base is not None


class _Unavailable(Exception):
    """Cgroups cannot be made in this place, for the reason in the message."""


def find(proc: Path = Path("/proc/self")) -> CgroupSupport:
    """
    Find out whether cgroups can be made here: make one, move this process in and back out, remove it.

    Call it at start, before there are threads or children. It changes nothing permanently, except that it disables
    controllers that an earlier supervisor has enabled below this process's cgroup.

    Args:
        proc: The directory with ``cgroup`` and ``mountinfo`` of this process.
    """
    try:
        places = cgroup_mount.locate((proc / "cgroup").read_text(), (proc / "mountinfo").read_text())
    except (OSError, UnicodeDecodeError) as error:
        return CgroupSupport(None, f"what cgroup this process is in cannot be read ({type(error).__name__})")
    reasons = []
    for place in places:
        if isinstance(place, str):
            reasons.append(place)
            continue
        base = place.parent if place.name == LEAF else place
        try:
            has_kill = _try(base, place)
        except _Unavailable as error:
            reasons.append(str(error))
        else:
            how = "ended by cgroup.kill" if has_kill else "but this kernel has no cgroup.kill to end it (Linux 5.14)"
            return CgroupSupport(base, f"each attempt has a cgroup of its own, {how}", has_kill, _controllers(base))
    return CgroupSupport(None, reasons[0])


def _try(base: Path, own: Path) -> bool:
    trial = base / f"{_TRIAL}{os.getpid()}.{secrets.token_hex(4)}"
    try:
        trial.mkdir()
    except OSError as error:
        raise _Unavailable(_reason(error, base, "no cgroup can be made below")) from None
    try:
        _disable_controllers(own)
        with (own / "cgroup.procs").open("w") as back, contextlib.closing(Group(trial)) as group:
            os.write(group.procs, b"0")
            back.write("0")
        return (trial / "cgroup.kill").exists()
    except OSError as error:
        raise _Unavailable(_reason(error, base, "no process can be moved into a cgroup below")) from None
    finally:
        remove_tree(trial, _PATIENCE_SECONDS)


def _disable_controllers(own: Path) -> None:
    """
    Disable the controllers that an earlier supervisor has enabled below our own cgroup.

    No process lives below our cgroup, else this process could not be in it. While it has enabled controllers and this
    process, the cgroups below can only be threaded ones, into which no process can be moved.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#threads
    """
    handed_down = (own / "cgroup.subtree_control").read_text().split()
    if handed_down and not _is_root(own):
        (own / "cgroup.subtree_control").write_text(" ".join(f"-{name}" for name in handed_down))


def _is_root(group: Path) -> bool:
    """Whether a cgroup is the machine's root, the only one that may have both processes and enabled controllers."""
    return not (group / "cgroup.type").exists()


def _reason(error: OSError, base: Path, what: str) -> str:
    if error.errno == errno.EROFS:
        return f"the cgroup v2 at {base} is mounted read-only"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{what} {base}: it is not delegated to this user"
    return f"{what} {base} ({errno.errorcode.get(error.errno or 0, 'unknown error')})"


def _controllers(base: Path) -> frozenset[str]:
    return frozenset((base / "cgroup.controllers").read_text().split())


class Groups:
    """
    Makes the cgroups of attempts. Made by :func:`prepare` only.

    Attributes:
        limits: What each attempt may use.
    """

    def __init__(self, base: Path, limits: Limits) -> None:
        self.base = base
        self.limits = limits

    def make(self, mark: str) -> Group:
        """
        Make the cgroup of one attempt, without a process in it.

        Args:
            mark: The attempt's mark; it is part of the group's name, so that the next supervisor recognises leftovers.

        Raises:
            OSError: The system refuses, or a group of this name, which is another's, exists; nothing is left behind.
        """
        directory = self.base / (PREFIX + mark)
        directory.mkdir()
        group: Group | None = None
        try:
            # The limits come first, while the group is empty: no process is ever in it without them.
            for name, value, needed in self.limits.files():
                if needed or (directory / name).exists():
                    (directory / name).write_text(value)
            group = Group(directory)
        finally:
            if group is None:
                remove_tree(directory)
        return group

    def leftovers(self, is_left: Callable[[str], bool]) -> list[Path]:
        """
        List the cgroups of an earlier supervisor; all visible ones are searched, because it may have had another base.

        Args:
            is_left: Returns whether a mark is of an earlier supervisor of our data directory.
        """
        top = self.base
        while (top.parent / "cgroup.procs").exists():
            top = top.parent
        found = []
        try:
            for number, group in enumerate(below(top)):
                name = group.rpartition("/")[2]
                if name.startswith(PREFIX) and is_left(name.removeprefix(PREFIX)):
                    found.append(Path(group))
                if number >= _MOST_GROUPS_LOOKED_AT:
                    break
        except OSError as error:
            log.warning("not all cgroups could be searched for leftovers: %s", errno.errorcode.get(error.errno or 0))
        return found


NO_LIMITS = Limits()


def check(finding: CgroupSupport, limits: Limits) -> None:
    """
    Check that limits can be enforced, as far as that shows without changing anything.

    Raises:
        CannotStart: A limit cannot be enforced here; the message says which, why, and what to do.
    """
    for name in limits.controllers:
        if not finding.usable:
            raise _not_enforceable(name, finding.reason)
        if name not in finding.controllers:
            raise _not_enforceable(name, f"no {name} controller is handed down to the cgroup of this process")


def prepare(finding: CgroupSupport, limits: Limits = NO_LIMITS) -> Groups | None:
    """
    Prepare the cgroups of attempts; with limits, move the processes in our own cgroup into a leaf below it.

    Returns None if cgroups cannot be made and no limit needs them.

    Raises:
        CannotStart: A limit cannot be enforced here; the message says which, why, and what to do.
    """
    check(finding, limits)
    if finding.base is None:
        return None
    groups = Groups(finding.base, limits)
    if limits.controllers:
        _enable_controllers(finding.base, limits.controllers)
        _try_limits(groups)
    return groups


def _not_enforceable(controller: str, reason: str) -> CannotStart:
    return CannotStart(f"{_SETTINGS[controller]} cannot be enforced here: {reason}; {_REMEDY}")


def _enable_controllers(base: Path, controllers: tuple[str, ...]) -> None:
    """Enable controllers below *base*, after moving its processes into the leaf."""
    missing = [name for name in controllers if name not in (base / "cgroup.subtree_control").read_text().split()]
    if not missing:
        return
    words = " ".join(f"+{name}" for name in missing)
    error: OSError | None = None
    for _ in range(_MOVING_ROUNDS):
        try:
            if not _is_root(base):
                _move_into_leaf(base)
            (base / "cgroup.subtree_control").write_text(words)
        except _Unavailable as caught:
            raise _not_enforceable(missing[0], str(caught)) from None
        except OSError as caught:
            error = caught
            if caught.errno != errno.EBUSY:
                break
        else:
            return
    raise _not_enforceable(
        missing[0], _reason(error or OSError(), base, "controllers cannot be handed down to a cgroup below")
    )


def _move_into_leaf(base: Path) -> None:
    leaf = base / LEAF
    leaf.mkdir(exist_ok=True)
    for pid in (base / "cgroup.procs").read_text().split():
        if pid == "0":
            raise _Unavailable(f"a process that cannot be seen from here is in the cgroup {base}, too")
        try:
            (leaf / "cgroup.procs").write_text(pid)
        except ProcessLookupError:
            continue  # it has ended


def _try_limits(groups: Groups) -> None:
    """Set the limits on a cgroup that is removed again, to see whether that works."""
    try:
        groups.make(f"trial.{secrets.token_hex(8)}").remove()
    except OSError as error:
        raise _not_enforceable(
            groups.limits.controllers[0], _reason(error, groups.base, "it cannot be set on a cgroup below")
        ) from None
