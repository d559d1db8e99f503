import json
import sys
import time

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import FAMILY, alive, fork_server, marked, pids, start_python

size, times = int(sys.argv[1]), int(sys.argv[2])
become_subreaper()
seconds = []
for _ in range(times):
    child = start_python(FAMILY, str(size))
    family = pids(child, size)
    began = time.monotonic()
    child.kill()
    while alive(family):
        pass
    seconds.append(time.monotonic() - began)
    report = child.sweep(time.monotonic() + 10)
    assert report.survivors == 0 and marked(child.mark) == []
    assert report.killed == size, (report, size)
    child.close()
print(json.dumps(max(seconds)))
fork_server.close()
