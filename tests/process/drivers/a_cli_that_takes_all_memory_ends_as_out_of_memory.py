import json

from agent_runtime.evidence.verdict import Ending, verdict
from agent_runtime.process.linux import cgroup_setup as cgroups
from agent_runtime.process.linux.cgroup import Limits
from tests.support.cgroup_children import Member
from tests.support.families import fork_server
from tests.support.limit_drivers import GREED

groups = cgroups.prepare(cgroups.find(), Limits(memory_bytes=64 << 20))
classes = []
for program in ("exec(sys.argv[1])", "os.kill(os.getpid(), 9)"):
    group = groups.make("oom.1")
    member = Member(group, program, GREED)
    code = member.end()
    classes.append([code, verdict(Ending(code, oom=group.oom_kills() > 0)).error_class])
    group.remove(20)
print(json.dumps(classes))
fork_server.close()
