import json
import os
import signal
import threading
import time

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.spawn import NotSpawned
from tests.support.families import (
    FAMILY,
    alive,
    end,
    eventually,
    fork_server,
    joined_cgroup,
    pids,
    reap_orphans,
    start,
    start_python,
    state_of,
)

group = joined_cgroup()


def failure():
    try:
        end(start("true"))
    except NotSpawned as failed:
        return failed.reason.name


become_subreaper()
children = [start_python(FAMILY, "20") for _ in range(2)]
families = [pids(child, 20) for child in children]
(group / "pids.max").write_text((group / "pids.current").read_text())
failures = [failure()]
try:
    threading.Thread(target=print).start()
    failures.append("none")
except RuntimeError:
    failures.append("no thread")
failures.append(children[0].interrupt())
children[0].kill()
report = children[0].sweep(time.monotonic() + 10)
children[0].close()
gone = alive(families[0])
os.kill(fork_server.identity[0], signal.SIGKILL)
assert eventually(lambda: state_of(fork_server.identity[0]) == "Z")
reap_orphans()
(group / "pids.max").write_text((group / "pids.current").read_text())
failures.append(failure())  # there is no fork_server, and none can be started
assert len(alive(families[1])) == 20
end(children[1])
(group / "pids.max").write_text("max")
failures.append(failure())
print(json.dumps([failures, report.survivors, gone, alive(families[1])]))
fork_server.close()
