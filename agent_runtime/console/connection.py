"""How the commands reach the supervisor, and what its refusals are as exit codes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from agent_runtime.client import (
    ClientError,
    DeadlineExceeded,
    ProblemError,
    RequestRefused,
    SyncAgentClient,
    TurnedAway,
    UnexpectedAnswer,
    Unreachable,
)
from agent_runtime.client.calls import PATIENCE_SECONDS
from agent_runtime.console.exit_codes import EXIT_FAILED, EXIT_REFUSED, EXIT_TRY_LATER

if TYPE_CHECKING:
    import argparse


def connect(options: argparse.Namespace, patience_seconds: float = PATIENCE_SECONDS) -> SyncAgentClient:
    """
    Make the client that the options of a command describe.

    Raises:
        ClientError: The address is none.
    """
    try:
        return SyncAgentClient(options.url, access_key_file=options.key_file, patience_seconds=patience_seconds)
    except ValueError as error:
        raise ClientError(f"--url: {error}") from None


def exit_code(error: ClientError) -> int:
    """Tell which exit code says what *error* says."""
    if isinstance(error, TurnedAway | Unreachable | DeadlineExceeded):
        return EXIT_TRY_LATER
    if isinstance(error, RequestRefused | UnexpectedAnswer) or not isinstance(error, ProblemError):
        return EXIT_REFUSED
    return EXIT_FAILED


def complain(error: ClientError) -> int:
    """Say what went wrong on stderr, and return the exit code."""
    label = f"{error.problem.error_class}: " if isinstance(error, ProblemError) else ""
    remedy = " (--url or AGENT_RUNTIME_URL says where it listens)" if isinstance(error, Unreachable) else ""
    sys.stderr.write(f"agent-runtime: {label}{error}{remedy}\n")
    return exit_code(error)
