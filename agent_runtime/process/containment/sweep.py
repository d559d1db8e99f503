"""End an attempt and all its processes: the interface of the layers, one of which is sufficient, and the sweep."""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import Enum
from typing import ClassVar, Protocol

import msgspec

_PAUSE_SECONDS = 0.001
_LONGEST_PAUSE_SECONDS = 0.008
_PASSES_LEFT_TO_THE_FIRST = 4
_PAUSE_BY_PASS = 2
"""Pause at least this many times as long as the last pass took, so that dying processes get CPU time."""


class Kind(Enum):
    """The layers, best first; the values are those of the setting."""

    CGROUP = "cgroup"
    SCAN = "scan"


class PassResult(msgspec.Struct, frozen=True):
    """
    The result of one kill pass.

    Attributes:
        alive: How many processes of the attempt still lived, including those already signalled.
        new: How many were signalled for the first time.
        unattributed: How many orphans were left alone because their owner is unknown.
    """

    alive: int = 0
    new: int = 0
    unattributed: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether no process was found alive."""
        return not self.alive


class Layer(Protocol):
    """
    One way of finding and ending an attempt's processes; none needs a fork or a thread.

    Attributes:
        is_certain: Whether the kernel knows the processes of the attempt: one pass that finds nothing is enough then.
    """

    is_certain: ClassVar[bool]

    @property
    def ended(self) -> int:
        """How many processes were found alive by kill passes."""
        ...

    def kill_pass(self, *, thorough: bool) -> PassResult:
        """
        Search once and kill what is found.

        Args:
            thorough: Search in the most certain way, even if it is slow.
        """
        ...


class SweepReport(msgspec.Struct, frozen=True):
    """
    The result of a sweep.

    Attributes:
        killed: How many processes the kill passes found alive and ended, including the leader if it lived.
        survivors: How many still lived at the deadline.
        unattributed: Orphans left alone because another attempt may own them.
    """

    killed: int
    survivors: int
    unattributed: int
    seconds: float


def sweep(layers: Sequence[Layer], deadline: float) -> SweepReport:
    """
    Kill an attempt's processes until two passes in a row find nothing; one pass if the first layer is certain.

    Args:
        layers: The first does the work; the others find processes that have escaped it, once it finds none that is new.
        deadline: When to give up, on the monotonic clock; there is at least one pass.
    """
    began = time.monotonic()
    empty_passes, needed = 0, 1 if layers[0].is_certain else 2
    is_first = True
    passes_without_new = 0
    pause = _PAUSE_SECONDS
    while True:
        found = []
        pass_began = time.monotonic()
        for layer in layers:
            found.append(layer.kill_pass(thorough=empty_passes > 0))
            if not found[-1].is_empty and passes_without_new < _PASSES_LEFT_TO_THE_FIRST:
                break
        empty_passes = empty_passes + 1 if all(result.is_empty for result in found) else 0
        now = time.monotonic()
        if empty_passes == needed or now >= deadline:
            break
        found_new = any(result.new for result in found)
        passes_without_new = 0 if found_new else passes_without_new + 1
        if found_new or empty_passes:
            pause = _PAUSE_SECONDS
        if is_first or not found_new:  # processes that fork as fast as we search get no pause but the first
            time.sleep(max(pause, (now - pass_began) * _PAUSE_BY_PASS))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        is_first = False
    return SweepReport(
        killed=max(layer.ended for layer in layers),
        survivors=max(result.alive for result in found),
        unattributed=max(result.unattributed for result in found),
        seconds=time.monotonic() - began,
    )
