"""
One SQLite file: opened, migrated, and watched for what the disk does to it.

The file is locked by the process that has it open, and the index of its write-ahead log stays in memory: there is no
shared memory file that a full disk or a network file system could break.

Source: https://www.sqlite.org/wal.html#use_of_wal_without_shared_memory
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from typing import TYPE_CHECKING, Any, TypeAlias

from agent_runtime.errors import CannotStart, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import NoReturn

log = logging.getLogger(__name__)

Rows: TypeAlias = list[tuple[Any, ...]]

BUSY_SECONDS = 0.2
"""How long a file that another process has locked is waited for."""

LOG_LIMIT_BYTES = 16 << 20
"""What the write-ahead log is cut back to."""

NEEDS_REOPENING: dict[int, bool] = {
    sqlite3.SQLITE_FULL: False,
    sqlite3.SQLITE_BUSY: False,
    sqlite3.SQLITE_NOMEM: False,
    sqlite3.SQLITE_IOERR: True,
    sqlite3.SQLITE_READONLY: True,
    sqlite3.SQLITE_CANTOPEN: True,
    sqlite3.SQLITE_PERM: True,
    sqlite3.SQLITE_CORRUPT: True,
    sqlite3.SQLITE_NOTADB: True,
}
"""
Results that are the disk's doing, and whether the file must be opened again before it can work.

All others are mistakes of this package.
"""


class Database:
    """
    A connection that is made when it is needed and made again when the disk broke it; for one thread at a time.

    Args:
        migrations: What leads from each version of the file to the next.

    Attributes:
        trouble: What the disk did that it should not have, until :meth:`works`; None: nothing.
    """

    RETRY_SECONDS = 1.0
    """How long a file that cannot be opened is left alone."""

    def __init__(self, path: Path, migrations: Sequence[Sequence[str]], *, clock: Callable[[], float]) -> None:
        self._path = path
        self._migrations = migrations
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._is_stale = False
        self._retry_at = -1.0
        self.trouble: str | None = None

    def connection(self) -> sqlite3.Connection:
        """
        Return the open connection.

        Raises:
            StoreUnavailable: The file cannot be opened, or was tried a moment ago.
            CannotStart: It was written by a later version of this package.
        """
        if self._is_stale and self._clock() >= self._retry_at:
            self.close()
        if self._connection is None:
            if self._clock() < self._retry_at:
                raise StoreUnavailable(f"the record store does not work: {self.trouble}")
            with self._watched():
                self._open()
        if self._connection is None:
            raise StoreUnavailable(f"the record store does not work: {self.trouble}")
        return self._connection

    def works(self) -> None:
        """Note that all has been written that had to be."""
        if self.trouble is not None:
            log.warning("records can be kept again in %s", self._path)
            self.trouble = None

    def close(self) -> None:
        """Let go of the file; once more does nothing."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._is_stale = False

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Do all that is in the block, or nothing."""
        connection = self.connection()
        with self._watched():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def rows(self, query: str, *values: object) -> Rows:
        """Return all rows of a query."""
        connection = self.connection()
        with self._watched():
            return connection.execute(query, values).fetchall()

    def size_bytes(self) -> int:
        """Return what the content takes on disk."""
        query = """
            SELECT (page_count - freelist_count) * page_size
            FROM pragma_page_count, pragma_freelist_count, pragma_page_size
            """
        return int(self.rows(query)[0][0])

    def give_back_space(self) -> None:
        """Make the file as small as its content."""
        connection = self.connection()
        with self._watched():
            # A cursor would take one step only, and a step gives one page back.
            connection.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its other files the same mode.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        except OSError:
            self._open_to_read()
            raise
        self._connection = _connected(str(self._path))
        try:
            # The first cannot be set once there is a page; the second must come before the log is used.
            for pragma in (
                "auto_vacuum=INCREMENTAL",
                "locking_mode=EXCLUSIVE",
                "journal_mode=WAL",
                "synchronous=NORMAL",
                f"journal_size_limit={LOG_LIMIT_BYTES}",
            ):
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
            self._migrate(self._connection)
        except BaseException:
            self.close()
            raise

    def _open_to_read(self) -> None:
        """Let a read-only disk give what is there; what a killed supervisor left in the log is not seen."""
        with contextlib.suppress(sqlite3.Error):
            self._connection = _connected(f"{self._path.absolute().as_uri()}?immutable=1")

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(self._migrations):
            raise CannotStart(
                "the records in the data directory were written by a later version of agent-runtime; "
                "run that one, or name another directory"
            )
        for number, statements in enumerate(self._migrations[version:], version + 1):
            connection.execute("BEGIN IMMEDIATE")
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={number}")
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Translate what the disk does to SQLite, and remember it."""
        try:
            yield
        except OSError as error:
            self._failed(error.strerror or "the file cannot be opened", stale=True)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF
            if code not in NEEDS_REOPENING:
                raise
            self._failed(str(error), stale=NEEDS_REOPENING[code])

    def _failed(self, reason: str, *, stale: bool) -> NoReturn:
        if self.trouble is None:
            log.error("records cannot be kept in %s: %s", self._path, reason)
        self.trouble = reason
        self._is_stale = stale
        self._retry_at = self._clock() + self.RETRY_SECONDS
        raise StoreUnavailable(f"the record store does not work: {reason}") from None


def _connected(address: str) -> sqlite3.Connection:
    return sqlite3.connect(
        address, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=address.startswith("file:")
    )
