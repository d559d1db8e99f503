"""The connection of the commands to a supervisor, and the exit codes of its refusals."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from agent_runtime.cli.exit_codes import EXIT_FAILED, EXIT_REFUSED, EXIT_TRY_LATER
from agent_runtime.client import ClientError, RequestRefused, SyncAgentClient, TurnedAway, Unreachable
from agent_runtime.client.aio import PATIENCE_SECONDS
from agent_runtime.setting_slips import masked, not_this

if TYPE_CHECKING:
    import argparse


REMEDIES = {
    "unreachable": "; start it (agent-runtime serve), or say where it listens (--url, AGENT_RUNTIME_URL)",
    "unexpected": "; say where the supervisor listens (--url, AGENT_RUNTIME_URL)",
    "access": " (--key-file, AGENT_RUNTIME_ACCESS_KEY_FILE)",
}
"""What a person can do with a command about an error, after its sentence."""


def connect(options: argparse.Namespace, patience_seconds: float = PATIENCE_SECONDS) -> SyncAgentClient:
    """
    Make the client that the options of a command describe.

    Raises:
        RequestRefused: The address is none.
    """
    try:
        return SyncAgentClient(options.url, access_key_file=options.key_file, patience_seconds=patience_seconds)
    except ValueError as error:
        detail = f"--url (AGENT_RUNTIME_URL): {error}{not_this(options.url)}"
        raise RequestRefused.because("invalid_request", detail) from None


def exit_code(error: ClientError) -> int:
    """Return the exit code of an error."""
    if error.error_class == "unexpected" or isinstance(error, RequestRefused):
        return EXIT_REFUSED
    return EXIT_TRY_LATER if isinstance(error, TurnedAway | Unreachable) else EXIT_FAILED


def complain(error: ClientError) -> int:
    """Print an error on stderr, and return its exit code."""
    has_label = isinstance(error, Unreachable) or str(error).startswith(error.error_class)
    label = "" if has_label else f"{error.error_class}: "
    remedy = REMEDIES.get(error.error_class, "")
    sys.stderr.write(f"agent-runtime: {label}{masked(str(error))}{remedy}\n")
    return exit_code(error)
