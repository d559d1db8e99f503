import json

from agent_runtime.process.linux import cgroup_setup as cgroups
from agent_runtime.process.linux.cgroup import Limits
from tests.support.cgroup_children import Member, decoy
from tests.support.families import BOMB, eventually, fork_server
from tests.support.limit_drivers import sweep

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
fork_server.close()
