import json
import time

from tests.support.families import alive, exit_of, fork_server, go, kill_shim, pids, start_shell

child = start_shell("""
(setsid sleep 600 & echo $!)
(sleep 600 & echo $!)
env -i $(command -v setsid) $(command -v sleep) 600 & echo $!
read end
""")
go(child)
family = pids(child, 3)
child.remember_descendants()
kill_shim(child)
go(child)
assert exit_of(child).code is None  # it was init that reaped it
report = child.sweep(time.monotonic() + 10)
print(json.dumps([report.survivors, alive(family)]))
fork_server.close()
