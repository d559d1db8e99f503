import json
import os
import threading
import time

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import eventually, fork_server, go, kill_shim, marked, start_shell

become_subreaper()


def greedy():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0)


threading.Thread(target=greedy, daemon=True).start()

codes = []
for number in range(20):
    child = start_shell("sleep 60 & setsid sleep 60 & exit 7")
    kill_shim(child)
    go(child)
    assert eventually(lambda: proc_table.read_process(child.pid) is None)
    assert not child.interrupt()
    code = child.poll()
    assert child.poll() is code
    assert child.sweep(time.monotonic() + 10).survivors == 0
    assert marked(child.mark) == []
    child.close()
    codes.append(code.code)
print(json.dumps(codes))
fork_server.close()
