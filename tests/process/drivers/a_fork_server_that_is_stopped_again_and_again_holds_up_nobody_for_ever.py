import contextlib
import json
import os
import signal
import threading
import time

import agent_runtime.process.forkserver.server as module
from agent_runtime.process.containment.registry import become_subreaper, new_mark
from tests.support.families import data_dir, end, exit_of, fork_server, go, start_shell
from tests.support.shim_drivers import attempt

become_subreaper()
module._ANSWER_SECONDS = 0.5
fork_server.start()
over = threading.Event()


def stopping():
    while not over.is_set():
        identity = fork_server.identity
        with contextlib.suppress(ProcessLookupError):
            os.kill(identity[0], signal.SIGSTOP)


thread = threading.Thread(target=stopping)
thread.start()
outcomes, seconds = [], []


def one():
    began = time.monotonic()
    child = attempt(new_mark(data_dir()))
    seconds.append(time.monotonic() - began)
    if isinstance(child, str):
        outcomes.append(child.partition(":")[0])
    else:
        end(child)
        outcomes.append("spawned")


threads = [threading.Thread(target=one, daemon=True) for _ in range(24)]
for each in threads:
    each.start()
for each in threads:
    each.join(30)
assert len(outcomes) == 24, outcomes
over.set()
thread.join()
child = start_shell("exit 7")
go(child)
after = exit_of(child).code
end(child)
print(json.dumps([sorted(set(outcomes)), max(seconds), after]))
fork_server.close()
