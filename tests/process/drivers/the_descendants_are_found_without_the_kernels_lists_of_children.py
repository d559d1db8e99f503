import json
import time

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import FAMILY, alive, fork_server, pids, start_python

proc_table.has_children_files = lambda: False
become_subreaper()
child = start_python(FAMILY, "30")
family = pids(child, 30)
child.kill()
print(json.dumps([child.sweep(time.monotonic() + 10).survivors, alive(family)]))
fork_server.close()
