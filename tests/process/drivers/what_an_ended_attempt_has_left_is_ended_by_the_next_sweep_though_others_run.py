import json

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import alive, end, exit_of, fork_server, go, kill_shim, pids, start, start_shell

become_subreaper()
first, second, third = start_shell("(setsid sleep 600 & echo $!)"), start("sleep", "600"), start("sleep", "600")
go(first)
(orphan,) = pids(first, 1)
exit_of(first)
kill_shim(first)
first.close()
left = len(alive([orphan]))
end(second)
print(json.dumps([left, alive([orphan]), third.poll() is None]))
end(third)
fork_server.close()
