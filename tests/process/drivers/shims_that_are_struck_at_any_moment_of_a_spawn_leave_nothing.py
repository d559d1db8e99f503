import contextlib
import json
import os
import random
import signal
import sys
import threading
import time

import agent_runtime.process.forkserver.server as module
from agent_runtime.process.containment.registry import become_subreaper, new_mark
from tests.support.families import data_dir, end, eventually, fork_server, marked, start
from tests.support.shim_drivers import attempt, kill_pass, newborn

become_subreaper()
module._ANSWER_SECONDS = 0.5
fork_server.start()
over = threading.Event()
chance = random.Random(5)


def greedy():
    while not over.is_set():
        for shim in newborn():
            if shim.session == shim.pid and (time.sleep(chance.random() / 200) or True):
                with contextlib.suppress(ProcessLookupError):
                    kill_pass(shim.pid, sys.argv[1])


thread = threading.Thread(target=greedy)
thread.start()
outcomes, survivors, marks = set(), [], []
for _ in range(30 if sys.argv[1] == "SIGKILL" else 4):
    marks.append(new_mark(data_dir()))
    child = attempt(marks[-1])
    if isinstance(child, str):
        outcomes.add(child.partition(":")[0])
        assert eventually(lambda: not marked(marks[-1])), "a leader without a shim was left"
        continue
    outcomes.add("spawned")
    child.kill()
    survivors.append(child.sweep(time.monotonic() + 10).survivors)
    child.close()
over.set()
thread.join()
for shim in newborn():
    with contextlib.suppress(ProcessLookupError):
        os.kill(shim.pid, signal.SIGCONT)
end(start("true"))
left = lambda: [pid for mark in marks for pid in marked(mark)]
eventually(lambda: not left())
print(json.dumps([sorted(outcomes), max(survivors, default=0), left()]))
fork_server.close()
