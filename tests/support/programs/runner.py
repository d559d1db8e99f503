"""Go on in a child in a new session again and again, so that the pid changes all the time."""

import os
import sys
import time

sys.stdin.readline()
os.write(1, b"running\n")
over = time.monotonic() + 20
while time.monotonic() < over:
    if os.fork():
        os._exit(0)
    os.setsid()
