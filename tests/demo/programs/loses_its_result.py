"""A CLI that prints no result."""

from __future__ import annotations

import sys

from agent_runtime.standins.scripted_cli.main import main
from agent_runtime.standins.scripted_cli.runtime import Run


def lose(*_given: object, **_fields: object) -> None:
    """Print nothing."""


Run.result = lose  # type: ignore[method-assign]
sys.exit(main(sys.argv[1:]))
