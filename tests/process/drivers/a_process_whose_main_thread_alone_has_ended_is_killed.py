import json
import os
import time

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import eventually, exit_of, fork_server, pids, start_python, state_of

program = """
import ctypes, os, threading
def stay():
    os.write(1, b"%d\\n" % os.getpid())
    threading.Event().wait()
if os.fork() == 0:
    os.setsid()
    threading.Thread(target=stay).start()
    ctypes.CDLL(None).pthread_exit(None)
"""
become_subreaper()
child = start_python(program)
((pid, _),) = pids(child, 1)
exit_of(child)
assert eventually(lambda: state_of(pid) == "Z")
before = proc_table.read_process(pid).dead
report = child.sweep(time.monotonic() + 10)
print(json.dumps([before, report.survivors, eventually(lambda: not os.path.exists(f"/proc/{pid}"))]))
fork_server.close()
