"""
Find and end everything that an attempt has started, and nothing else.

An attempt's shim is a subreaper, so all descendants of its leader stay below the shim and belong to the attempt. After
the death of a shim this process adopts its children, because it is a subreaper too. Such an orphan and its descendants
belong to the attempt whose leader is among them, else to the attempt whose mark one of them has in its environment. Any
other orphan can only come from an attempt whose shim has ended, so it is left alone as long as such an attempt goes on.

Each leader begins a session of its own, so a process in our own session was never below a leader and is never touched.
The fork server and the shims are never touched either.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import ClassVar

import msgspec

from agent_runtime.process.containment.freezer import Freezer
from agent_runtime.process.containment.registry import (
    MARK_VARIABLE,
    AttemptProcesses,
    AttemptRegistry,
    is_of_this_start,
)
from agent_runtime.process.containment.sweep import PassResult
from agent_runtime.process.forkserver.server import ShimHandle
from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.linux import syscalls as linux
from agent_runtime.process.linux.proc import Identity, Process, View

_PASSES_BEFORE_KILLING_EACH = 3
"""After this many signals to the leader's group that end no new process, each process is killed by itself."""


class _Pass(msgspec.Struct):
    """
    The state of one kill pass.

    Attributes:
        seen: The living processes of the attempt that this pass has found.
        new: How many of these are signalled for the first time.
        more_follow: Whether another pass follows at once, so that this one need not look below every process.
        group: How many of these the signal to the leader's group ends.
    """

    view: View
    freezer: Freezer
    seen: dict[Identity, Process] = msgspec.field(default_factory=dict)
    new: int = 0
    more_follow: bool = False
    group: int = 0


class ScanLayer:
    """Finds an attempt's processes in ``/proc``; needs no privilege and no feature of the container."""

    is_certain: ClassVar[bool] = False

    def __init__(self, attempt: AttemptProcesses, registry: AttemptRegistry, handle: ShimHandle | None = None) -> None:
        self._attempt = attempt
        self._shim_handle = handle
        self._passes_left = _PASSES_BEFORE_KILLING_EACH
        self._registry = registry
        self._frozen: set[Identity] = set()
        self._seen: set[Identity] = set()
        self._lock = threading.RLock()

    @property
    def ended(self) -> int:
        """How many processes were found alive by kill passes."""
        return len(self._seen)

    def kill_pass(self, *, thorough: bool) -> PassResult:
        """
        Search the tree below this process once, and kill the processes of the attempt.

        Without free descriptors nothing can be searched; then the shim, which has descriptors of its own, ends them.
        """
        with self._lock:
            try:
                return self._kill_pass(thorough=thorough)
            except OSError as error:
                if error.errno not in linux.OUT_OF_DESCRIPTORS:
                    raise
            if self._shim_handle is not None:
                self._shim_handle.release()
            return PassResult(alive=int(self._shim_handle is None or not self._shim_handle.shim_has_ended))

    def _kill_pass(self, *, thorough: bool) -> PassResult:
        me = proc_table.read_process(os.getpid())
        if me is None or not proc_table.shows_our_pids():
            return PassResult()
        adopters = () if self._attempt.shim is None else self._attempt.shim[:1]
        current = _Pass(
            proc_table.take_view(thorough=thorough), Freezer(*adopters), more_follow=self._more_passes_follow
        )
        try:
            unattributed = self._freeze_all(me, current)
        finally:
            if current.group and self._shim_handle is not None:
                self._shim_handle.kill_group()
                self._passes_left = _PASSES_BEFORE_KILLING_EACH if current.new else self._passes_left - 1
            current.freezer.kill()
            self._seen |= current.seen.keys()
        return PassResult(len(current.seen), current.new, unattributed)

    def _freeze_all(self, me: Process, current: _Pass) -> int:
        """Stop all processes of the attempt; return how many orphans may belong to any attempt."""
        for root in self._below_shim(current.view):
            self._freeze_branch(root, current)
        unattributed: list[Process] = []
        for root in current.view.children(me):
            if root.dead:
                self._registry.reap(root)
            elif root.session == me.session or self._registry.is_protected(root):
                continue
            elif (owner := self._owner_of(root, current.view)) is self._attempt:
                self._freeze_branch(root, current)
            elif owner is None:
                unattributed.append(root)
        # Checked after the search: a shim that lives still has adopted all orphans of its attempt until now.
        unattributed = [root for root in unattributed if self._registry.comes_from_an_attempt(root)]
        if unattributed and not self._registry.may_end_unknown():
            return len(unattributed)
        for root in unattributed:
            self._freeze_branch(root, current)
        return 0

    def _below_shim(self, view: View) -> list[Process]:
        """Return the children of the shim, if it lives."""
        shim = None if self._attempt.shim is None else proc_table.read_living(self._attempt.shim)
        return [] if shim is None else view.children(shim)

    def _freeze_branch(self, root: Process, current: _Pass) -> None:
        waiting = deque([root])
        while waiting:
            process = waiting.popleft()
            if process.dead or process.identity in current.seen:
                continue
            current.seen[process.identity] = process
            if self._passes_left and self._is_in_group(process):
                current.group += 1
                current.new += process.identity not in self._seen
                if current.more_follow:
                    continue  # its shim adopts its orphans, and the next pass finds them there
            elif process.identity not in self._frozen and current.freezer.freeze(process):
                self._frozen.add(process.identity)
                current.new += process.identity not in self._seen
            waiting.extend(current.view.children(process))

    def _is_in_group(self, process: Process) -> bool:
        """Whether a signal to the leader's group ends the process, as it ends most."""
        return self._shim_handle is not None and process.group == process.session == self._shim_handle.pid

    @property
    def _more_passes_follow(self) -> bool:
        """Whether the leader has ended and its shim lives to adopt its orphans: kill passes follow each other then."""
        handle = self._shim_handle
        return handle is not None and linux.has_ended(handle.pidfd) and not handle.shim_has_ended

    def _owner_of(self, root: Process, view: View) -> AttemptProcesses | None:
        """Return the attempt that a child of ours belongs to: by its leader, else by the mark."""
        members = list(proc_table.branch(view, root))
        identities = {process.identity for process in members}
        marks = {proc_table.read_environ(process.pid, MARK_VARIABLE) for process in members}
        attempts = self._registry.all()
        by_leader = [attempt for attempt in attempts if attempt.leader in identities]
        if found := by_leader or [attempt for attempt in attempts if attempt.mark in marks]:
            return found[0]
        # Leftovers of an ended attempt belong to the first sweep that finds them.
        return self._attempt if any(mark is not None and is_of_this_start(mark) for mark in marks) else None
