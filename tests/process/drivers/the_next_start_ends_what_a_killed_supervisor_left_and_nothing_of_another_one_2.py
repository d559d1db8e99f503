import json
import sys
from pathlib import Path

from agent_runtime.process.containment.leftovers import sweep_leftovers
from tests.support.families import fork_server

print(json.dumps(sweep_leftovers(Path(sys.argv[1]))))
fork_server.close()
