"""
Run ``serve`` with a task that blocks its event loop, as a bad library would.

It is a program of its own that wraps the coroutine that serves, so that the product needs no hook for it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any, cast

from agent_runtime.cli import main as cli
from agent_runtime.serve import service

BLOCKED_SECONDS = 0.2
FREE_SECONDS = 0.01

_serve = service._serve


async def take_the_loop(*, burning: bool) -> None:
    """Block the event loop for 200 ms, again and again: by a call that sleeps, or by Python that computes."""
    while True:
        until = time.monotonic() + BLOCKED_SECONDS
        if burning:
            while time.monotonic() < until:
                pass
        else:
            time.sleep(BLOCKED_SECONDS)  # noqa: ASYNC251 - that is the point
        await asyncio.sleep(FREE_SECONDS)


async def _serve_blocked(*arguments: Any, **named: Any) -> int:
    task = asyncio.create_task(take_the_loop(burning="burn" in sys.argv))
    try:
        return await _serve(*arguments, **named)
    finally:
        task.cancel()


if __name__ == "__main__":
    service._serve = cast("Any", _serve_blocked)  # it accepts any arguments
    sys.exit(cli.main(["serve"]))
