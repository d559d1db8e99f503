"""The connection of the commands to a supervisor, and the exit codes of its refusals."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import msgspec

from agent_runtime.cli.exit_codes import EXIT_FAILED, EXIT_REFUSED, EXIT_TRY_LATER
from agent_runtime.cli.pages import flag_of
from agent_runtime.client import ClientError, RequestRefused, SyncAgentClient, TurnedAway, Unreachable
from agent_runtime.client.aio import PATIENCE_SECONDS
from agent_runtime.setting_slips import masked, not_this

REMEDIES = {
    "unreachable": "; start it (agent-runtime serve), or say where it listens (--url, AGENT_RUNTIME_URL)",
    "unexpected": "; say where the supervisor listens (--url, AGENT_RUNTIME_URL)",
    "access": " (--key-file, AGENT_RUNTIME_ACCESS_KEY_FILE)",
}
"""Advice for a person, by error class, to append to the error's sentence."""


def connect(options: argparse.Namespace, patience_seconds: float = PATIENCE_SECONDS) -> SyncAgentClient:
    """
    Make the client that the options of a command describe.

    Raises:
        RequestRefused: The URL is not usable, or an option is not text in UTF-8, which no request can carry.
    """
    for name, value in vars(options).items():
        try:
            msgspec.json.encode(value, enc_hook=lambda _: None)  # a file's name may hold any bytes
        except UnicodeEncodeError:
            word = "PROMPT" if name == "prompt" else flag_of(name)
            raise RequestRefused.because("invalid_request", f"{word}: must be text in UTF-8") from None
    try:
        return SyncAgentClient(options.url, access_key_file=options.key_file, patience_seconds=patience_seconds)
    except ValueError as error:
        detail = f"--url (AGENT_RUNTIME_URL): {error}{not_this(options.url)}"
        raise RequestRefused.because("invalid_request", detail) from None


def exit_code_of(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a command and return its exit code; print an error on stderr, with advice for a person."""
    try:
        return command(options)
    except ClientError as caught:
        error = caught
    has_label = isinstance(error, Unreachable) or str(error).startswith(error.error_class)
    label = "" if has_label else f"{error.error_class}: "
    remedy = REMEDIES.get(error.error_class, "")
    sys.stderr.write(f"agent-runtime: {label}{masked(str(error))}{remedy}\n")
    if error.error_class == "unexpected" or isinstance(error, RequestRefused):
        return EXIT_REFUSED
    return EXIT_TRY_LATER if isinstance(error, TurnedAway | Unreachable) else EXIT_FAILED
