import json
import sys
import time

from agent_runtime.process.containment.registry import MARK_VARIABLE, become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import alive, fork_server, go, kill_shim, pids, start_shell

become_subreaper()
child = start_shell("(setsid sleep 600 & echo $!); sleep 600 & echo $!; sleep 600 & echo $!; wait", user="54321")
go(child)
family = pids(child, 3)
unreadable = proc_table.read_environ(family[0][0], MARK_VARIABLE) is None
if sys.argv[1] == "was killed":
    kill_shim(child)
child.kill()
report = child.sweep(time.monotonic() + 10)
print(json.dumps([unreadable, report.survivors, alive(family)]))
child.close()
fork_server.close()
