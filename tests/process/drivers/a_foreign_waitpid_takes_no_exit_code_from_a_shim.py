import json
import os
import select
import threading
import time

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import fork_server, go, marked, start, start_shell

become_subreaper()


def greedy():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0)


threading.Thread(target=greedy, daemon=True).start()

codes = []
for number in range(40):
    child = start_shell("sleep 60 & setsid sleep 60 & exit 7") if number % 2 else start("true")
    if number % 2:
        go(child)
    assert select.select([child.pidfd], [], [], 10)[0]
    assert not child.interrupt()
    code = child.poll()
    assert child.poll() is code
    assert child.sweep(time.monotonic() + 10).survivors == 0
    assert marked(child.mark) == []
    child.close()
    codes.append(code.code)
print(json.dumps(codes))
fork_server.close()
