import json
import time

from agent_runtime.process.containment.registry import become_subreaper, new_mark
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import data_dir, eventually, fork_server, go, kill_shim, pids, spawner, start_shell

become_subreaper()
child = start_shell("(env -i setsid sleep 600 & echo $!; sleep 600) & echo $!; exec sleep 600")
go(child)
family = pids(child, 2)
in_group = lambda one: proc_table.read_process(one[0]).session == child.pid
assert eventually(lambda: sum(map(in_group, family)) == 1)
unmarked, member = sorted(family, key=in_group)
spawner.registry.add(new_mark(data_dir()))
kill_shim(child)
kill_group = child._handle.kill_group


def kill_group_and_wait():
    """Signal the group, and wait until its member is gone: the worst moment for a search."""
    return kill_group() and eventually(lambda: proc_table.read_living(tuple(member)) is None)


child._handle.kill_group = kill_group_and_wait
report = child.sweep(time.monotonic() + 10)
left = proc_table.read_living(tuple(unmarked)) is not None
print(json.dumps([left, report.survivors, report.unattributed]))
fork_server.close()
