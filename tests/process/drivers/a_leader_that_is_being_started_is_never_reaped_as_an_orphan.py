import json
import threading

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import exit_of, fork_server, reap_orphans, start

become_subreaper()
over = threading.Event()


def reap():
    while not over.is_set():
        reap_orphans()


reapers = [threading.Thread(target=reap) for _ in range(2)]
for reaper in reapers:
    reaper.start()
codes = []
for _ in range(60):
    child = start("/bin/true")
    codes.append(exit_of(child).code)
    child.close()
over.set()
for reaper in reapers:
    reaper.join()
print(json.dumps(codes))
fork_server.close()
