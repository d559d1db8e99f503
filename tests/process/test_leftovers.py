"""What a killed supervisor leaves: the next one is not ready before it is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from agent_runtime.process.containment.leftovers import await_shims
from tests.support.families import ROOT, alive

if TYPE_CHECKING:
    from pathlib import Path

SUPERVISOR = """
from tests.support.families import *
become_subreaper()
fork_server.guard = await_shims(Path(sys.argv[1]))
child = start_shell("trap '' INT; setsid sleep 600 & echo $$; echo $!; while :; do sleep 1; done")
go(child)
print(json.dumps(pids(child, 2)), flush=True)
sys.stdin.read()
"""
"""A supervisor whose leader does not heed the polite signal, so that its shim takes its time."""


def test_who_waits_for_the_shims_of_a_killed_supervisor_finds_nothing_of_theirs(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path)],
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
