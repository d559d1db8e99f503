import json
import time

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import alive, end, eventually, fork_server, go, pids, start, start_shell

become_subreaper()
first = start_shell("(env -i A=B $(command -v setsid) $(command -v sleep) 600 & echo $!); read end")
second = start("sleep", "600")
go(first)
(orphan,) = pids(first, 1)
assert eventually(lambda: proc_table.read_process(orphan[0]).session == orphan[0])
first.kill()
report = first.sweep(time.monotonic() + 10)
first.close()
print(json.dumps([report.unattributed, alive([orphan]), second.poll() is None]))
end(second)
fork_server.close()
