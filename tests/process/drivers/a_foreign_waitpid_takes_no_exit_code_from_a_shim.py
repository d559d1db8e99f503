import json
import select

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import fork_server, go, start, start_shell
from tests.support.shim_drivers import exit_code_with_nothing_left, reap_everything

become_subreaper()
reap_everything()
codes = []
for number in range(40):
    child = start_shell("sleep 60 & setsid sleep 60 & exit 7") if number % 2 else start("true")
    if number % 2:
        go(child)
    assert select.select([child.pidfd], [], [], 10)[0]
    codes.append(exit_code_with_nothing_left(child))
print(json.dumps(codes))
fork_server.close()
