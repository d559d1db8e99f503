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

PROLOGUE = """
import msgspec, signal
from agent_runtime.process.linux import cgroup_setup as cgroups
from agent_runtime.process.containment import sweep as containment
from agent_runtime.process.linux.cgroup_setup import Limits
from agent_runtime.process.containment.cgroup import CgroupLayer
from agent_runtime.errors import CannotStart
from agent_runtime.evidence.verdict import Ending, verdict
from tests.support.cgroup_children import *

GREED = '''
blocks = []
while True:
    blocks.append(bytearray(b"x") * (8 << 20))
'''

def greedy_tool(group):
    "Start a leader whose tool takes all memory, as a fork: not every user may run our Python."
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return pid, ours
    os.write(group.procs, b"0")
    os.setsid()
    tool = os.fork()
    if tool == 0:
        exec(GREED)
    os.write(theirs, b"%d" % os.waitstatus_to_exitcode(os.waitpid(tool, 0)[1]))
    signal.pause()

def sweep(group):
    return containment.sweep([CgroupLayer(group)], time.monotonic() + 40)
"""


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


def drive(container: Path, script: str, *argv: str, prefix: tuple[str, ...] = ()) -> Any:
    return run_driver(PROLOGUE + script, *argv, prefix=(*inside(container), *prefix), timeout=200)


def test_a_tool_that_takes_all_memory_is_taken_alone_and_counted(container: Path) -> None:
    """R4: from ``memory.events``; the leader, a neighbour and the supervisor live on."""
    answer = drive(
        container,
        """
groups = cgroups.prepare(cgroups.find(), Limits(memory_bytes=64 << 20))
group, other = groups.make("oom.1"), groups.make("oom.2")
leader, told = greedy_tool(group)
neighbour = Member(other, FAMILY, "2")
neighbour.lines(2)
tool_exit = int(os.read(told, 100))
alive = group.pids() == {leader} and len(other.pids()) == 2
limited = "max 0" not in (group.directory / "memory.events").read_text().splitlines()
counted = [group.oom_kills(), other.oom_kills()]
report = sweep(group)
os.waitpid(leader, 0)
counted.append(group.oom_kills())
other.kill()
neighbour.end()
gone = group.remove(20) and other.remove(20)
print(json.dumps([tool_exit, alive, limited, counted, group.oom_kills() > 0, report.survivors, gone]))
""",
    )
    assert answer == [-9, True, True, [1, 0, 1], True, 0, True]


def test_a_cli_that_takes_all_memory_ends_as_out_of_memory(container: Path) -> None:
    """R4: by what was counted; the same signal without it is another's."""
    answer = drive(
        container,
        """
groups = cgroups.prepare(cgroups.find(), Limits(memory_bytes=64 << 20))
classes = []
for program in ("exec(sys.argv[1])", "os.kill(os.getpid(), 9)"):
    group = groups.make("oom.1")
    member = Member(group, program, GREED)
    code = member.end()
    classes.append([code, verdict(Ending(code, oom=group.oom_kills() > 0)).error_class])
    group.remove(20)
print(json.dumps(classes))
""",
    )
    assert answer == [[-9, "oom"], [-9, "signal"]]


def test_a_fork_bomb_stays_within_its_limit_and_is_gone(container: Path) -> None:
    """P3: within 2 s; asserted with ten times that."""
    answer = drive(
        container,
        """
groups = cgroups.prepare(cgroups.find(), Limits(pids=100))
group = groups.make("bomb.1")
member = Member(group, BOMB)
member.go()
member.lines(1)
met = eventually(lambda: "max 0" not in (group.directory / "pids.events").read_text().splitlines())
most = len(group.pids())
with decoy():
    report = sweep(group)
member.end()
print(json.dumps([met, most <= 100, report.survivors, report.seconds, group.populated, group.remove(20)]))
""",
    )
    assert answer[:3] == [True, True, 0]
    assert answer[3] < 20
    assert answer[4:] == [False, True]


