import json
import os

from agent_runtime.process.linux import cgroup_setup as cgroups
from agent_runtime.process.linux.cgroup import Limits
from tests.support.cgroup_children import Member
from tests.support.families import FAMILY, fork_server
from tests.support.limit_drivers import greedy_tool, sweep

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
fork_server.close()
