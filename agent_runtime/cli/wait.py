"""``agent-runtime token wait``: wait until a token is the only one that running executions hold."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from agent_runtime.cli.connection import connect
from agent_runtime.cli.exit_codes import EXIT_FAILED, EXIT_SUCCESS

if TYPE_CHECKING:
    import argparse

    from agent_runtime.client import TokenReport

POLL_SECONDS = 0.25


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    timeout = float("inf") if options.timeout is None else options.timeout
    until = time.monotonic() + timeout
    with connect(options) as client:
        while obstacle := obstacle_to(options.fingerprint, client.token()):
            left = until - time.monotonic()
            if left <= 0:
                sys.stdout.write(f"not in time: {obstacle}\n")
                return EXIT_FAILED
            time.sleep(min(POLL_SECONDS, left))  # the API has no request that waits for a token
    sys.stdout.write(f"{options.fingerprint} is in use, and no running execution holds an older token\n")
    return EXIT_SUCCESS


def obstacle_to(fingerprint: str, token: TokenReport) -> str | None:
    """Return why the token with *fingerprint* is not yet the only one in use; None: it is the only one."""
    generation = token.generation
    if token.fingerprint != fingerprint or generation is None:
        loaded = "no token is" if generation is None else f"{token.fingerprint} (generation {generation}) is"
        return f"{fingerprint} is not loaded, {loaded}"
    older = {int(number): count for number, count in token.held_by.items() if int(number) < generation}
    if not older:
        return None
    held = ", ".join(f"{count} hold{'s' * (count == 1)} generation {number}" for number, count in sorted(older.items()))
    return f"{fingerprint} is loaded (generation {generation}), but of the running executions {held}"
