"""The commands that wait: ``agent-runtime drain`` for executions to end, ``agent-runtime token wait`` for a token."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator

from agent_runtime.cli.connection import connect
from agent_runtime.cli.exit_codes import EXIT_FAILED, EXIT_SUCCESS
from agent_runtime.client import TokenReport, Unreachable

POLL_SECONDS = 0.25


def drain(options: argparse.Namespace) -> int:
    """Stop admission, or end that; wait until all executions, or the supervisor itself, have ended, if asked to."""
    with connect(options) as client:
        if options.call_off:
            client.undrain()
            return _print("executions are let in again")
        unfinished = client.drain().unfinished
        _print(f"draining: {unfinished} unfinished")
        for _ in _polls(options.timeout) if options.wait else ():
            before = unfinished
            try:
                running = client.running()
            except Unreachable:
                return _print("the supervisor has ended")
            unfinished = len(running.executions) + len(running.pending_ids)
            if not unfinished:
                return _print("drained")
            if unfinished != before:
                _print(f"draining: {unfinished} unfinished")
    return _print(f"not drained in time: {unfinished} unfinished", EXIT_FAILED) if options.wait else EXIT_SUCCESS


def token_wait(options: argparse.Namespace) -> int:
    """Wait until a token is the only one that running executions hold."""
    obstacle = None
    with connect(options) as client:
        for _ in _polls(options.timeout):
            obstacle = obstacle_to(options.fingerprint, client.token())
            if obstacle is None:
                return _print(f"{options.fingerprint} is in use, and no running execution holds an older token")
    return _print(f"not in time: {obstacle}", EXIT_FAILED)


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


def _polls(timeout_seconds: float | None) -> Iterator[None]:
    """Yield whenever it is time to ask again, as the API has no request that waits; last when the time is over."""
    until = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
    yield
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(POLL_SECONDS, left))  # the interface has nothing to wait on: it is asked again
        yield


def _print(text: str, exit_code: int = EXIT_SUCCESS) -> int:
    """Print a line, and return *exit_code*."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    return exit_code
