"""
Find and end everything an attempt has started, and nothing else.

An attempt's shim is a subreaper, so whatever its leader has started stays below the shim: what is below it belongs
to the attempt, whatever it says of itself. Where somebody has killed the shim, its children come to us, as this
process is a subreaper, too. Of those a branch belongs to the attempt under which one of it was seen before (pid and
start time), else to the one whose mark one of it carries in its environment. Any other is left alone while an attempt
is running, and ended with the last one.

A process in our own session was never below a leader, as each leader begins a session of its own: it is never touched;
nor is the fork server, nor a shim.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, ClassVar, TypeVar

import msgspec

from agent_runtime.process.containment.freezer import Freezer
from agent_runtime.process.containment.registry import MARK_VARIABLE, SPARE, attempt_registry, is_of_this_start
from agent_runtime.process.containment.sweep import PassResult
from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.linux import syscalls as linux

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_runtime.process.containment.registry import AttemptProcesses, AttemptRegistry
    from agent_runtime.process.forkserver.server import ShimHandle
    from agent_runtime.process.linux.proc import Identity, Process, View

T = TypeVar("T")

_LOOK_AT_LEADER_EVERY = 4
_PASSES_BEFORE_KILLING_EACH = 3


class _Round(msgspec.Struct):
    """One look of one layer, as far as it has come."""

    view: View
    freezer: Freezer
    seen: dict[Identity, Process] = msgspec.field(default_factory=dict)
    fresh: int = 0
    is_one_of_many: bool = False
    group: int = 0


class ScanLayer:
    """Find an attempt's processes in ``/proc``: needs no privilege and nothing of the container."""

    is_certain: ClassVar[bool] = False

    def __init__(
        self, attempt: AttemptProcesses, handle: ShimHandle | None = None, attempts: AttemptRegistry = attempt_registry
    ) -> None:
        self._attempt = attempt
        self._shim_handle = handle
        self._patience = _PASSES_BEFORE_KILLING_EACH
        self._registry = attempts
        self._held: set[Identity] = set()
        self._seen: set[Identity] = set()
        self._lock = threading.RLock()

    @property
    def ended(self) -> int:
        """How many processes were found alive since they were to be ended."""
        return len(self._seen)

    def remember(self) -> None:
        """Note the leader's descendants, and those of its orphans that were known already; not without descriptors."""
        with self._lock:
            _try_with_spare(self._remember)

    def kill_pass(self, *, thorough: bool) -> PassResult:
        """Look once through the tree below us, and kill what belongs to the attempt."""
        with self._lock:
            seen = _try_with_spare(lambda: self._kill_pass(thorough=thorough))
            return PassResult(alive=max(1, len(self._attempt.remembered)), blind=True) if seen is None else seen

    def _remember(self) -> None:
        if not proc_table.shows_our_pids():
            return
        view = proc_table.look()
        known = (
            self._attempt.remembered
            if self._attempt.leader is None
            else self._attempt.remembered | {self._attempt.leader}
        )
        still_there = [process for identity in known if (process := _still_there(identity)) is not None]
        seen = {process.identity: process for process in still_there}
        roots = [root for root in still_there if root.identity == self._attempt.leader or root.parent == os.getpid()]
        for root in (*roots, *self._handle(view)):
            for process in proc_table.branch(view, root):
                if not process.dead:
                    seen[process.identity] = process
                if len(seen) % _LOOK_AT_LEADER_EVERY == 0 and self._is_for_the_sweep:
                    return
        self._attempt.remembered = frozenset(seen)

    def _kill_pass(self, *, thorough: bool) -> PassResult:
        me = proc_table.read_process(os.getpid())
        if me is None or not proc_table.shows_our_pids():
            return PassResult()
        adopters = () if self._attempt.shim is None else self._attempt.shim[:1]
        now = _Round(proc_table.look(), Freezer(*adopters), is_one_of_many=self._is_for_the_sweep)
        try:
            unattributed = self._hold_all(me, now, thorough=thorough)
        finally:
            if now.group and self._shim_handle is not None:
                self._shim_handle.kill_group()
                self._patience = _PASSES_BEFORE_KILLING_EACH if now.fresh else self._patience - 1
            now.freezer.kill()
            self._seen |= now.seen.keys()
            self._attempt.remembered |= now.seen.keys()
        return PassResult(len(now.seen), now.fresh, unattributed)

    def _hold_all(self, me: Process, now: _Round, *, thorough: bool) -> int:
        """Hold all that belongs to the attempt; return how many orphans may belong to any."""
        if thorough:
            now.view = proc_table.look(thorough=True)
        for root in self._handle(now.view):
            self._hold_branch(root, now)
        unattributed: list[Process] = []
        for root in now.view.children(me):
            if root.dead:
                self._registry.reap(root)
            elif root.session == me.session or self._registry.is_protected(root):
                continue
            elif (owner := self._owner_of(root, now.view)) is self._attempt:
                self._hold_branch(root, now)
            elif owner is None:
                unattributed.append(root)
        for process in self._overlooked(now):
            self._hold_branch(process, now)
        # Asked after looking: an attempt that began since then cannot be the owner of what was seen before.
        unattributed = [root for root in unattributed if self._registry.may_be_ours(root)]
        if not self._registry.is_quiet():
            return len(unattributed)
        for root in unattributed:
            self._hold_branch(root, now)
        return 0

    def _handle(self, view: View) -> list[Process]:
        """Return what is right below the shim, as long as there is one."""
        shim = None if self._attempt.shim is None else _still_there(self._attempt.shim)
        return [] if shim is None else view.children(shim)

    def _overlooked(self, now: _Round) -> Iterator[Process]:
        """Yield what was seen before and not in this look: lists of children have gaps while children are dying."""
        known = set(self._attempt.remembered)
        if self._attempt.leader is not None:
            known.add(self._attempt.leader)
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
                    continue  # what it leaves comes to its shim, where the next look finds it
            elif process.identity not in self._held and now.freezer.hold(process):
                self._held.add(process.identity)
                now.fresh += process.identity not in self._seen
            waiting.extend(now.view.children(process))

    def _is_in_group(self, process: Process) -> bool:
        """Tell whether a process is ended by a signal to the leader's group, as most are."""
        return self._shim_handle is not None and process.group == process.session == self._shim_handle.pid

    @property
    def _is_for_the_sweep(self) -> bool:
        """Whether the leader has ended, so that looks follow each other, and its shim has all that it left."""
        handle = self._shim_handle
        return handle is not None and linux.has_ended(handle.pidfd) and not handle.shim_has_ended

    def _owner_of(self, root: Process, view: View) -> AttemptProcesses | None:
        """Find the attempt that a child of ours belongs to: by what was seen before, else by the mark."""
        members = list(proc_table.branch(view, root))
        identities = {process.identity for process in members}
        attempts = self._registry.all()
        for attempt in attempts:
            if attempt.leader in identities or not attempt.remembered.isdisjoint(identities):
                return attempt
        marks = {proc_table.read_environ(process.pid, MARK_VARIABLE) for process in members}
        if (found := next((attempt for attempt in attempts if attempt.mark in marks), None)) is not None:
            return found
        # What an attempt that has ended left behind is for whichever sweep sees it first.
        return self._attempt if any(isinstance(mark, str) and is_of_this_start(mark) for mark in marks) else None


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
