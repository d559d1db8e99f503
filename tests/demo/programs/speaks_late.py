"""A CLI that says only after a while that its token was refused."""

from __future__ import annotations

import sys
import time
from typing import Any

from agent_runtime.standins.scripted_cli.api import Api
from agent_runtime.standins.scripted_cli.main import main

refused = Api._wait_or_give_up


def late(*given: Any) -> None:
    """Wait, and print the refusal then."""
    time.sleep(2.5)
    refused(*given)


Api._wait_or_give_up = late  # type: ignore[method-assign, assignment]
sys.exit(main(sys.argv[1:]))
