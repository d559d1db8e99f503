import json
import subprocess
import time
from pathlib import Path

from agent_runtime.process.containment.registry import become_subreaper
from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.linux import syscalls as linux
from tests.support.families import (
    alive,
    eventually,
    fork_server,
    go,
    kill_shim,
    lines,
    pids,
    reap_orphans,
    shim_of,
    start,
    start_shell,
)


def with_pid(pid, argv):
    for _ in range(50):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        process = subprocess.Popen(argv, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    raise AssertionError("no reuse")


def let_a_tick_pass():
    # Start times are told in ticks of 10 ms: within one, nothing tells a pid's new process from its old one.
    begun = linux.boot_ticks()
    assert eventually(lambda: linux.boot_ticks() > begun + 1)


become_subreaper()
child = start_shell("setsid sleep 600 & echo $!; read end; kill -9 $!; wait $!; echo gone; sleep 600")
go(child)
(descendant,) = pids(child, 1)
let_a_tick_pass()
go(child)
lines(child, 1)
stranger = with_pid(descendant[0], ["cat"])

ended = start_shell("exit 7")
go(ended)
assert eventually(lambda: proc_table.read_process(ended.pid) is None)
let_a_tick_pass()
second = with_pid(ended.pid, ["cat"])
answers = [ended.interrupt(), ended.kill(), ended.poll().code]
ended.sweep(time.monotonic() + 10)
ended.close()

unkept = start("sleep", "600")
shim = shim_of(unkept)
kill_shim(unkept)
reap_orphans()
let_a_tick_pass()
third = with_pid(shim, ["cat"])
unkept.kill()
answers += [unkept.sweep(time.monotonic() + 10).survivors, alive([(unkept.pid, 0)])]
unkept.close()

child.kill()
report = child.sweep(time.monotonic() + 10)
child.close()
reap_orphans()
answers += [report.survivors]
for process in (stranger, second, third):
    process.stdin.write(b"still here")
    process.stdin.close()
    answers += [process.stdout.read().decode(), process.wait()]
print(json.dumps(answers))
fork_server.close()
