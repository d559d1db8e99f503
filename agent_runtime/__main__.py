"""Run the commands, as ``agent-runtime`` or ``python -m agent_runtime``."""

import gc
import os
import signal
import sys

EXIT_INTERRUPTED = 130


def main() -> int:
    """
    Import and run the command line, and return its exit code.

    While it is imported, Ctrl-C ends the process at once. An exception could come out of any import as another one.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # it is ignored in a job in the background
        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    gc.disable()  # What is imported stays: to search it for garbage takes 4 ms of each command's start.
    from agent_runtime.cli.main import main as run

    gc.freeze()
    gc.enable()
    try:
        signal.signal(signal.SIGINT, handler)
        return run()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
