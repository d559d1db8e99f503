"""For drivers: start a leader whose tool takes all memory, and end the processes in a cgroup."""

import os
import signal
import time

from agent_runtime.process.containment import sweep as containment
from agent_runtime.process.containment.cgroup import CgroupLayer

GREED = """
blocks = []
while True:
    blocks.append(bytearray(b"x") * (8 << 20))
"""


def greedy_tool(group):
    """Start a leader whose tool takes all memory; it is forked, because not every user may run our Python."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return pid, ours
    os.write(group.procs, b"0")
    os.setsid()
    tool = os.fork()
    if tool == 0:
        exec(GREED)
    os.write(theirs, b"%d" % os.waitstatus_to_exitcode(os.waitpid(tool, 0)[1]))
    signal.pause()


def sweep(group):
    return containment.sweep([CgroupLayer(group)], time.monotonic() + 40)
