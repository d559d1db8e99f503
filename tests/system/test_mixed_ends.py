"""Many attempts at once, of every size, that end in every way: nothing of them is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.families import run_driver

if TYPE_CHECKING:
    from agent_runtime.process.containment.sweep import Kind

TREE = """
import os, signal, sys
size, end = int(sys.argv[1]), sys.argv[2]
def live(number):
    if number % 2:
        os.setsid()
    for child in range(5 * number + 1, min(5 * number + 6, size)):
        if os.fork() == 0:
            if child % 3 == 0 and os.fork():
                os._exit(0)                     # its child falls to whoever is next
            live(child)
    os.write(1, b".")
    if number == 0:
        lead()
    if number % 7 == 5:
        os.execve("/bin/sleep", ["sleep", "600"], {})
    while True:
        signal.pause()
def lead():
    signal.signal(signal.SIGINT, signal.SIG_IGN if end == "timeout" else signal.SIG_DFL)
    os.write(1, b"!")
    sys.stdin.readline()
    if end == "natural":
        os._exit(0)
    if end == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    while True:
        signal.pause()
live(0)
"""
"""Of as many processes as told: some in sessions of their own, some orphans, some without a mark."""

MANY = """
import random, threading
from concurrent.futures import ThreadPoolExecutor
tree, times, at_once = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
become_subreaper()
me = proc_table.read_process(os.getpid())
CODES = {"natural": 0, "auth": -2, "cancel": -9, "timeout": -9, "crash": -11}
dice = random.Random(7)
plan = [(end, size) for end, size in zip(
    dice.choices(tuple(CODES), k=times),
    [201, 201, 51, *dice.choices((1, 2, 3, 6, 12, 51, 201), (40, 20, 15, 12, 8, 4, 1), k=times - 3)])]
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
list(map(one, plan[3:5]))          # starts the fork_server, and fills what is kept in reserve
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
print(json.dumps({
    "right codes": sum(right for right, *_ in results),
    "survivors": sum(survivors for _, survivors, *_ in results),
    "unattributed": sum(unattributed for _, _, unattributed, *_ in results),
    "alive": sum(left for _, _, _, left, *_ in results),
    "processes": sum(size for *_, size, _ in results),
    "marked": marked_at_once,
    "nothing below": nothing_below,
    "until then": time.monotonic() - began,
    "flat": (descriptors(), threading.active_count()) == before,
}))
"""


def _held(times: int, at_once: int, kind: Kind, timeout: float) -> None:
    found = run_driver(MANY, TREE, str(times), str(at_once), kind=kind, timeout=timeout)
    assert found.pop("until then") < 20  # 2 s
    assert found.pop("processes") > times
    assert found == {
        "right codes": times,
        "survivors": 0,
        "unattributed": 0,
        "alive": 0,
        "marked": 0,
        "nothing below": True,
        "flat": True,
    }


@pytest.mark.slow
def test_forty_ends_of_every_kind_leave_nothing(kind: Kind) -> None:
    _held(40, 4, kind, 60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_ends_of_every_kind_leave_nothing(kind: Kind) -> None:
    """Within a minute on a quiet machine."""
    _held(1000, 4, kind, 590)
