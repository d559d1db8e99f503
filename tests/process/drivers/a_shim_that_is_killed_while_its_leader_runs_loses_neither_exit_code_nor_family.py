import contextlib
import json
import time

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import alive, exit_of, fork_server, go, kill_shim, pids, start_shell

become_subreaper()
children = [
    start_shell("(env -i A=B sleep 600 & echo $!); setsid sleep 600 & echo $!; read end; exit 7") for _ in range(3)
]
families = []
for child in children:
    go(child)
    families += pids(child, 2)
kill_shim(children[0])
kill_shim(children[1])
assert children[2].poll() is None
for child in children:
    with contextlib.suppress(BrokenPipeError):
        go(child)
codes = [exit_of(child).code for child in children]
reports = [child.sweep(time.monotonic() + 10) for child in children]
print(json.dumps([codes, sum(r.survivors for r in reports), alive(families)]))
for child in children:
    child.close()
fork_server.close()
