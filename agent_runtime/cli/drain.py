"""``agent-runtime drain``: stop admission, and wait until the running executions have ended."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from agent_runtime.cli.connection import connect
from agent_runtime.cli.exit_codes import EXIT_FAILED, EXIT_SUCCESS
from agent_runtime.client import Unreachable

if TYPE_CHECKING:
    import argparse

    from agent_runtime.client import SyncAgentClient

POLL_SECONDS = 0.25


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    with connect(options) as client:
        if options.call_off:
            client.undrain()
            _print("executions are let in again")
            return EXIT_SUCCESS
        unfinished = client.drain().unfinished
        _print(f"draining: {unfinished} unfinished")
        return _wait(client, unfinished, options.timeout) if options.wait else EXIT_SUCCESS


def _wait(client: SyncAgentClient, unfinished: int, timeout_seconds: float | None) -> int:
    """Wait until all executions, or the supervisor itself, have ended; return the exit code."""
    until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while unfinished:
        if until is not None and time.monotonic() >= until:
            _print(f"not drained in time: {unfinished} unfinished")
            return EXIT_FAILED
        time.sleep(POLL_SECONDS)
        before = unfinished
        try:
            running = client.running()
            unfinished = len(running.executions) + len(running.pending_ids)
        except Unreachable:
            _print("the supervisor has ended")
            return EXIT_SUCCESS
        if unfinished not in (0, before):
            _print(f"draining: {unfinished} unfinished")
    _print("drained")
    return EXIT_SUCCESS


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
