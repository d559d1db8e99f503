import json

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import alive, eventually, exit_of, fork_server, go, pids, start_shell

become_subreaper()
child = start_shell("(env -i $(command -v setsid) $(command -v sleep) 600 & echo $!); setsid sleep 600 & echo $!")
go(child)
left = pids(child, 2)
exit_of(child)
child.close()
print(json.dumps(eventually(lambda: not alive(left))))
fork_server.close()
