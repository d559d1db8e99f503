import json
import os
import select

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import eventually, fork_server, go, reap_orphans, start_shell

become_subreaper()
children = [
    start_shell("for n in 1 2 3 4 5 6 7 8 9 10; do (setsid true & sh -c 'exit 3' &); done; exit 5") for _ in range(10)
]
for child in children:
    go(child)
for child in children:
    select.select([child.pidfd], [], [], 10)
me = proc_table.read_process(os.getpid())


def zombies():
    reap_orphans()
    return [p for p in proc_table.branch(proc_table.Snapshot(), me) if p.dead]


gone = eventually(lambda: not zombies())
codes = [child.poll().code for child in children]
for child in children:
    child.close()
below = lambda: [p.pid for p in proc_table.branch(proc_table.Snapshot(), me)]
# Shims end by themselves, and are reaped as all orphans are.
print(json.dumps([gone, codes, eventually(lambda: not zombies() and below() == [me.pid, fork_server.identity[0]])]))
fork_server.close()
