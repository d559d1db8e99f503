"""Many attempts at once, of every size, that end in every way: nothing of them is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.families import program, run_driver

if TYPE_CHECKING:
    from agent_runtime.process.containment.sweep import Kind

TREE = program("tree.py")
"""Of as many processes as told: some in sessions of their own, some orphans, some without a mark."""


@pytest.mark.slow
def test_two_hundred_ends_of_every_kind_leave_nothing(kind: Kind) -> None:
    times = 200
    found = run_driver("many_attempts_that_end_in_every_way", TREE, str(times), "4", kind=kind, timeout=110)
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
