import json
import os
import sys
import time

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import eventually, exit_of, fork_server, go, kill_shim, lines, start_shell

script, leader_ends = sys.argv[1], sys.argv[2] == "the leader has ended"
become_subreaper()
me = proc_table.read_process(os.getpid())
child = start_shell(script + ("; echo ready; read end; exit 5" if leader_ends else "; echo ready; wait; sleep 600"))
go(child)
lines(child, 1)
kill_shim(child)
code = None
if leader_ends:
    go(child)
    code = exit_of(child).code
spared = (me.pid, fork_server.identity[0])
below = lambda: [p.pid for p in proc_table.branch(proc_table.Snapshot(), me) if p.pid not in spared and not p.dead]
family = int(sys.argv[3]) + (not leader_ends)
assert eventually(lambda: len(below()) == family), below()
if not leader_ends:
    child.kill()
report = child.sweep(time.monotonic() + 10)
if not leader_ends:
    code = exit_of(child).code
print(json.dumps([below(), report.survivors, report.unattributed, report.seconds < 10, code]))
child.close()
fork_server.close()
