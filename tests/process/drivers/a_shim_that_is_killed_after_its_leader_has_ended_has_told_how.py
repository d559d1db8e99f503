import json
import select
import time

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import alive, exit_of, fork_server, go, kill_shim, pids, start_shell

become_subreaper()
child = start_shell("setsid sleep 600 & echo $!; exit 7")
go(child)
family = pids(child, 1)
assert select.select([child._handle._line], [], [], 10)[0]
kill_shim(child)
code = exit_of(child).code
report = child.sweep(time.monotonic() + 10)
child.close()
print(json.dumps([code, report.survivors, alive(family)]))
fork_server.close()