def test_a_kill_needs_neither_a_fork_nor_a_thread(container: Path) -> None:
    """R2: ``pids.max`` of the container is reached."""
    answer = drive(
        container,
        """
groups = cgroups.prepare(cgroups.find())
group = groups.make("full.1")
member = Member(group, FAMILY, "31")
member.lines(31)
container = Path(sys.argv[1])
(container / "pids.max").write_text((container / "pids.current").read_text())
try:
    os.fork() or os._exit(0)
    refused = 0
except OSError as error:
    refused = error.errno
report = sweep(group)
member.end()
print(json.dumps([refused, report.survivors, report.killed, group.remove(20)]))
""",
        str(container),
    )
    assert answer == [11, 0, 31, True]


def test_who_has_next_to_no_cpu_is_ended_in_ten_times_the_time(container: Path) -> None:
    """R5: at 5 %; asserted with ten times that again."""
    answer = drive(
        container,
        """
groups = cgroups.prepare(cgroups.find(), Limits(cpus=0.05))
group = groups.make("slow.1")
member = Member(group, RUNNER)
member.go()
member.lines(1)
throttled = lambda: int((group.directory / "cpu.stat").read_text().split("nr_throttled ")[1].split()[0])
slowed = eventually(lambda: throttled() > 3) and (group.directory / "cpu.max").read_text() == "5000 100000\\n"
report = sweep(group)
member.end()
print(json.dumps([slowed, report.survivors, report.seconds, group.remove(20)]))
""",
    )
    assert answer[:2] == [True, 0]
    assert answer[2] < 20 * 10
    assert answer[3] is True


def test_a_user_without_rights_can_have_all_limits_in_a_delegated_cgroup(container: Path) -> None:
    """What was beside the supervisor moves along with it, and a supervisor started anew finds all as it should be."""
    delegate(container, "cgroup.procs", "cgroup.subtree_control")
    answer = drive(
        container,
        """
bystander = os.fork()
if bystander == 0:
    become_nobody()
    signal.pause()
become_nobody()
limits = Limits(memory_bytes=64 << 20, pids=20, cpus=1.5)
bases = []
for start in range(2):
    groups = cgroups.prepare(cgroups.find(), limits)
    bases.append(str(groups.base))
group = groups.make("limited.1")
said = [(group.directory / name).read_text().strip() for name in ("memory.max", "pids.max", "cpu.max")]
where = {Path(f"/proc/{pid}/cgroup").read_text().splitlines()[-1].rpartition("/")[2] for pid in (bystander, "self")}
leader, told = greedy_tool(group)
tool_exit = int(os.read(told, 100))
oom = group.oom_kills() > 0
report = sweep(group)
os.waitpid(leader, 0)
os.kill(bystander, 9)
os.waitpid(bystander, 0)
print(json.dumps([bases, said, sorted(where), tool_exit, oom, report.survivors, group.remove(20)]))
""",
    )
    limits = [str(64 * MEBIBYTE), "20", "150000 100000"]
    assert answer == [[str(container)] * 2, limits, [LEAF], -9, True, 0, True]


REFUSED = """
try:
    cgroups.prepare(cgroups.find(), Limits(**json.loads(sys.argv[1])))
    answer = "prepared"
except CannotStart as refused:
    answer = str(refused)
print(json.dumps(answer))
"""


def test_a_controller_that_was_not_handed_down_is_missed_at_start(container: Path) -> None:
    (container / "cgroup.subtree_control").write_text("+pids")
    below = container / "below"
    below.mkdir()

    assert drive(below, REFUSED, json.dumps({"pids": 50})) == "prepared"
    # The next one begins in a cgroup from which controllers are handed down: no process can be moved below it.
    refused = drive(below, REFUSED, json.dumps({"pids": 50, "memory_bytes": 64 * MEBIBYTE}))

    assert refused.startswith(
        "AGENT_RUNTIME_EXECUTION_MEMORY cannot be enforced here: no memory controller is handed down to the cgroup"
    )


def test_who_shares_its_cgroup_with_somebody_it_cannot_see_is_told(container: Path) -> None:
    """It cannot move that process out of the way; here the one outside the PID namespace that waits for its end."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")

    refused = drive(container, REFUSED, json.dumps({"pids": 50}), prefix=("unshare", "-pf", "--mount-proc"))

    assert "a process that cannot be seen from here is in the cgroup" in refused
