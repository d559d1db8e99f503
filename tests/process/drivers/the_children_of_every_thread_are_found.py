import json

from agent_runtime.process.linux import proc as proc_table
from tests.support.families import end, fork_server, go, pids, start_python

program = """
import subprocess, sys, threading
def start():
    child = subprocess.Popen(["/bin/sleep", "600"], env={"A": "B"}, start_new_session=True)
    print(child.pid, flush=True)
    threading.Event().wait()
sys.stdin.readline()
threading.Thread(target=start, daemon=True).start()
sys.stdin.readline()
"""
child = start_python(program)
go(child)
(started,) = pids(child, 1)
leader = proc_table.read_process(child.pid)
print(json.dumps(started in [process.identity for process in proc_table.Live().children(leader)]))
end(child)
fork_server.close()
