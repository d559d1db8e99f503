import json

from agent_runtime.process.containment.registry import MARK_VARIABLE, become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import alive, end, eventually, fork_server, go, pids, start, start_shell

become_subreaper()
first = start("sleep", "600")
second = start_shell(f"exec env -i /bin/sh -c '{MARK_VARIABLE}={first.mark} setsid sleep 600 & echo $!; wait'")
go(second)
(forger,) = pids(second, 1)
assert eventually(lambda: proc_table.read_environ(forger[0], MARK_VARIABLE) == first.mark)
end(first)
print(json.dumps(len(alive([forger]))))
end(second)
fork_server.close()
