"""Limits, where the kernel's controllers are with cgroup v2: here, or in the machine of ``tests/machine/run``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.process.linux import cgroup_setup as cgroups
from agent_runtime.process.linux.cgroup_setup import LEAF
from tests.support.cgroup_children import delegate, inside, own_cgroup
from tests.support.families import run_driver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.cgroup_controllers,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(300),
]

REQUIRED = os.environ.get("AGENT_RUNTIME_TEST_MACHINE") == "1"
MEBIBYTE = 1 << 20


@pytest.fixture
def container() -> Iterator[Path]:
    """A cgroup such as a container gets, with all controllers; where CI has a machine for this it must be there."""
    finding = cgroups.find()
    if not finding.usable:
        (pytest.fail if REQUIRED else pytest.skip)(f"no cgroup can be made here: {finding.reason}")
    with contextlib.ExitStack() as stack:
        try:
            directory = stack.enter_context(own_cgroup(finding, "memory", "pids", "cpu"))
        except pytest.skip.Exception as skipped:
            if REQUIRED:
                pytest.fail(str(skipped))
            raise
        yield directory


def drive(container: Path, name: str, *argv: str, prefix: tuple[str, ...] = ()) -> Any:
    return run_driver(name, *argv, prefix=(*inside(container), *prefix), timeout=200)


def test_a_tool_that_takes_all_memory_is_taken_alone_and_counted(container: Path) -> None:
    """R4: from ``memory.events``; the leader, a neighbour and the supervisor live on."""
    answer = drive(
        container,
        "a_tool_that_takes_all_memory_is_taken_alone_and_counted",
    )
    assert answer == [-9, True, True, [1, 0, 1], True, 0, True]


def test_a_cli_that_takes_all_memory_ends_as_out_of_memory(container: Path) -> None:
    """R4: by what was counted; the same signal without it is another's."""
    answer = drive(
        container,
        "a_cli_that_takes_all_memory_ends_as_out_of_memory",
    )
    assert answer == [[-9, "oom"], [-9, "signal"]]


def test_a_fork_bomb_stays_within_its_limit_and_is_gone(container: Path) -> None:
    """P3: within 2 s; asserted with ten times that."""
    answer = drive(
        container,
        "a_fork_bomb_stays_within_its_limit_and_is_gone",
    )
    assert answer[:3] == [True, True, 0]
    assert answer[3] < 20
    assert answer[4:] == [False, True]


def test_a_kill_needs_neither_a_fork_nor_a_thread(container: Path) -> None:
    """R2: ``pids.max`` of the container is reached."""
    answer = drive(
        container,
        "a_kill_needs_neither_a_fork_nor_a_thread",
        str(container),
    )
    assert answer == [11, 0, 31, True]


def test_a_tree_with_next_to_no_cpu_is_ended_in_ten_times_the_time(container: Path) -> None:
    """R5: at 5 %; asserted with ten times that again."""
    answer = drive(
        container,
        "a_tree_with_next_to_no_cpu_is_ended_in_ten_times_the_time",
    )
    assert answer[:2] == [True, 0]
    assert answer[2] < 20 * 10
    assert answer[3] is True


def test_a_user_without_rights_can_have_all_limits_in_a_delegated_cgroup(container: Path) -> None:
    """What was beside the supervisor moves along with it, and a supervisor started anew finds all as it should be."""
    delegate(container, "cgroup.procs", "cgroup.subtree_control")
    answer = drive(
        container,
        "a_user_without_rights_can_have_all_limits_in_a_delegated_cgroup",
    )
    limits = [str(64 * MEBIBYTE), "20", "150000 100000"]
    assert answer == [[str(container)] * 2, limits, [LEAF], -9, True, 0, True]


def test_a_controller_that_was_not_handed_down_is_missed_at_start(container: Path) -> None:
    (container / "cgroup.subtree_control").write_text("+pids")
    below = container / "below"
    below.mkdir()

    assert drive(below, "limits_refused", json.dumps({"pids": 50})) == "prepared"
    # The next one begins in a cgroup from which controllers are handed down: no process can be moved below it.
    refused = drive(below, "limits_refused", json.dumps({"pids": 50, "memory_bytes": 64 * MEBIBYTE}))

    assert refused.startswith(
        "AGENT_RUNTIME_EXECUTION_MEMORY cannot be enforced here: no memory controller is handed down to the cgroup"
    )


def test_a_supervisor_that_shares_its_cgroup_with_an_invisible_process_says_so(container: Path) -> None:
    """It cannot move that process out of the way; here the one outside the PID namespace that waits for its end."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")

    refused = drive(container, "limits_refused", json.dumps({"pids": 50}), prefix=("unshare", "-pf", "--mount-proc"))

    assert "a process that cannot be seen from here is in the cgroup" in refused
