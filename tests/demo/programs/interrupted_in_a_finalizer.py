"""Send this process SIGTERM while a finalizer runs, where Python drops what the signal's handler raises."""

import os
import signal

from agent_runtime.demo.stage import Interrupted, interruptible


class Finalized:
    """An object whose finalizer gets the signal."""

    def __del__(self) -> None:
        """Be interrupted."""
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # the handler runs between two instructions
            pass


try:
    with interruptible():
        found = Finalized()
        del found
        while True:
            signal.pause()
except Interrupted as interrupted:
    raise SystemExit(128 + interrupted.number) from None
