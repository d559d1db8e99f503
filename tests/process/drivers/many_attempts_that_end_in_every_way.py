import json
import os
import random
import select
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from agent_runtime.process.containment.registry import MARK_VARIABLE, become_subreaper
from agent_runtime.process.linux import proc as proc_table
from tests.support.families import (
    alive,
    descriptors,
    eventually,
    exit_of,
    fork_server,
    go,
    kept,
    reap_orphans,
    start_python,
)

tree, times, at_once = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
become_subreaper()
me = proc_table.read_process(os.getpid())
CODES = {"natural": 0, "auth": -2, "cancel": -9, "timeout": -9, "crash": -11}
dice = random.Random(7)
plan = [
    (end, size)
    for end, size in zip(
        dice.choices(tuple(CODES), k=times),
        [201, 201, 51, *dice.choices((1, 2, 3, 6, 12, 51, 201), (40, 20, 15, 12, 8, 4, 1), k=times - 3)],
    )
]


def up(child, size):
    data = b""
    while data.count(b".") < size or b"!" not in data:
        assert select.select([child.stdout], [], [], 60)[0], data
        data += os.read(child.stdout, 65536)


def one(planned):
    end, size = planned
    child = start_python(tree, str(size), end)
    up(child, size)
    assert eventually(lambda: len(kept(child)) == size), (len(kept(child)), size)
    members = [process.identity for process in kept(child)]
    if end in ("natural", "crash"):
        go(child)
    elif end == "cancel":
        child.kill()
    else:
        assert child.interrupt()
        if end == "timeout":
            child.kill()
    code = exit_of(child).code
    report = child.sweep(time.monotonic() + 30)
    left = alive(members)
    child.close()
    return (code == CODES[end], report.survivors, report.unattributed, len(left), size, child.mark)


list(map(one, plan[3:5]))  # starts the fork server
before = (descriptors(), threading.active_count())
with ThreadPoolExecutor(at_once) as pool:
    results = list(pool.map(one, plan))
ours = {mark.rpartition(".")[0] for *_, mark in results}
assert len(ours) == 1


def of_this_start():
    marks = [proc_table.read_environ(p.pid, MARK_VARIABLE) for p in proc_table.all_processes() if not p.dead]
    return [mark for mark in marks if isinstance(mark, str) and mark.rpartition(".")[0] in ours]


def others_below():
    reap_orphans()
    return [p for p in proc_table.branch(proc_table.Snapshot(), me) if p.pid not in (me.pid, fork_server.identity[0])]


marked_at_once = len(of_this_start())
began = time.monotonic()
nothing_below = eventually(lambda: not others_below())
print(
    json.dumps(
        {
            "right codes": sum(right for right, *_ in results),
            "survivors": sum(survivors for _, survivors, *_ in results),
            "unattributed": sum(unattributed for _, _, unattributed, *_ in results),
            "alive": sum(left for _, _, _, left, *_ in results),
            "processes": sum(size for *_, size, _ in results),
            "marked": marked_at_once,
            "nothing below": nothing_below,
            "until then": time.monotonic() - began,
            "flat": (descriptors(), threading.active_count()) == before,
        }
    )
)
fork_server.close()
