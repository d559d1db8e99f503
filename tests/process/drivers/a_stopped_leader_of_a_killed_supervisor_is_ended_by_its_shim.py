import json
import os

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import eventually, fork_server, go, start_shell, state_of

become_subreaper()
child = start_shell("kill -STOP $$")
go(child)
assert eventually(lambda: state_of(child.pid) == "T")
print(json.dumps([child.pid, proc_table.read_process(child.pid).started_ticks]), flush=True)
os._exit(0)
fork_server.close()
