import json
import time

from agent_runtime.process.containment.leftovers import sweep_leftovers
from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import data_dir, exit_of, fork_server, go, start_shell

become_subreaper()
child = start_shell("exec sleep 600")
go(child)
child.kill()
report = child.sweep(time.monotonic() + 10)
print(json.dumps([report.killed, report.survivors, exit_of(child).code, sweep_leftovers(data_dir())]))
fork_server.close()
