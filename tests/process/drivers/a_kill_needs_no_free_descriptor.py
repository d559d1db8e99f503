import json
import os
import resource
import time

from agent_runtime.process.containment import sweep as containment
from agent_runtime.process.containment.cgroup import CgroupLayer
from agent_runtime.process.linux import cgroup_setup as cgroups
from tests.support.cgroup_children import Member
from tests.support.families import FAMILY, fork_server

groups = cgroups.prepare(cgroups.find())
group = groups.make(f"full.{os.getpid()}")
member = Member(group, FAMILY, "31")
member.lines(31)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.open("/", os.O_PATH))
except OSError:
    pass
report = containment.sweep([CgroupLayer(group)], time.monotonic() + 20)
gone = group.remove(20)
print(json.dumps([len(taken) > 10, report.survivors, report.killed, gone, group.directory.exists()]))
for descriptor in taken:
    os.close(descriptor)
member.end()
fork_server.close()
