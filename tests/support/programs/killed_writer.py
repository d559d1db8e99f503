"""Write the file that is named, and be killed before it is complete."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from agent_runtime.files import replace_file

replace_file(Path(sys.argv[1]), b"half", finish=lambda _: os.kill(os.getpid(), signal.SIGKILL))
