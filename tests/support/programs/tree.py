"""Become as many processes as told: some in sessions of their own, some orphans, some without a mark."""

import os
import signal
import sys

size, end = int(sys.argv[1]), sys.argv[2]


def live(number):
    if number % 2:
        os.setsid()
    for child in range(5 * number + 1, min(5 * number + 6, size)):
        if os.fork() == 0:
            if child % 3 == 0 and os.fork():
                os._exit(0)  # its child becomes an orphan
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
