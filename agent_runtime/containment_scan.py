"""
Find and end everything an attempt has started, and nothing else.

Who belongs to whom. An attempt's keeper is a subreaper, so whatever its leader has started stays below the keeper: what
is below it belongs to the attempt, whatever it says of itself. That is all, unless somebody has killed the keeper. Then
its children come to us, as this process is a subreaper, too: every child of ours is the root of a branch, and a whole
branch belongs to one attempt:

1. a leader's branch to its attempt;
2. an orphan's branch to the attempt under which one of it was seen before (pid and start time),
3. else to the attempt whose mark one of them carries in its environment,
4. else to the attempt in one of whose sessions one of them was born;
5. else its owner is unknown: it is left alone while an attempt is running, and ended with the last one.

A process in our own session was never below a leader, as each leader begins a session of its own: it is never touched;
nor is the nursery, nor a keeper.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

import msgspec

from agent_runtime import linux, proc_table
from agent_runtime.containment import Look
from agent_runtime.grip import Grip
from agent_runtime.living import MARK_VARIABLE, SPARE, is_of_this_start, living
from agent_runtime.proc_table import NoMark, Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from agent_runtime.living import Kin, Living
    from agent_runtime.nursery import Kept
    from agent_runtime.proc_table import Identity, View

T = TypeVar("T")

_LOOKS_AT_AN_EMPTY_ENVIRONMENT = 10
_LOOK_AT_LEADER_EVERY = 4
_LOOKS_BEFORE_KILLING_EACH = 3


class Owner(Enum):
    """To whom a branch of the tree belongs, as seen from one attempt."""

    THIS = "this attempt"
    FINISHED = "an attempt that has ended"
    OTHER = "another attempt"
    UNKNOWN = "nobody knows"
    UNSETTLED = "look again"


class _Round(msgspec.Struct):
    """One look of one layer, as far as it has come."""

    view: View
    ticks: int
    grip: Grip
    seen: dict[Identity, Process] = msgspec.field(default_factory=dict)
    fresh: int = 0
    is_one_of_many: bool = False
    group: int = 0


class _Unowned(NamedTuple):
    unknown: int
    unsettled: int


class ScanLayer:
    """Find an attempt's processes in ``/proc``: needs no privilege and nothing of the container."""

    ends_keeper: ClassVar[bool] = False
    is_certain: ClassVar[bool] = False

    def __init__(self, kin: Kin, kept: Kept | None = None, attempts: Living = living) -> None:
        self._kin = kin
        self._kept_leader = kept
        self._patience = _LOOKS_BEFORE_KILLING_EACH
        self._living = attempts
        self._held: set[Identity] = set()
        self._seen: set[Identity] = set()
        self._empty_looks: dict[Identity, int] = {}
        self._lock = threading.RLock()

    @property
    def ended(self) -> int:
        """How many processes were found alive since they were to be ended."""
        return len(self._seen)

    def remember(self) -> None:
        """Note the leader's descendants, and those of its orphans that were known already; not without descriptors."""
        with self._lock:
            _try_with_spare(self._remember)

    def strike(self, *, thorough: bool) -> Look:
        """Look once through the tree below us, and kill what belongs to the attempt."""
        with self._lock:
            seen = _try_with_spare(lambda: self._strike(thorough=thorough))
            return Look(alive=max(1, len(self._kin.remembered)), blind=True) if seen is None else seen

    def _remember(self) -> None:
        if not proc_table.shows_our_pids():
            return
        view = proc_table.look()
        now_ticks = linux.boot_ticks()
        known = self._kin.remembered if self._kin.leader is None else self._kin.remembered | {self._kin.leader}
        still_there = [process for identity in known if (process := _still_there(identity)) is not None]
        seen = {process.identity: process for process in still_there}
        roots = [root for root in still_there if root.identity == self._kin.leader or root.parent == os.getpid()]
        for root in (*roots, *self._kept(view)):
            for process in proc_table.branch(view, root):
                if not process.dead:
                    seen[process.identity] = process
                if len(seen) % _LOOK_AT_LEADER_EVERY == 0 and self._is_for_the_sweep:
                    return
        self._keep(seen.values(), now_ticks)
        self._kin.remembered = frozenset(seen)

    def _strike(self, *, thorough: bool) -> Look:
        me = proc_table.read_process(os.getpid())
        if me is None or not proc_table.shows_our_pids():
            return Look()
        adopters = () if self._kin.keeper is None else self._kin.keeper[:1]
        now = _Round(proc_table.look(), linux.boot_ticks(), Grip(*adopters), is_one_of_many=self._is_for_the_sweep)
        try:
            unowned = self._hold_all(me, now, thorough=thorough)
        finally:
            if now.group and self._kept_leader is not None:
                self._kept_leader.kill_group()
                self._patience = _LOOKS_BEFORE_KILLING_EACH if now.fresh else self._patience - 1
            now.grip.kill()
            self._seen |= now.seen.keys()
            self._kin.remembered |= now.seen.keys()
            self._keep(now.seen.values(), now.ticks)
        return Look(len(now.seen) + unowned.unsettled, now.fresh, unowned.unknown)

    def _hold_all(self, me: Process, now: _Round, *, thorough: bool) -> _Unowned:
        if thorough:
            now.view = proc_table.look(thorough=True)
        for root in self._kept(now.view):
            self._hold_branch(root, now)
        unknown: list[Process] = []
        unsettled: list[Process] = []
        for root in now.view.children(me):
            if root.dead:
                self._living.reap(root)
                continue
            if root.session == me.session or self._living.spares(root):
                continue
            owner = self._owner_of(root, now.view)
            if owner in {Owner.THIS, Owner.FINISHED}:
                self._hold_branch(root, now)
            elif owner is Owner.UNKNOWN:
                unknown.append(root)
            elif owner is Owner.UNSETTLED:
                unsettled.append(root)
        for process in self._overlooked(now):
            self._hold_branch(process, now)
        if not linux.is_subreaper():
            for process in self._strays(me):
                self._hold_branch(process, now)
        # Asked after looking: an attempt that began since then cannot be the owner of what was seen before.
        unknown = [root for root in unknown if self._living.may_be_ours(root)]
        if (unknown or unsettled) and self._living.is_quiet():
            for root in (*unknown, *filter(self._living.may_be_ours, unsettled)):
                self._hold_branch(root, now)
            return _Unowned(0, 0)
        return _Unowned(len(unknown), len(unsettled))

    def _kept(self, view: View) -> list[Process]:
        """Return what is right below the keeper, as long as there is one."""
        keeper = None if self._kin.keeper is None else _still_there(self._kin.keeper)
        return [] if keeper is None else view.children(keeper)

    def _overlooked(self, now: _Round) -> Iterator[Process]:
        """Yield what was seen before and not in this look: lists of children have gaps while children are dying."""
        known = set(self._kin.remembered)
        if self._kin.leader is not None:
            known.add(self._kin.leader)
        for identity in known - now.seen.keys():
            if (process := _still_there(identity)) is not None:
                yield process

    def _hold_branch(self, root: Process, now: _Round) -> None:
        waiting = deque([root])
        while waiting:
            process = waiting.popleft()
            if process.dead or process.identity in now.seen:
                continue
            now.seen[process.identity] = process
            if self._patience and self._is_in_group(process):
                now.group += 1
                now.fresh += process.identity not in self._seen
                if now.is_one_of_many:
                    continue  # what it leaves comes to its keeper, where the next look finds it
            elif process.identity not in self._held and now.grip.hold(process):
                self._held.add(process.identity)
                now.fresh += process.identity not in self._seen
            waiting.extend(now.view.children(process))

    def _is_in_group(self, process: Process) -> bool:
        """Tell whether a process is ended by a signal to the leader's group, as most are."""
        return self._kept_leader is not None and process.group == process.session == self._kept_leader.pid

    @property
    def _is_for_the_sweep(self) -> bool:
        """Whether the leader has ended, so that looks follow each other, and its keeper has all that it left."""
        kept = self._kept_leader
        return kept is not None and linux.has_ended(kept.pidfd) and not kept.keeper_has_ended

    def _owner_of(self, root: Process, view: View) -> Owner:
        attempts = self._living.all()
        for kin in attempts:
            if kin.leader == root.identity:
                return self._as_seen_from_here(kin)
        if root.identity in self._held:
            return Owner.THIS
        owner = self._by_evidence([root], attempts)
        if owner is None:
            members = list(proc_table.branch(view, root))
            owner = self._by_evidence(members, attempts) or self._by_session(members, attempts)
        if owner is not None:
            return owner
        if proc_table.read_environ(root.pid, MARK_VARIABLE) is NoMark.EMPTY:
            looks = self._empty_looks[root.identity] = self._empty_looks.get(root.identity, 0) + 1
            if looks < _LOOKS_AT_AN_EMPTY_ENVIRONMENT:
                return Owner.UNSETTLED
        return Owner.UNKNOWN

    def _by_evidence(self, members: Sequence[Process], attempts: Sequence[Kin]) -> Owner | None:
        identities = {process.identity for process in members}
        for kin in attempts:
            if not kin.remembered.isdisjoint(identities):
                return self._as_seen_from_here(kin)
        for process in members:
            mark = proc_table.read_environ(process.pid, MARK_VARIABLE)
            if isinstance(mark, NoMark):
                continue
            for kin in attempts:
                if kin.mark == mark:
                    return self._as_seen_from_here(kin)
            if is_of_this_start(mark):
                return Owner.FINISHED
        return None

    def _by_session(self, members: Sequence[Process], attempts: Sequence[Kin]) -> Owner | None:
        for kin in attempts:
            if any(kin.bore(process) for process in members):
                return self._as_seen_from_here(kin)
        return None

    def _as_seen_from_here(self, kin: Kin) -> Owner:
        return Owner.THIS if kin is self._kin else Owner.OTHER

    def _strays(self, me: Process) -> Iterator[Process]:
        """Yield what is ours though it is not below us: without a subreaper orphans go to init."""
        for process in proc_table.all_processes():
            if process.dead or process.parent == me.pid or process.session == me.session:
                continue
            if process.started_ticks < self._kin.began_ticks:
                continue
            if (
                process.identity in self._kin.remembered
                or proc_table.read_environ(process.pid, MARK_VARIABLE) == self._kin.mark
            ):
                yield process

    def _keep(self, processes: Iterable[Process], at_ticks: int) -> None:
        for process in processes:
            self._kin.saw_session(process.session, at_ticks)


def _still_there(identity: Identity) -> Process | None:
    process = proc_table.read_process(identity[0])
    return process if process is not None and process.identity == identity and not process.dead else None


def _try_with_spare(act: Callable[[], T]) -> T | None:
    """Act, with the spare descriptors if there are no others; None if there were none at all."""
    for spare in (contextlib.nullcontext(), SPARE.lent()):
        try:
            with spare:
                return act()
        except OSError as error:
            if error.errno not in linux.OUT_OF_DESCRIPTORS:
                raise
    return None
