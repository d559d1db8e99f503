"""The stop sequence: which phase follows which, and when; no process and no clock."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from agent_runtime.execution.stop import GIVE_UP_SECONDS, StopPhase, StopSequence
from agent_runtime.model.state import StopReason

if TYPE_CHECKING:
    from collections.abc import Iterator

GRACE_SECONDS = 3.0


@pytest.fixture
def stop() -> Iterator[StopSequence]:
    made = StopSequence(GRACE_SECONDS)
    yield made
    made.wake.close()


def test_it_is_interrupted_killed_and_abandoned_each_at_its_time(stop: StopSequence) -> None:
    assert (stop.advance(1e9), stop.phase, stop.due_at) == (None, StopPhase.RUNNING, math.inf)
    stop.request(StopReason.CANCELLED)

    entered = [stop.advance(now) for now in (10, 10, 12.9, 13, 13, 17.9, 13 + GIVE_UP_SECONDS, 1e9)]

    expected = [StopPhase.INTERRUPTED, None, None, StopPhase.KILLED, None, None, StopPhase.ABANDONED, None]
    assert entered == expected
    assert stop.due_at == math.inf


@pytest.mark.parametrize("later", [False, True])
def test_at_once_there_is_no_grace_whether_asked_for_first_or_later(stop: StopSequence, later: bool) -> None:
    stop.request(StopReason.SHUTDOWN, at_once=not later)
    assert stop.advance(10) is StopPhase.INTERRUPTED
    if later:
        stop.request(StopReason.CANCELLED, at_once=True)

    assert stop.due_at < 10, "the poll loop must not sleep before it"
    assert stop.advance(10) is StopPhase.KILLED
    assert (stop.reason, stop.due_at) == (StopReason.SHUTDOWN, 10 + GIVE_UP_SECONDS)


def test_a_request_after_the_end_wakes_nothing_and_the_first_reason_stays() -> None:
    stop = StopSequence(GRACE_SECONDS)
    stop.request(StopReason.TIMEOUT)
    stop.wake.close()
    stop.request(StopReason.CANCELLED, at_once=True)

    assert stop.reason is StopReason.TIMEOUT
