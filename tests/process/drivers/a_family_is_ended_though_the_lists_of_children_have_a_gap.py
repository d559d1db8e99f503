import json
import time

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import FAMILY, alive, eventually, fork_server, pids, start_python

become_subreaper()
child = start_python(FAMILY, "20")
family = pids(child, 20)
proc_table.Live.children = lambda self, parent: []
child.kill()
child.sweep(time.monotonic() + 10)
print(json.dumps(eventually(lambda: not alive(family))))
fork_server.close()
