import json
import os

import msgspec

from agent_runtime.process.containment.freezer import Freezer
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import exit_of, fork_server, start

child = start("sleep", "600")
seen = proc_table.read_process(child.pid)
earlier = msgspec.structs.replace(seen, started_ticks=seen.started_ticks - 1)
ours = proc_table.read_process(os.getpid())
freezer = Freezer()
answers = [freezer.freeze(earlier), freezer.freeze(ours)]
freezer.kill()
answers += [child.poll() is None, freezer.freeze(seen)]
freezer.kill()
print(json.dumps([*answers, exit_of(child).code]))
fork_server.close()
