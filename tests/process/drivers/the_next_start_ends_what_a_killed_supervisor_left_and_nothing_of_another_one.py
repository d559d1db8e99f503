import json
import sys
from pathlib import Path

from agent_runtime.process.containment.leftovers import sweep_leftovers
from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import fork_server

become_subreaper()
print(json.dumps(sweep_leftovers(Path(sys.argv[1]))))
fork_server.close()
