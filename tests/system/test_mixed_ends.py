"""Many attempts at once, of every size, that end in every way: nothing of them is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.families import program, run_driver

if TYPE_CHECKING:
    from agent_runtime.process.containment.sweep import Kind

TREE = program("tree.py")
"""Of as many processes as told: some in sessions of their own, some orphans, some without a mark."""


def _held(times: int, at_once: int, kind: Kind, timeout: float) -> None:
    found = run_driver(
        "many_attempts_that_end_in_every_way", TREE, str(times), str(at_once), kind=kind, timeout=timeout
    )
    assert found.pop("until then") < 20  # 2 s
    assert found.pop("processes") > times
    assert found == {
        "right codes": times,
        "survivors": 0,
        "unattributed": 0,
        "alive": 0,
        "marked": 0,
        "nothing below": True,
        "flat": True,
    }


@pytest.mark.slow
def test_forty_ends_of_every_kind_leave_nothing(kind: Kind) -> None:
    _held(40, 4, kind, 60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_ends_of_every_kind_leave_nothing(kind: Kind) -> None:
    """Within a minute on a quiet machine."""
    _held(1000, 4, kind, 590)
