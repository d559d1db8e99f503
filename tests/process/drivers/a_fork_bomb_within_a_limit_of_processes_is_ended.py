import json
import time

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import BOMB, eventually, fork_server, go, joined_cgroup, lines, marked, start_python

group = joined_cgroup()

become_subreaper()
child = start_python(BOMB)
go(child)
lines(child, 1)
assert eventually(lambda: int((group / "pids.current").read_text()) == 150)
child.kill()
report = child.sweep(time.monotonic() + 20)
print(json.dumps([report.seconds, report.survivors, marked(child.mark)]))
child.close()
fork_server.close()
