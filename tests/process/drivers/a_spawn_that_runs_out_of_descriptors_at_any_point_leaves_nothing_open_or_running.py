import json
import os
import resource

from agent_runtime.process.containment.registry import new_mark
from agent_runtime.process.spawn import NotSpawned
from tests.support.families import attempt_registry, data_dir, descriptors, end, eventually, fork_server, marked, start

end(start("true"))  # starts the fork server
before = descriptors()
outcomes = []
for free in range(24):
    used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    filled = []
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, hard))
    while True:
        try:
            filled.append(os.dup(0))
        except OSError:
            break
    for _ in range(min(free, len(filled))):
        os.close(filled.pop())
    mark = new_mark(data_dir())
    try:
        child = start("sleep", "60", mark=mark)
    except NotSpawned as failure:
        outcomes.append(failure.reason.name)
        child = None
    else:
        outcomes.append("spawned")
    if child is not None:
        end(child)
    for descriptor in filled:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    assert eventually(lambda: marked(mark) == []), free  # its shim was told that nobody wants it
    assert attempt_registry.all() == ()
    assert descriptors() == before, (free, descriptors(), before)
print(json.dumps(outcomes))
fork_server.close()
