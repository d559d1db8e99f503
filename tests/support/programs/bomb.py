"""Fork as fast as it can, every process in a session of its own."""

import os
import sys
import time

sys.stdin.readline()
os.write(1, b"running\n")
over = time.monotonic() + 20
while time.monotonic() < over:
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError:
        pass
