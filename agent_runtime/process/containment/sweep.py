"""How an attempt and everything it has started are ended: layers, each of which must be enough alone, and the sweep."""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

_PAUSE_SECONDS = 0.001
_LONGEST_PAUSE_SECONDS = 0.008
_PASSES_LEFT_TO_THE_FIRST = 4
_LOOKING_IS_WORTH = 2
"""So many times as long as a look takes is waited for the next: what is dying needs the processor, too."""


class Kind(Enum):
    """The layers; the value is that of the setting."""

    CGROUP = "cgroup"
    SCAN = "scan"


class PassResult(msgspec.Struct, frozen=True):
    """
    What one look at what an attempt left behind has shown.

    Attributes:
        alive: How many of the attempt still lived, those already signalled among them.
        fresh: How many were signalled for the first time.
        unowned: How many orphans were left alone because their owner is not known.
        blind: Nothing could be seen, for want of descriptors.
    """

    alive: int = 0
    fresh: int = 0
    unattributed: int = 0
    blind: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing was found, by a look that could have found something."""
        return not self.alive and not self.blind


class Layer(Protocol):
    """
    One way of finding and ending what an attempt has started; none needs a fork or a thread.

    Attributes:
        is_certain: The kernel knows who belongs to the attempt: one look that finds nothing is enough.
    """

    is_certain: ClassVar[bool]

    @property
    def ended(self) -> int:
        """How many processes were found alive since they were to be ended."""
        ...

    def remember(self) -> None:
        """Note what is there now, to know it again when its parents are gone; cheap, and kills nothing."""

    def kill_pass(self, *, thorough: bool) -> PassResult:
        """
        Look once and kill what is found.

        Args:
            thorough: Take the more certain way to look, however slow.
        """
        ...


class SweepReport(msgspec.Struct, frozen=True):
    """
    What a sweep has done.

    Attributes:
        killed: How many processes were found alive and ended, the leader among them if it had to be.
        survivors: How many still lived at the deadline.
        unowned: Orphans left alone because another attempt may own them.
    """

    killed: int
    survivors: int
    unattributed: int
    seconds: float


def sweep(layers: Sequence[Layer], deadline: float) -> SweepReport:
    """
    Kill what an attempt has left, until two looks in a row find nothing; one look, where the first layer is certain.

    Args:
        layers: The first does the work; the others look for who has escaped it, once it finds nothing new.
        deadline: When to give up, on the monotonic clock; there is at least one look.
    """
    began = time.monotonic()
    empty_passes, needed = 0, 1 if layers[0].is_certain else 2
    is_first = True
    without_news = 0
    pause = _PAUSE_SECONDS
    while True:
        found = []
        reread = time.monotonic()
        for layer in layers:
            found.append(layer.kill_pass(thorough=empty_passes > 0))
            if not found[-1].is_empty and without_news < _PASSES_LEFT_TO_THE_FIRST:
                break
        empty_passes = empty_passes + 1 if all(look.is_empty for look in found) else 0
        now = time.monotonic()
        if empty_passes == needed or now >= deadline:
            break
        has_news = any(look.fresh for look in found)
        without_news = 0 if has_news else without_news + 1
        if has_news or empty_passes:
            pause = _PAUSE_SECONDS
        if is_first or not has_news:  # who forks as fast as we look gets no pause but the first
            time.sleep(max(pause, (now - reread) * _LOOKING_IS_WORTH))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        is_first = False
    return SweepReport(
        killed=max(layer.ended for layer in layers),
        survivors=max(look.alive for look in found),
        unattributed=max(look.unattributed for look in found),
        seconds=time.monotonic() - began,
    )
