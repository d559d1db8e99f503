import json
import sys
from pathlib import Path

from agent_runtime.process.containment.registry import become_subreaper, new_mark
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import go, kill_shim, pids, start_shell

become_subreaper()
mark = new_mark(Path(sys.argv[1]))
child = start_shell(
    f"trap 'echo polite >{sys.argv[1]}/said; exit' INT; "
    "setsid sleep 600 & echo $!; (setsid sleep 600 & echo $!); sleep 600 & echo $!; "
    "(env -i $(command -v sleep) 600 & echo $!; read end); wait",
    mark=mark,
)
go(child)
family = pids(child, 4)
if sys.argv[2] == "shim killed":
    kill_shim(child)
print(json.dumps([[child.pid, proc_table.read_process(child.pid).started_ticks], *family]), flush=True)
sys.stdin.read()
