"""Make cgroups below the own one, with a process in each."""

import os
import sys
import time

group = sys.argv[1]
for path in ("a", "a/b", "a/b/c", "d"):
    os.mkdir(f"{group}/{path}")
    if os.fork() == 0:
        open(f"{group}/{path}/cgroup.procs", "w").write("0")
        os.write(1, b"%d\n" % os.getpid())
        time.sleep(600)
os.write(1, b"%d\n" % os.getpid())
time.sleep(600)
