import json
import sys
import time

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import alive, end, eventually, exit_of, fork_server, go, kept, lines, start_shell

script, leader_ends, escaped = sys.argv[1], sys.argv[2] == "the leader has ended", int(sys.argv[3])
become_subreaper()
first, second = (
    start_shell(script + "; echo ready; read end" + ("" if leader_ends else "; wait; sleep 600")) for _ in range(2)
)
for child in (first, second):
    go(child)
    lines(child, 1)
    assert eventually(lambda: len(kept(child)) == escaped + 1), kept(child)
if leader_ends:
    go(first)
    exit_of(first)
mine, others = ([process.identity for process in kept(child)] for child in (first, second))
if not leader_ends:
    first.kill()
report = first.sweep(time.monotonic() + 10)
print(
    json.dumps(
        [
            alive(mine),
            len(alive(others)),
            report.survivors,
            report.unattributed,
            report.seconds < 10,
        ]
    )
)
first.close()
assert len(alive(others)) == escaped + 1
end(second)
assert not alive(others)
fork_server.close()
