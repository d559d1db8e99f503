"""
A supervisor whose first reading of the secret file takes long: ``python tests/support/late_supervisor.py serve …``.

``FIRST_READING`` names a FIFO: the first reading begins with opening it, and goes on when it is opened for writing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_runtime.cli.main import main
from agent_runtime.secret import file
from agent_runtime.secret.reader import read_secret

if TYPE_CHECKING:
    from agent_runtime.secret.reader import Reading

fifo = Path(os.environ.pop("FIRST_READING"))
names = vars(file)


def read_late(*arguments: Any) -> Reading:
    names["read_secret"] = read_secret
    fifo.read_bytes()
    return read_secret(*arguments)


names["read_secret"] = read_late

if __name__ == "__main__":
    sys.exit(main())
