import json
import os
import subprocess

from agent_runtime.process.containment.registry import become_subreaper
from tests.support.families import end, fork_server, reap_orphans, start

become_subreaper()
ended = subprocess.Popen(["sh", "-c", "exit 9"])
running = subprocess.Popen(["sleep", "60"])
alone = subprocess.Popen(["sleep", "60"], start_new_session=True)
os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
reap_orphans()
end(start("sleep", "60"))
late = subprocess.Popen(["sleep", "60"], start_new_session=True)
end(start("sleep", "60"))
states = [ended.wait(), running.poll(), alone.poll(), late.poll()]
for process in (running, alone, late):
    process.kill()
    process.wait()
print(json.dumps(states))
fork_server.close()
