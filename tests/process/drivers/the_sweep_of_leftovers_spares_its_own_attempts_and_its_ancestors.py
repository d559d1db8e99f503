import json
import os
import subprocess
import sys
from pathlib import Path

from agent_runtime.process.containment.leftovers import sweep_leftovers
from agent_runtime.process.containment.registry import MARK_VARIABLE, new_mark
from tests.support.families import end, fork_server, start

data_dir = Path(sys.argv[1])
earlier = new_mark(data_dir).replace(".", ".earlier", 1)
script = (
    "from agent_runtime.process.containment.leftovers import *; "
    "sweep_leftovers(__import__('pathlib').Path.cwd()); print('done')"
)
inner = subprocess.run(
    ["sh", "-c", '"$@"; echo parent', "sh", sys.executable, "-c", script],
    cwd=data_dir,
    env={**os.environ, MARK_VARIABLE: earlier},
    capture_output=True,
    text=True,
)
running = start("sleep", "600", mark=new_mark(data_dir))
swept = sweep_leftovers(data_dir)
print(json.dumps([inner.stdout.split(), inner.returncode, swept, running.poll() is None]))
end(running)
fork_server.close()
