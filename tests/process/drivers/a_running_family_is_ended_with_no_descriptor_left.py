import json
import os
import resource
import time

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.spawn import NotSpawned
from tests.support.families import FAMILY, alive, fork_server, pids, start, start_python

become_subreaper()
child = start_python(FAMILY, "30")
family = pids(child, 30)
filled = []
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
while True:
    try:
        filled.append(os.dup(0))
    except OSError:
        break
try:
    start("true")
    failed = None
except NotSpawned as failure:
    failed = failure.reason.name
child.kill()
report = child.sweep(time.monotonic() + 10)
for descriptor in filled:
    os.close(descriptor)
print(json.dumps([failed, report.survivors, alive(family)]))
fork_server.close()
