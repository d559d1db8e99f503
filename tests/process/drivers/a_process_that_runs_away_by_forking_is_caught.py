import json
import sys
import time

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import RUNNER, exit_of, fork_server, go, lines, marked, start_python

become_subreaper()
child = start_python(
    "import os\nfor _ in range(int(os.sys.argv[1]) - 1):\n    if os.fork() == 0: break\n" + RUNNER, sys.argv[1]
)
for _ in range(int(sys.argv[1])):
    go(child)
child.close_stdin()
lines(child, 1)
exit_of(child)
report = child.sweep(time.monotonic() + 20)
print(json.dumps([report.seconds, report.survivors, marked(child.mark)]))
fork_server.close()
