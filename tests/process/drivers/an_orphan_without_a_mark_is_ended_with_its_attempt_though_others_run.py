import json
import time

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import alive, end, fork_server
from tests.support.shim_drivers import orphan_in_a_session_of_its_own

become_subreaper()
first, second, orphan = orphan_in_a_session_of_its_own()
first.kill()
report = first.sweep(time.monotonic() + 10)
first.close()
print(json.dumps([report.unattributed, alive([orphan]), second.poll() is None]))
end(second)
fork_server.close()
