"""Become as many processes as the argument says, each in a session of its own; all begin to spin at one moment."""

import os
import sys

count = int(sys.argv[1])
sys.stdin.readline()
gate, opened = os.pipe()
up, come = os.pipe()
for number in range(count - 1):
    if os.fork() == 0:
        os.setsid()
        os.close(opened)
        os.write(come, b".")
        os.read(gate, 1)
        while True:
            pass
seen = 0
while seen < count - 1:
    seen += len(os.read(up, 65536))
os.write(1, b"ready\n")
sys.stdin.readline()
os.close(opened)
while True:
    pass
