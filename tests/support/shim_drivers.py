"""For drivers: find the shims below this process, spawn where that may fail, and what several begin or end with."""

import contextlib
import os
import signal
import threading
import time

from agent_runtime.process.forkserver import server
from agent_runtime.process.linux import proc as proc_table
from agent_runtime.process.spawn import NotSpawned
from tests.support.families import eventually, fork_server, go, marked, pids, start, start_shell

me = proc_table.read_process(os.getpid())


def newborn(known=()):
    snapshot = proc_table.Snapshot()
    # Leave out a fork server that is being started: if it were stopped before its exec, its start would never end.
    ours = [p for p in snapshot.children(me) if fork_server._running is not None and p.identity != fork_server.identity]
    parent = snapshot.processes.get(fork_server.identity[0])
    theirs = [] if parent is None else snapshot.children(parent)
    return [p for p in (*ours, *theirs) if not p.dead and p.pid not in known]


def kill_pass(pid, how):
    os.kill(pid, getattr(signal, how))


@contextlib.contextmanager
def new_shims_struck(strike, most=None):
    """Call *strike* with the pid of each new shim, before its leader is requested; *most*: how many requests."""
    requested, struck = server._request_leader, []

    def strike_first(line, pipes, spawn_request):
        if most is None or len(struck) < most:
            assert eventually(newborn)
            struck.append([shim.pid for shim in newborn()])
            for pid in struck[-1]:
                strike(pid)
        return requested(line, pipes, spawn_request)

    server._request_leader = strike_first
    try:
        yield struck
    finally:
        server._request_leader = requested


def attempt(mark):
    try:
        return start("sleep", "600", mark=mark)
    except NotSpawned as failure:
        return f"{failure.reason.name}: {failure}"


def reap_everything():
    """Begin a thread that takes the exit of every child of this process, as a foreign ``waitpid(-1)`` does."""

    def greedy():
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                time.sleep(0)

    threading.Thread(target=greedy, daemon=True).start()


def exit_code_with_nothing_left(child):
    """Hold that a child has ended and its sweep leaves nothing; return its exit code, or None where it is unknown."""
    assert not child.interrupt()
    code = child.poll()
    assert child.poll() is code
    assert child.sweep(time.monotonic() + 10).survivors == 0
    assert marked(child.mark) == []
    child.close()
    return code.code


def orphan_in_a_session_of_its_own():
    """Start two children, the first with an unmarked orphan in a session of its own; return all three."""
    first = start_shell("(env -i A=B $(command -v setsid) $(command -v sleep) 600 & echo $!); read end")
    second = start("sleep", "600")
    go(first)
    (orphan,) = pids(first, 1)
    assert eventually(lambda: proc_table.read_process(orphan[0]).session == orphan[0])
    return first, second, orphan
