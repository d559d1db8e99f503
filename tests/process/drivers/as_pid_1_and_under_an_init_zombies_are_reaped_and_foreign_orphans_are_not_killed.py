import json
import os
import subprocess
import time

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import alive, eventually, exit_of, fork_server, go, pids, reap_orphans, start_shell

if os.getpid() != 1:
    become_subreaper()
subprocess.run(["true"])
child = start_shell("(setsid true &); (env -i $(command -v setsid) $(command -v sleep) 600 & echo $!); wait; exit 3")
outsider = subprocess.run(
    ["sh", "-c", "(setsid sleep 600 >/dev/null 2>&1 & echo $!)"], start_new_session=True, capture_output=True, text=True
)
outsider = proc_table.read_process(int(outsider.stdout)).identity
go(child)
(orphan,) = pids(child, 1)
code = exit_of(child).code
report = child.sweep(time.monotonic() + 10)
child.close()
me = proc_table.read_process(os.getpid())


def zombies():
    reap_orphans()
    return [p.pid for p in proc_table.Snapshot().children(me) if p.dead]


gone = eventually(lambda: not zombies())
print(json.dumps([os.getpid() == 1, code, gone, alive([orphan]), len(alive([outsider])), report.survivors]))
os.kill(outsider[0], 9)
fork_server.close()
