from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.claude.run_answer import Result
from agent_runtime.errors import CannotStart, ErrorClass
from agent_runtime.evidence.detector import Channel, Detection
from agent_runtime.evidence.matching import Rule
from agent_runtime.evidence.verdict import Ending, verdict
from agent_runtime.model.state import Outcome, StopReason
from agent_runtime.process.containment import sweep as containment
from agent_runtime.process.containment.cgroup import CgroupLayer
from agent_runtime.process.containment.registry import new_mark
from agent_runtime.process.containment.sweep import Kind
from agent_runtime.process.linux import cgroup as cgroup_group
from agent_runtime.process.linux import cgroup_mount
from agent_runtime.process.linux import cgroup_setup as cgroups
from agent_runtime.process.linux.cgroup import Group, Limits
from agent_runtime.process.linux.cgroup_setup import LEAF, CgroupSupport, Groups
from agent_runtime.process.spawn import Command
from tests.process.test_containment import ESCAPE, ESCAPED
from tests.support import families
from tests.support.cgroup_children import NESTED, NOBODY, Member, decoy, erase, inside, own_cgroup
from tests.support.families import (
    BOMB,
    FAMILY,
    PATIENCE_SECONDS,
    RUNNER,
    descriptors,
    eventually,
    reap_orphans,
    run_driver,
    spawn,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
READ_ONLY = "30 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n"
OF_THE_HOST = "30 23 0:26 /system.slice/docker-1.scope /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
FROM_ABOVE = "30 23 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
ELSEWHERE = "30 23 0:26 / /mnt/c\\040group\\134 rw - cgroup2 cgroup rw\n"
PLACES: dict[str, tuple[str, str, Path | str]] = {
    "version 1 only": ("4:memory:/\n", HYBRID.replace("cgroup2 cgroup2", "cgroup cgroup"), "no cgroup v2 is mounted"),
    "not mounted": ("0::/\n", "", "no cgroup v2 is mounted"),
    "hybrid": ("4:memory:/a\n0::/b/c\n", HYBRID, Path("/sys/fs/cgroup/unified/b/c")),
    "unified": ("0::/user.slice/x\n", UNIFIED, Path("/sys/fs/cgroup/user.slice/x")),
    "root of a namespace": ("0::/\n", UNIFIED, Path("/sys/fs/cgroup")),
    "a container in the host's namespace": ("0::/system.slice/docker-1.scope\n", OF_THE_HOST, Path("/sys/fs/cgroup")),
    "deeper in it": ("0::/system.slice/docker-1.scope/x\n", OF_THE_HOST, Path("/sys/fs/cgroup/x")),
    "beside it": ("0::/system.slice/docker-1.scope2\n", OF_THE_HOST, "does not show the cgroup of this process"),
    "mounted in a namespace above": ("0::/\n", FROM_ABOVE, "does not show the cgroup of this process"),
    "moved out of the namespace": ("0::/../x\n", UNIFIED, "does not show the cgroup of this process"),
    "read-only": ("0::/\n", READ_ONLY, "the cgroup v2 at /sys/fs/cgroup is mounted read-only"),
    "read-only over writable": ("0::/\n", READ_ONLY + ELSEWHERE, Path("/mnt/c group\\")),
    "removed": ("0::/x (deleted)\n", UNIFIED, "the cgroup of this process has been removed"),
}


@pytest.fixture(scope="session")
def finding() -> CgroupSupport:
    """What the machine allows; without a cgroup the test is skipped."""
    found = cgroups.find()
    if not found.usable:
        pytest.skip(f"no cgroup can be made here: {found.reason}")
    return found


@pytest.fixture
def groups(finding: CgroupSupport) -> Groups:
    """Makes groups; skipped on kernels without ``cgroup.kill``."""
    if not finding.has_kill:
        pytest.skip("this kernel has no cgroup.kill")
    ready = cgroups.prepare(finding)
    assert ready is not None
    return ready


@pytest.fixture
def group(groups: Groups) -> Iterator[Group]:
    """A group of its own, of which nothing is left."""
    made = groups.make(f"test.{secrets.token_hex(4)}")
    yield made
    made.close()
    erase(made.directory)
    reap_orphans()  # a test before may have made this process their reaper, and zombies count for their user's limit


# -- finding out


@pytest.mark.parametrize("kind", PLACES)
def test_our_cgroup_is_found_in_every_kind_of_mount(kind: str) -> None:
    cgroup_text, mountinfo, expected = PLACES[kind]

    place = cgroup_mount.locate(cgroup_text, mountinfo)[0]

    if isinstance(expected, Path):
        assert place == expected
    else:
        assert isinstance(place, str)
        assert expected in place


def test_a_process_that_tries_cgroups_is_where_it_was_and_leaves_nothing(finding: CgroupSupport) -> None:
    assert finding.base is not None
    before, names, open_before = Path("/proc/self/cgroup").read_text(), set(finding.base.iterdir()), descriptors()

    again = cgroups.find()

    assert again == finding
    assert Path("/proc/self/cgroup").read_text() == before
    assert {path for path in set(finding.base.iterdir()) - names if str(os.getpid()) in path.name} == set()
    assert descriptors() == open_before


def test_a_machine_without_cgroups_says_so(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("4:memory:/\n")
    (tmp_path / "mountinfo").write_text(HYBRID)

    assert cgroups.find(tmp_path) == CgroupSupport(None, "no cgroup v2 is mounted")
    assert cgroups.find(tmp_path / "none").reason == (
        "what cgroup this process is in cannot be read (FileNotFoundError)"
    )


@as_root
def test_a_mount_that_is_read_only_beneath_is_found_out_by_trying(finding: CgroupSupport) -> None:
    """As an overlaid bind mount: the topmost entry is what counts."""
    assert finding.base is not None
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    script = f'mount --bind {finding.base} {finding.base} && mount -o remount,bind,ro {finding.base} && exec "$@"'
    prefix = ("unshare", "-m", "/bin/sh", "-c", script, "sh")
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")

    usable, reason, _ = run_driver("cgroups_found", prefix=prefix)

    assert not usable
    assert reason.endswith("is mounted read-only")


DELEGATED = {
    "nothing": ((), "no cgroup can be made below"),
    "the directory alone": (("",), "no process can be moved into a cgroup below"),
    "all": (("", "cgroup.procs", "cgroup.subtree_control"), None),
}


@as_root
def test_a_user_without_rights_has_what_was_delegated_to_it(finding: CgroupSupport) -> None:
    with contextlib.ExitStack() as stack:
        directories = [stack.enter_context(own_cgroup(finding)) for _ in DELEGATED]
        for directory, (names, _) in zip(directories, DELEGATED.values(), strict=True):
            for name in names:
                os.chown(directory / name, NOBODY, NOBODY)

        answers = run_driver(
            "a_user_without_rights_has_what_was_delegated_to_it",
            *map(str, directories),
        )

        for directory, (_, refusal), (reason, base) in zip(directories, DELEGATED.values(), answers, strict=True):
            if refusal is None:
                assert base == str(directory)
            else:
                assert (reason, base) == (f"{refusal} {directory}: it is not delegated to this user", "None")


def test_a_supervisor_that_begins_in_the_leaf_makes_its_groups_beside_it(finding: CgroupSupport) -> None:
    """So a restart in the same container does not go one deeper each time."""
    with own_cgroup(finding) as directory:
        (directory / LEAF).mkdir()

        usable, _, base = run_driver("cgroups_found", prefix=inside(directory / LEAF))

    assert (usable, base) == (True, str(directory))


# -- ending it


@pytest.mark.parametrize("size", [1, 6, 51, 201])
def test_one_kill_ends_a_whole_family_and_the_layer_knows(group: Group, size: int) -> None:
    """P1: within 100 ms up to 51; asserted with ten times that."""
    member = Member(group, FAMILY, str(size))
    family = {int(pid) for pid in member.lines(size)}
    assert group.pids() == family
    layer = CgroupLayer(group)

    began = time.monotonic()
    first = layer.kill_pass(thorough=False)
    assert eventually(lambda: not group.populated)
    seconds = time.monotonic() - began

    assert (first.alive, first.new, first.is_empty) == (size, size, False)
    assert layer.kill_pass(thorough=True).is_empty
    assert layer.ended == size
    assert member.end() == -signal.SIGKILL
    assert seconds < (1.0 if size <= 51 else 4.0)


def test_a_process_that_leaves_its_family_does_not_leave_its_group(group: Group) -> None:
    """P2: setsid, double forks, no environment."""
    member = Member(group, "os.execv('/bin/sh', ['sh', '-c', sys.argv[1]])", ESCAPE + "\necho ready; wait; sleep 600")
    member.lines(1)
    assert eventually(lambda: len(group.pids()) == ESCAPED + 1)

    report = containment.sweep([CgroupLayer(group)], time.monotonic() + PATIENCE_SECONDS)

    assert (report.survivors, report.killed) == (0, ESCAPED + 1)
    assert not group.populated
    member.end()


@pytest.mark.parametrize("program", [RUNNER, BOMB], ids=["runner", "bomb"])
@as_root
def test_a_process_that_forks_without_pause_is_ended(group: Group, program: str) -> None:
    """P3: within 2 s; asserted with ten times that. A user of its own, so that its processes can be bounded."""
    member = Member(group, program, user=54321, most=150)
    member.go()
    member.lines(1)
    if program is BOMB:
        assert eventually(lambda: len(group.pids()) > 100)

    report = containment.sweep([CgroupLayer(group)], time.monotonic() + 20)

    assert report.survivors == 0
    assert not group.populated
    assert report.seconds < 20
    member.end()


def test_the_stopped_and_the_frozen_are_ended(group: Group) -> None:
    program = f"os.mkdir(sys.argv[2] + '/cold') if len(sys.argv) > 2 else None\n{FAMILY}"
    member = Member(group, program, "6", str(group.directory))
    for pid in member.lines(6):
        os.kill(int(pid), signal.SIGSTOP)
    (group.directory / "cgroup.freeze").write_text("1")

    assert containment.sweep([CgroupLayer(group)], time.monotonic() + PATIENCE_SECONDS).survivors == 0

    assert not group.populated
    member.end()
    assert group.remove(PATIENCE_SECONDS)


def test_groups_that_a_child_made_end_and_go_with_its_own(group: Group) -> None:
    member = Member(group, NESTED, str(group.directory))
    family = {int(pid) for pid in member.lines(5)}
    assert group.pids() == family
    assert not cgroup_group.remove_tree(group.directory)  # not with somebody in it

    assert containment.sweep([CgroupLayer(group)], time.monotonic() + PATIENCE_SECONDS).killed == 5

    member.end()
    assert group.remove(PATIENCE_SECONDS)
    assert not group.directory.exists()


def test_nobody_else_is_touched(groups: Groups) -> None:
    """P10: the same mark, the same session, a name alike, a group alike."""
    with contextlib.ExitStack() as stack:
        one, other = groups.make("decoys.1"), groups.make("decoys.10")
        for made in (one, other):
            stack.callback(erase, made.directory)
            stack.callback(made.close)
        neighbour = Member(other, FAMILY, "6")
        neighbour.lines(6)
        member = Member(one, FAMILY, "6")
        member.lines(6)
        with decoy({"AGENT_RUNTIME_ATTEMPT_MARK": "decoys.1"}), decoy(start_new_session=True), decoy():
            assert containment.sweep([CgroupLayer(one)], time.monotonic() + PATIENCE_SECONDS).killed == 6
            assert len(other.pids()) == 6
        other.kill()
        member.end()
        neighbour.end()


def test_a_kill_needs_no_free_descriptor() -> None:
    """R1: the table is full."""
    if not (found := cgroups.find()).usable:
        pytest.skip(f"no cgroup can be made here: {found.reason}")
    answer = run_driver("a_kill_needs_no_free_descriptor")
    assert answer == [True, 0, 31, True, False]


def test_a_group_in_which_something_lives_is_not_removed(group: Group) -> None:
    member = Member(group, FAMILY, "1")
    member.lines(1)

    assert group.populated
    assert not group.remove(0)
    assert group.directory.exists()
    member.process.kill()
    member.end()


# -- making and removing


@pytest.mark.parametrize("kernel", ["forks into a group", "does not"])
def test_a_leader_is_in_its_group_before_its_first_instruction(
    groups: Groups, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "does not":  # what stands for the group is none: the call fails, as on an old kernel
        open_file = Group._open_file
        monkeypatch.setattr(
            Group,
            "_open_file",
            lambda self, name, flags, **more: open_file(self, name or "cgroup.events", flags & 3, **more),
        )
    mark = new_mark(families.data_dir())
    command = Command(argv=("cat", "/proc/self/cgroup"), env=dict(os.environ), cwd=Path("/"), mark=mark)

    child = spawn(command, Kind.CGROUP, groups)

    with families.ended_at_last(child):
        assert mark in " ".join(families.lines(child, 1))


def test_a_group_leaves_no_descriptor_and_answers_when_it_is_gone(groups: Groups) -> None:
    before = descriptors()

    group = groups.make("closed.1")
    assert min(group.place, group.procs) >= 0
    assert group.remove()
    assert group.remove()
    group.kill()

    assert (group.populated, group.pids(), group.oom_kills(), group.procs) == (False, set(), 0, -1)
    assert descriptors() == before
    assert CgroupLayer(group).kill_pass(thorough=True).is_empty


def test_a_group_whose_files_are_gone_under_us_is_empty(groups: Groups) -> None:
    group = groups.make("gone.1")
    group.directory.rmdir()

    group.kill()

    assert CgroupLayer(group).kill_pass(thorough=True).is_empty
    assert group.remove()


def test_a_name_that_is_taken_is_not_joined(groups: Groups) -> None:
    first = groups.make("taken.1")
    try:
        with pytest.raises(FileExistsError):
            groups.make("taken.1")
        assert first.directory.exists()
    finally:
        assert first.remove()


def test_a_group_that_cannot_be_opened_is_not_left_behind() -> None:
    if not (found := cgroups.find()).usable:
        pytest.skip(f"no cgroup can be made here: {found.reason}")
    answer = run_driver("a_group_that_cannot_be_opened_is_not_left_behind")
    assert answer == [24, False, True] * 4


# -- what an earlier supervisor has left


def test_what_an_earlier_supervisor_left_is_ended_and_nothing_else(groups: Groups, tmp_path: Path) -> None:
    """P11: it was killed; so is what it started, and its groups go. Another's stay."""
    other_dir = tmp_path / "other"
    other_dir.mkdir()
    answer = run_driver("what_an_earlier_supervisor_left", str(tmp_path), str(other_dir))
    pids, other, empty = answer
    from agent_runtime.process.containment.leftovers import sweep_leftover_groups
    from agent_runtime.process.containment.registry import new_mark

    own = groups.make(new_mark(tmp_path))
    neighbour = Member(own, FAMILY, "1")
    neighbour.lines(1)
    try:
        killed = sweep_leftover_groups(groups, tmp_path, within_seconds=20)

        assert killed == 7
        assert not Path(empty).exists()
        assert int((Path(other) / "cgroup.procs").read_text()) == pids[7]
        assert own.populated
        assert not any(_alive(pid) for pid in pids[:7])
    finally:
        own.kill()
        neighbour.end()
        assert own.remove(PATIENCE_SECONDS)
        assert sweep_leftover_groups(groups, other_dir, within_seconds=20) == 1
    assert not Path(other).exists()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


# -- limits


def test_limits_become_the_kernels_files() -> None:
    limits = Limits(memory_bytes=1 << 30, pids=100, cpus=0.05)

    assert {name: value for name, value, _ in limits.files()} == {
        "memory.oom.group": "0",
        "memory.swap.max": "0",
        "memory.max": "1073741824",
        "pids.max": "100",
        "cpu.max": "5000 100000",
    }
    assert limits.controllers == ("memory", "pids", "cpu")
    assert list(Limits().files()) == []
    assert dict(row[:2] for row in Limits(cpus=0.001).files()) == {"cpu.max": "1000 100000"}


LIMITS: dict[str, Any] = {
    "AGENT_RUNTIME_EXECUTION_MEMORY": Limits(memory_bytes=1 << 30),
    "AGENT_RUNTIME_EXECUTION_PIDS": Limits(pids=100),
    "AGENT_RUNTIME_EXECUTION_CPUS": Limits(cpus=1.5),
}


@pytest.mark.parametrize("setting", LIMITS)
@pytest.mark.parametrize(
    "here",
    [CgroupSupport(None, "no cgroup v2 is mounted"), CgroupSupport(Path("/nowhere"), "usable", has_kill=True)],
    ids=["no cgroup", "no controller"],
)
def test_a_limit_that_cannot_be_enforced_is_refused_with_what_to_do(setting: str, here: CgroupSupport) -> None:
    why = here.reason if not here.usable else "controller is handed down to the cgroup of this process"
    for ask in (cgroups.check, cgroups.prepare):
        with pytest.raises(CannotStart, match=f"^{setting} cannot be enforced here: .*{why}; give the container"):
            ask(here, LIMITS[setting])


def test_without_limits_and_without_cgroups_there_are_no_groups() -> None:
    assert cgroups.prepare(CgroupSupport(None, "no cgroup v2 is mounted")) is None


def test_a_supervisor_without_limits_stays_in_its_cgroup(finding: CgroupSupport) -> None:
    assert finding.base is not None
    before, was_there = Path("/proc/self/cgroup").read_text(), (finding.base / LEAF).exists()

    cgroups.prepare(finding)

    assert Path("/proc/self/cgroup").read_text() == before
    assert (finding.base / LEAF).exists() == was_there


def test_what_the_kernel_kills_of_others_is_no_oom_of_this_one(group: Group) -> None:
    """A signal is no evidence: only what the kernel has counted is."""
    member = Member(group, FAMILY, "1")
    member.lines(1)

    group.kill()

    assert member.end() == -signal.SIGKILL
    assert not group.oom_kills()


# -- the verdict


OVERLOADED = Detection(Rule("r", ErrorClass.OVERLOADED), Channel.STDOUT)
ENDINGS = [
    (Ending(-9, oom=True), ErrorClass.OOM),
    (Ending(None, oom=True), ErrorClass.OOM),
    (Ending(-9, oom=False), ErrorClass.SIGNAL),
    (Ending(-9, oom=True, last_error=OVERLOADED), ErrorClass.OOM),
    (Ending(1, oom=True, last_error=OVERLOADED), ErrorClass.OVERLOADED),
    (Ending(137, oom=True), ErrorClass.OOM),
    (Ending(137), ErrorClass.SIGNAL),
    (Ending(0, oom=True, result=Result(is_error=False, subtype="success", text="done")), None),
    (Ending(1, oom=True, result=Result(is_error=True, subtype="success", text="no")), ErrorClass.OOM),
    (Ending(1, oom=True, result=Result(is_error=True, subtype="error_max_turns", text=None)), ErrorClass.MAX_TURNS),
    (Ending(-9, oom=True, stop_reason=StopReason.TIMEOUT), ErrorClass.TIMEOUT),
    (Ending(-9, oom=True, stop_reason=StopReason.CANCELLED), ErrorClass.CANCELLED),
]


@pytest.mark.parametrize(("ending", "expected"), ENDINGS)
def test_out_of_memory_is_what_the_kernel_says_and_only_without_a_result(
    ending: Ending, expected: ErrorClass | None
) -> None:
    reached = verdict(ending)

    assert reached.error_class is expected
    assert (reached.outcome is Outcome.SUCCESS) == (expected is None)
