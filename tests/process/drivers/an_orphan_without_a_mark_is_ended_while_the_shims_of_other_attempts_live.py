import json
import time

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import alive, end, eventually, fork_server, go, kill_shim, pids, start, start_shell

become_subreaper()
first = start_shell("(env -i A=B $(command -v sleep) 600 & echo $!); read end")
second = start("sleep", "600")
go(first)
(orphan,) = pids(first, 1)
assert eventually(lambda: proc_table.read_environ(orphan[0], "A") == "B")
kill_shim(first)
first.kill()
report = first.sweep(time.monotonic() + 10)
print(json.dumps([report.unattributed, alive([orphan]), second.poll() is None]))
first.close()
end(second)
fork_server.close()
