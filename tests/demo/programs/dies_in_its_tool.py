"""A CLI that dies when it is to run a tool."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from agent_runtime.standins.scripted_cli.main import main
from agent_runtime.standins.scripted_cli.runtime import Run


def die(*_given: object, **_fields: object) -> NoReturn:
    """End the process."""
    os._exit(1)


Run.bash = die  # type: ignore[method-assign]
sys.exit(main(sys.argv[1:]))
