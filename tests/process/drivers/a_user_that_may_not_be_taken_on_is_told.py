import json

from agent_runtime.process.spawn import NotSpawned
from tests.support.families import fork_server, start

try:
    start("true", user="54322")
except NotSpawned as failure:
    print(json.dumps(failure.reason.name))
fork_server.close()
