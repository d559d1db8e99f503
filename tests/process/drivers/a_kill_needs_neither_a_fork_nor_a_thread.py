import json
import os
import sys
from pathlib import Path

from agent_runtime.process.linux import cgroup_setup as cgroups
from tests.support.cgroup_children import Member
from tests.support.families import FAMILY, fork_server
from tests.support.limit_drivers import sweep

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
fork_server.close()
