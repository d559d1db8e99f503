import json
import os

from agent_runtime.process.linux.syscalls import has_dead_children
from tests.support.families import fork_server

seen = [has_dead_children()]
pid = os.posix_spawn("/bin/true", ["true"], {})
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
seen.append(has_dead_children())
_, status = os.waitpid(pid, 0)
print(json.dumps([*seen, status, has_dead_children()]))
fork_server.close()
