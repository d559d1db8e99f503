import json
import time

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import alive, end, exit_of, fork_server, go, kill_shim, pids, start, start_python

program = """
import os, subprocess, sys, threading
def start():
    child = subprocess.Popen(["/bin/sleep", "600"], env={"A": "B"}, start_new_session=True)
    print(child.pid, flush=True)
    threading.Event().wait()
sys.stdin.readline()
threading.Thread(target=start, daemon=True).start()
sys.stdin.readline()
os._exit(0)
"""
become_subreaper()
first, second = start_python(program), start("sleep", "600")
go(first)
(orphan,) = pids(first, 1)
first.remember_descendants()
kill_shim(first)
go(first)
exit_of(first)
report = first.sweep(time.monotonic() + 10)
print(json.dumps([report.unattributed, alive([orphan]), second.poll() is None]))
first.close()
end(second)
fork_server.close()
