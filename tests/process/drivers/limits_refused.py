import json
import sys

from agent_runtime.errors import CannotStart
from agent_runtime.process.linux import cgroup_setup as cgroups
from agent_runtime.process.linux.cgroup import Limits
from tests.support.families import fork_server

try:
    cgroups.prepare(cgroups.find(), Limits(**json.loads(sys.argv[1])))
    answer = "prepared"
except CannotStart as refused:
    answer = str(refused)
print(json.dumps(answer))
fork_server.close()
