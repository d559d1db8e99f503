import json
import os
import sys
from pathlib import Path

from agent_runtime.process.linux import cgroup_setup as cgroups
from tests.support.cgroup_children import become_nobody
from tests.support.families import fork_server

answers = []
for directory in sys.argv[1:]:
    ours, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        Path(directory, "cgroup.procs").write_text("0")
        become_nobody()
        found = cgroups.find()
        os.write(theirs, json.dumps([found.reason, str(found.base)]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    answers.append(json.loads(os.read(ours, 4096)))
print(json.dumps(answers))
fork_server.close()
