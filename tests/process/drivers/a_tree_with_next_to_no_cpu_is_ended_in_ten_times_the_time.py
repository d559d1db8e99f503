import json

from agent_runtime.process.linux import cgroup_setup as cgroups
from agent_runtime.process.linux.cgroup import Limits
from tests.support.cgroup_children import Member
from tests.support.families import RUNNER, eventually, fork_server
from tests.support.limit_drivers import sweep

groups = cgroups.prepare(cgroups.find(), Limits(cpus=0.05))
group = groups.make("slow.1")
member = Member(group, RUNNER)
member.go()
member.lines(1)
throttled = lambda: int((group.directory / "cpu.stat").read_text().split("nr_throttled ")[1].split()[0])
slowed = eventually(lambda: throttled() > 3) and (group.directory / "cpu.max").read_text() == "5000 100000\n"
report = sweep(group)
member.end()
print(json.dumps([slowed, report.survivors, report.seconds, group.remove(20)]))
fork_server.close()
