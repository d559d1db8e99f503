import json
import os
import select
import time

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import exit_of, fork_server, go, lines, start_shell

become_subreaper()
child = start_shell("setsid sleep 600 & echo held; exit 4")
go(child)
code = exit_of(child).code
began = time.monotonic()
child.sweep(began + 10)
lines(child, 1)
end_of_file = select.select([child.stdout], [], [], 10)[0] and os.read(child.stdout, 100) == b""
print(json.dumps([code, end_of_file, time.monotonic() - began < 10]))
fork_server.close()
