"""A supervisor whose leader does not heed the polite signal, so that its shim takes its time."""

import json
import sys
from pathlib import Path

from agent_runtime.process.containment.leftovers import await_shims
from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import fork_server, go, pids, start_shell

become_subreaper()
fork_server.guard = await_shims(Path(sys.argv[1]))
child = start_shell("trap '' INT; setsid sleep 600 & echo $$; echo $!; while :; do sleep 1; done")
go(child)
print(json.dumps(pids(child, 2)), flush=True)
sys.stdin.read()
