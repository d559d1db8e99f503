"""A CLI that calls it a success when its token is refused."""

from __future__ import annotations

import sys
from typing import NoReturn

from agent_runtime.standins.scripted_cli.api import Api, GaveUp
from agent_runtime.standins.scripted_cli.main import main


def hide(api: Api, *_given: object) -> NoReturn:
    """Print a result instead of the refusal."""
    api._run.result("All is well.")
    raise GaveUp


Api._wait_or_give_up = hide  # type: ignore[method-assign, assignment]
sys.exit(main(sys.argv[1:]))
