import json
import os
import signal
import subprocess
import sys

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import (
    alive,
    end,
    eventually,
    exit_of,
    fork_server,
    go,
    kept,
    lines,
    reap_orphans,
    start_shell,
)

decoy, script, escaped = sys.argv[1], sys.argv[2], int(sys.argv[3])
become_subreaper()
me = proc_table.read_process(os.getpid())
theirs = [
    subprocess.Popen(
        [decoy, "-c", "(setsid sleep 600 & sleep 600 &) ; " + script + "; echo ready; read end"],
        start_new_session=own,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    for own in (False, True)
]
for process in theirs:
    process.stdout.readline()
below = lambda: {p.identity for p in proc_table.branch(proc_table.Snapshot(), me) if not p.dead} - {me.identity}
assert eventually(lambda: len(below()) == 2 * (escaped + 3))
foreign = below()
outside = [proc_table.read_process(int(pid)).identity for pid in sys.argv[4:]]
children = [start_shell(f"exec {decoy} -c 'echo ready; read end; {script}; echo ready; read end'") for _ in range(3)]
for child in children:
    go(child)
    lines(child, 1)
    go(child)
    lines(child, 1)
    assert eventually(lambda: len(kept(child)) == escaped + 1), kept(child)
spared = foreign | {process.identity for process in kept(children[2])} | set(outside)
reap_orphans()
end(children[0])
children[1].interrupt()
exit_of(children[1])
end(children[1])
lost = [len(spared - set(alive(list(spared))))]
end(children[2])
spared = foreign | set(outside)
lost.append(len(spared - set(alive(list(spared)))))
lost += [process.poll() for process in theirs]
print(json.dumps([*lost, len(below() - foreign)]))  # of ours, the fork server alone
for pid, _ in foreign:
    os.kill(pid, signal.SIGKILL)
for process in theirs:
    process.communicate()
fork_server.close()
