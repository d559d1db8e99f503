import json
import sys
import time

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
from tests.support.shim_drivers import attempt, kill_pass, new_shims_struck, newborn

become_subreaper()
module._ANSWER_SECONDS = 1.0
fork_server.start()
mark = new_mark(data_dir())
began = time.monotonic()
with new_shims_struck(lambda pid: kill_pass(pid, sys.argv[1])):
    said = attempt(mark)
seconds = time.monotonic() - began
second = start_shell("exit 7")
go(second)
code = exit_of(second).code
end(second)
reap_orphans()
print(json.dumps([said, seconds, [marked(mark), eventually(lambda: reap_orphans() or not newborn())], code]))
fork_server.close()
