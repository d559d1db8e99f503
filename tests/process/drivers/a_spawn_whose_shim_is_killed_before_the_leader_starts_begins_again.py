import json
import os
import signal
import sys

import agent_runtime.process.forkserver.server as module
from agent_runtime.process.containment.registry import become_subreaper, new_mark
from tests.support.families import (
    data_dir,
    end,
    eventually,
    exit_of,
    fork_server,
    go,
    marked,
    reap_orphans,
    start_shell,
)
from tests.support.shim_drivers import kill_pass, newborn

become_subreaper()
fork_server.start()
started = module._request_leader
struck = []


def strike_once(line, pipes, spawn_request):
    if not struck:
        assert eventually(lambda: newborn())
        struck.extend(shim.pid for shim in newborn())
        if sys.argv[1] == "fork server too":
            os.kill(fork_server.identity[0], signal.SIGKILL)
        for pid in struck:
            kill_pass(pid, "SIGKILL")
    return started(line, pipes, spawn_request)


module._request_leader = strike_once
mark = new_mark(data_dir())
child = start_shell("exit 7", mark=mark)
spared = not child._attempt.ending
go(child)
code = exit_of(child).code
end(child)
reap_orphans()
print(json.dumps([len(struck), spared, code, marked(mark), eventually(lambda: reap_orphans() or not newborn())]))
fork_server.close()
