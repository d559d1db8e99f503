import contextlib
import json
import sys
import time

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import (
    FAMILY,
    alive,
    eventually,
    exit_of,
    fork_server,
    pids,
    reap_orphans,
    shim_of,
    start_python,
)
from tests.support.shim_drivers import kill_pass, newborn

become_subreaper()
child = start_python(FAMILY, "60")
family = pids(child, 60)
(layer,) = child._layers
look, looks = layer.kill_pass, []


def struck(*, thorough):
    if not looks:
        with contextlib.suppress(AssertionError, ProcessLookupError):
            kill_pass(shim_of(child), sys.argv[1])
    looks.append(thorough)
    found = look(thorough=thorough)
    return found


layer.kill_pass = struck
report = child.sweep(time.monotonic() + 10)
layer.kill_pass = look
codes = exit_of(child).code
child.close()
print(json.dumps([report.survivors, alive(family), codes, eventually(lambda: reap_orphans() or not newborn())]))
fork_server.close()
