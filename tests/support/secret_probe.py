"""
A process that only watches a secret file, for tests of faults that affect a whole process.

``python secret_probe.py FILE DATA_DIR``: prints one JSON line for each status and for each warning, with the system's
monotonic time; ends when its stdin is closed. Every line on stdin is answered with the token that a spawn would get.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

from agent_runtime.errors import SecretUnreadable
from agent_runtime.secret.file import GenerationLedger, SecretFile, SecretStatus


def say(**what: object) -> None:
    """Print one line by a single write, because two threads print."""
    sys.stdout.write(json.dumps({"at": time.monotonic(), **what}) + "\n")
    sys.stdout.flush()


def say_status(status: SecretStatus) -> None:
    generation = status.generation
    fingerprint = generation.token.fingerprint if generation else None
    say(event="status", state=status.state, fingerprint=fingerprint, source=status.source, error=status.error)


class Warnings(logging.Handler):
    """Print log records of level warning or higher."""

    def emit(self, record: logging.LogRecord) -> None:
        say(event="warning", text=record.getMessage())


def main() -> None:
    """Watch until stdin is closed."""
    logging.getLogger().addHandler(Warnings(logging.WARNING))
    secret = SecretFile(Path(sys.argv[1]), ledger=GenerationLedger(Path(sys.argv[2])), on_change=say_status)
    secret.start()
    say(event="started", source=secret.status.source)
    for _ in sys.stdin:
        try:
            say(event="spawn", fingerprint=secret.read().token.fingerprint)
        except SecretUnreadable as problem:
            say(event="spawn", fingerprint=None, error=str(problem))
    secret.stop()
    say(event="stopped")


if __name__ == "__main__":
    main()
