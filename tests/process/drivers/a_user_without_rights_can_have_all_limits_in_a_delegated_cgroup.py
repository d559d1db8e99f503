import json
import os
import signal
from pathlib import Path

from agent_runtime.process.linux import cgroup_setup as cgroups
from agent_runtime.process.linux.cgroup import Limits
from tests.support.cgroup_children import become_nobody
from tests.support.families import fork_server
from tests.support.limit_drivers import greedy_tool, sweep

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
fork_server.close()
