import json
import os
import resource
from pathlib import Path

from agent_runtime.process.linux import cgroup_setup as cgroups
from tests.support.families import fork_server

groups = cgroups.prepare(cgroups.find())
count = len(list(Path("/proc/self/fd").iterdir())) - 1
results = []
for free in range(4):
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + free, 4096))
    try:
        group = groups.make(f"few.{os.getpid()}")
    except OSError as error:
        results.append(error.errno)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    results.append(any("few." in path.name for path in groups.base.iterdir()))
    results.append(len(list(Path("/proc/self/fd").iterdir())) - 1 == count)
print(json.dumps(results))
fork_server.close()
