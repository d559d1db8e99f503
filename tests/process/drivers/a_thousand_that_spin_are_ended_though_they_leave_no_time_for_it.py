import json
import sys
import time
from pathlib import Path

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import eventually, fork_server, go, lines, marked, start_python

become_subreaper()
child = start_python(sys.argv[1], "1000")
go(child)
lines(child, 1)
go(child)
assert eventually(lambda: float(Path("/proc/loadavg").read_text().split()[3].partition("/")[0]) >= 500)
began = time.monotonic()
child.kill()
report = child.sweep(began + 60)
seconds = time.monotonic() - began
print(json.dumps([seconds, report.killed, report.survivors, marked(child.mark)]))
child.close()
fork_server.close()
