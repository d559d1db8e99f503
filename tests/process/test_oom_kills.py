"""Kills for want of memory that the kernel counts for a whole container: where that is found, and whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_runtime.claude.run_answer import Result
from agent_runtime.errors import ErrorClass
from agent_runtime.evidence.verdict import Ending, verdict
from agent_runtime.process.child import Child
from agent_runtime.process.containment.registry import new_mark
from agent_runtime.process.containment_choice import Containment
from agent_runtime.process.linux.cgroup_mount import oom_counter_file
from agent_runtime.process.linux.cgroup_setup import LEAF
from agent_runtime.process.linux.oom_kills import OomKills
from agent_runtime.process.spawn import Command
from tests.support.families import spawner

V1 = """\
31 23 0:28 / /sys/fs/cgroup ro,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 {root} /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
V2 = "30 23 0:26 {root} /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n"
V1_OWN = "9:name=systemd:/\n4:memory:{own}\n2:cpu,cpuacct:/x\n0::/\n"

PLACES: dict[str, tuple[str, str, str | None]] = {
    "version 2, in a namespace": ("0::/\n", V2.format(root="/"), "/sys/fs/cgroup/memory.events"),
    "version 2, deeper": ("0::/a/b\n", V2.format(root="/"), "/sys/fs/cgroup/a/b/memory.events"),
    "version 2, of the host": ("0::/docker/1\n", V2.format(root="/docker/1"), "/sys/fs/cgroup/memory.events"),
    "version 2, not to be seen": ("0::/docker/1\n", V2.format(root="/docker/2"), None),
    "version 2, removed": ("0::/docker/1 (deleted)\n", V2.format(root="/"), None),
    "version 1": (V1_OWN.format(own="/"), V1.format(root="/"), "/sys/fs/cgroup/memory/memory.oom_control"),
    "version 1, with a colon": (
        V1_OWN.format(own="/a:b"),
        V1.format(root="/"),
        "/sys/fs/cgroup/memory/a:b/memory.oom_control",
    ),
    "version 1, of the host": (
        V1_OWN.format(own="/docker/1"),
        V1.format(root="/docker/1"),
        "/sys/fs/cgroup/memory/memory.oom_control",
    ),
    "version 1, not mounted": (V1_OWN.format(own="/"), V2.format(root="/"), None),
    "several controllers": ("3:memory,hugetlb:/x\n", V1.format(root="/"), "/sys/fs/cgroup/memory/x/memory.oom_control"),
    "nothing": ("", "", None),
}


PATIENCE_SECONDS = 10.0


@pytest.mark.parametrize("name", PLACES)
def test_the_counter_of_our_own_cgroup_is_found(name: str) -> None:
    cgroup_text, mountinfo_text, expected = PLACES[name]

    assert oom_counter_file(cgroup_text, mountinfo_text) == (None if expected is None else Path(expected))


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n", 2),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", 5),
        ("oom_kill_disable 0\nunder_oom 0\n", None),
        ("oom_kill many\n", None),
        ("", None),
    ],
)
def test_the_counter_is_read_in_both_versions(tmp_path: Path, text: str, counted: int | None) -> None:
    (tmp_path / "memory.events").write_text(text)

    assert OomKills(tmp_path / "memory.events").count() == counted


def test_a_counter_that_cannot_be_read_counts_nothing(tmp_path: Path) -> None:
    for kills in (OomKills(), OomKills(tmp_path / "none"), OomKills(tmp_path), OomKills.of_this_container(tmp_path)):
        assert (kills.count(), kills.has_risen(None), kills.has_risen(0)) == (None, False, False)


def test_a_counter_that_goes_or_comes_back_counts_nothing(tmp_path: Path) -> None:
    file = tmp_path / "memory.events"
    kills = OomKills(file)
    file.write_text("oom_kill 3\n")
    assert (kills.has_risen(2), kills.has_risen(3), kills.has_risen(None)) == (True, False, False)

    file.write_text("oom_kill 1\n")
    assert not kills.has_risen(3)
    file.unlink()
    assert not kills.has_risen(1)


def test_attempts_that_ran_at_once_share_what_was_counted(tmp_path: Path) -> None:
    file = tmp_path / "memory.events"
    file.write_text("oom_kill 0\n")
    containment = Containment(spawner, oom_kills=OomKills(file))

    def spawned() -> Child:
        return containment.spawn(Command(argv=("true",), env={}, cwd=Path("/"), mark=new_mark(tmp_path)))

    first, second = spawned(), spawned()
    second.finish(PATIENCE_SECONDS)
    first.finish(PATIENCE_SECONDS)
    alone = spawned()
    assert alone.oom_kills == (False, False)
    file.write_text("oom_kill 1\n")

    assert [child.oom_kills for child in (first, second, alone)] == [(False, True), (False, True), (True, False)]
    alone.finish(PATIENCE_SECONDS)


def test_a_supervisor_in_its_leaf_looks_where_attempts_are(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cgroup").write_text(f"0::/{LEAF}\n")
    (tmp_path / "proc/mountinfo").write_text(f"30 23 0:26 / {tmp_path} rw - cgroup2 cgroup rw\n")
    (tmp_path / "memory.events").write_text("oom_kill 4\n")

    assert OomKills.of_this_container(tmp_path / "proc").count() == 4


FAILED = Result(is_error=True, subtype="success", text="it did not work")
SHARED = [
    (Ending(-9, oom_nearby=True), ErrorClass.OOM),
    (Ending(137, oom_nearby=True), ErrorClass.OOM),
    (Ending(-9), ErrorClass.SIGNAL),
    (Ending(-15, oom_nearby=True), ErrorClass.SIGNAL),
    (Ending(1, oom_nearby=True), ErrorClass.LOST_RESULT),
    (Ending(1, oom_nearby=True, lost_a_tool=True), ErrorClass.OOM),
    (Ending(1, lost_a_tool=True), ErrorClass.LOST_RESULT),
    (Ending(1, oom_nearby=True, result=FAILED), ErrorClass.ERROR),
    (Ending(1, oom_nearby=True, lost_a_tool=True, result=FAILED), ErrorClass.OOM),
    (Ending(1, oom=True, last_words="Error: ENOSPC: no space left on device"), ErrorClass.LOST_RESULT),
    (Ending(1, oom=True, last_words="Error: something"), ErrorClass.OOM),
    (Ending(None, oom_nearby=True), ErrorClass.LOST_RESULT),
]


@pytest.mark.parametrize(("ending", "expected"), SHARED)
def test_what_the_kernel_killed_nearby_counts_only_for_an_attempt_that_has_lost_a_process(
    ending: Ending, expected: ErrorClass
) -> None:
    assert verdict(ending).error_class is expected
