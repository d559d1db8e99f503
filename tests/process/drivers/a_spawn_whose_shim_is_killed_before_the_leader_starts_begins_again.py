import json
import os
import signal
import sys

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
from tests.support.shim_drivers import kill_pass, new_shims_struck, newborn

become_subreaper()
fork_server.start()


def strike(pid):
    if sys.argv[1] == "fork server too":
        os.kill(fork_server.identity[0], signal.SIGKILL)
    kill_pass(pid, "SIGKILL")


mark = new_mark(data_dir())
with new_shims_struck(strike, most=1) as struck:
    child = start_shell("exit 7", mark=mark)
spared = not child._attempt.ending
go(child)
code = exit_of(child).code
end(child)
reap_orphans()
print(
    json.dumps([sum(map(len, struck)), spared, code, marked(mark), eventually(lambda: reap_orphans() or not newborn())])
)
fork_server.close()
