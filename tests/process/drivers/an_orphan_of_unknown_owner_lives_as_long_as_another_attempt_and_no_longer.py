import json
import time

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import alive, fork_server, kill_shim
from tests.support.shim_drivers import orphan_in_a_session_of_its_own

become_subreaper()
first, second, orphan = orphan_in_a_session_of_its_own()
kill_shim(first)
kill_shim(second)
first.kill()
report = first.sweep(time.monotonic() + 10)
first.close()
spared = alive([orphan])
second.kill()
last = second.sweep(time.monotonic() + 10)
second.close()
print(json.dumps([report.unattributed, len(spared), last.unattributed, alive([orphan])]))
fork_server.close()
