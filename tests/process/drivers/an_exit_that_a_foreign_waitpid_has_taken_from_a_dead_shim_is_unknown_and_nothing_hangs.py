import json

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import eventually, fork_server, go, kill_shim, start_shell
from tests.support.shim_drivers import exit_code_with_nothing_left, reap_everything

become_subreaper()
reap_everything()
codes = []
for number in range(20):
    child = start_shell("sleep 60 & setsid sleep 60 & exit 7")
    kill_shim(child)
    go(child)
    assert eventually(lambda: proc_table.read_process(child.pid) is None)
    codes.append(exit_code_with_nothing_left(child))
print(json.dumps(codes))
fork_server.close()
