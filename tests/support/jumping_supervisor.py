"""
A supervisor whose wall clock a test moves: ``python tests/support/jumping_supervisor.py serve …``.

``JUMP_FILE`` names a file with the number of seconds that the clock is wrong by; while there is no such file, the clock
is right. The monotonic clock is left alone, as it is when an administrator or NTP sets the time.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from agent_runtime.cli.main import main

now = time.time
jump = Path(os.environ.pop("JUMP_FILE"))


def moved() -> float:
    return now() + (float(jump.read_text()) if jump.exists() else 0.0)


time.time = moved

if __name__ == "__main__":
    sys.exit(main())
