"""For drivers: find the shims below this process, and spawn where that may fail."""

import os
import signal

from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.spawn import NotSpawned
from tests.support.families import fork_server, start

me = proc_table.read_process(os.getpid())


def newborn(known=()):
    snapshot = proc_table.Snapshot()
    # Leave out a fork server that is being started: if it were stopped before its exec, its start would never end.
    ours = [p for p in snapshot.children(me) if fork_server._socket is not None and p.identity != fork_server.identity]
    parent = snapshot.processes.get(fork_server.identity[0])
    theirs = [] if parent is None else snapshot.children(parent)
    return [p for p in (*ours, *theirs) if not p.dead and p.pid not in known]


def kill_pass(pid, how):
    os.kill(pid, getattr(signal, how))


def attempt(mark):
    try:
        return start("sleep", "600", mark=mark)
    except NotSpawned as failure:
        return f"{failure.reason.name}: {failure}"
