"""What a killed supervisor leaves: the next one is not ready before it is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from agent_runtime.process.containment.leftovers import await_shims
from tests.support.families import DRIVERS, ROOT, alive

if TYPE_CHECKING:
    from pathlib import Path


def test_after_the_wait_for_the_shims_of_a_killed_supervisor_nothing_of_theirs_is_left(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(DRIVERS / "supervisor_with_a_stubborn_leader.py"), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as supervisor:
        assert supervisor.stdout is not None
        family = [tuple(identity) for identity in json.loads(supervisor.stdout.readline())]
        assert len(alive(family)) == 2
        supervisor.kill()

    os.close(await_shims(tmp_path))

    assert alive(family) == []


def test_a_shim_that_does_not_end_delays_the_next_start_and_does_not_prevent_it(tmp_path: Path) -> None:
    held = await_shims(tmp_path)
    os.close(await_shims(tmp_path, within_seconds=0.05))
    os.close(held)
