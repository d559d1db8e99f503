import json
import time

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import alive, eventually, fork_server, go, kill_shim, pids, start, start_shell

become_subreaper()
first = start_shell("(env -i A=B $(command -v setsid) $(command -v sleep) 600 & echo $!); read end")
second = start("sleep", "600")
go(first)
(orphan,) = pids(first, 1)
assert eventually(lambda: proc_table.read_process(orphan[0]).session == orphan[0])
kill_shim(first)
kill_shim(second)
first.kill()
report = first.sweep(time.monotonic() + 10)
first.close()
spared = alive([orphan])
second.kill()
last = second.sweep(time.monotonic() + 10)
second.close()
print(json.dumps([report.unattributed, len(spared), last.unattributed, alive([orphan])]))
fork_server.close()
