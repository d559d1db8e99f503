"""
A supervisor that is killed at one of its writes: ``python tests/support/dying_supervisor.py serve …``.

These count as writes: opening a file in the data directory for writing, renaming or deleting one, adding lines to a
transcript, and each statement that changes the records. ``DIE_AT`` is the number of the write just before which the
supervisor is killed, from 1; ``DIE_LOG`` names a file that gets a line for each write.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_runtime import files
from agent_runtime.cli.main import main
from agent_runtime.store import database

if TYPE_CHECKING:
    import sqlite3

READING = ("SELECT", "PRAGMA")
KEPT = ("/tasks/", "/transcripts/")


class Death:
    """Count writes, and kill this process at the chosen one."""

    def __init__(self) -> None:
        self._left = int(os.environ.pop("DIE_AT"))
        self._log = os.open(os.environ.pop("DIE_LOG"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def comes_closer(self, what: str) -> None:
        self._left -= 1
        os.write(self._log, f"{what}\n".encode())
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR) and any(part in str(path) for part in KEPT):
                self.comes_closer(f"open {Path(str(path)).suffix}")
        elif event in ("os.rename", "os.remove"):
            name, *_, place = arguments
            if any(part in (str(name) if place < 0 else path_in(place, name)) for part in KEPT):
                self.comes_closer(event)

    def traced(self, statement: str) -> None:
        words = statement.split()
        if not statement.startswith("--") and words and words[0].upper() not in READING:
            self.comes_closer(f"sql {words[0].upper()} {words[-1] if words[0] == 'CREATE' else ''}".strip())


def path_in(place: int, name: str) -> str:
    return str(Path(f"/proc/self/fd/{place}").readlink() / name)


death = Death()
connected, create_file, pwrite = database._connected, files.create_file, os.pwrite


def traced_connection(address: str) -> sqlite3.Connection:
    connection = connected(address)
    connection.set_trace_callback(death.traced)
    return connection


def counted_create(place: int, name: str, *arguments: Any, **options: Any) -> None:
    if any(part in path_in(place, name) for part in KEPT):  # the audit event does not name the directory
        death.comes_closer(f"open {Path(name).suffix}")
    create_file(place, name, *arguments, **options)


def counted_pwrite(*arguments: Any) -> int:
    death.comes_closer("lines")
    return pwrite(*arguments)


database._connected = traced_connection
files.create_file = counted_create
os.pwrite = counted_pwrite
sys.addaudithook(death.audited)
sys.exit(main())
