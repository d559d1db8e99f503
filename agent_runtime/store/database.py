"""
One SQLite file: open and migrate it, and recover from disk errors.

The process that has the file open locks it, and the index of the write-ahead log stays in memory: there is no shared
memory file that a full disk or a network file system could break.

A damaged or foreign file is set aside under another name and never deleted; its readable rows go into a new file. Each
start, and each first write into an empty log, increments a number in the file's table ``marks`` and in a note, a small
file beside it. A number in the table lower than the note's shows that the file was emptied or replaced, or that its log
was lost.

Source: https://www.sqlite.org/wal.html#use_of_wal_without_shared_memory
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeAlias

import msgspec

from agent_runtime.errors import StoreUnavailable
from agent_runtime.files import read_file, replace_file
from agent_runtime.store.tables import MIGRATIONS, PROBES, salvage

log = logging.getLogger(__name__)

Rows: TypeAlias = list[tuple[Any, ...]]

BUSY_SECONDS = 0.2
"""How long to wait for a file that another process has locked."""

LOG_LIMIT_BYTES = 16 << 20
"""The size to which SQLite truncates the write-ahead log."""

CHECKED_BYTES = 64 << 20
"""A file up to this size is checked when it is opened; damage in a larger one is found when it is read."""

DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
STILL_READABLE = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}
)
"""Errors of opening a file for writing; the file may still be readable."""

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
Errors that the disk causes, and whether the file must be reopened afterwards.

All other errors are bugs of this package.
"""


Mark: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Damaged(Exception):
    """The file is not one of our databases, or its content is corrupt."""


class OfLaterVersion(Exception):
    """A later version of this package wrote the file; nothing in it is read or changed."""


class Database:
    """
    A connection that is opened on demand and reopened after a disk error; for one thread at a time.

    Attributes:
        trouble: The text of the last disk error; None if there was none since :meth:`clear_trouble`.
        damage: One sentence for each loss that was found and each file that was set aside.
    """

    RETRY_SECONDS = 1.0
    """How long to wait before a file that could not be opened is tried again."""

    REPLACE_RETRY_SECONDS = 10.0
    """How long to wait before another attempt to set a damaged file aside."""

    IDLE_SECONDS = 1.0
    """How long after the last write the log is checkpointed into the file."""

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self._path = path
        self._log_path = _beside(path, "-wal")
        self._note_path = path.with_suffix(".note")
        self._clock = clock
        self._is_damaged = False
        self._written_at: float | None = None
        self.damage: list[str] = []
        self._connection: sqlite3.Connection | None = None
        self._is_stale = False
        self._retry_at = -1.0
        self.trouble: str | None = None

    def connection(self) -> sqlite3.Connection:
        """
        Return the open connection.

        Raises:
            StoreUnavailable: The file cannot be opened, or could not be opened a moment ago and is not tried again yet.
        """
        if self._is_stale and self._clock() >= self._retry_at:
            self.close()
        if self._connection is None and self._clock() >= self._retry_at:
            with contextlib.suppress(StoreUnavailable), self._raising_unavailable():
                self._open()
        if self._connection is None:
            raise StoreUnavailable(f"the record store does not work: {self.trouble}")
        return self._connection

    def clear_trouble(self) -> None:
        """Clear :attr:`trouble`; called when all changes that were waiting have been written."""
        if self.trouble is not None:
            log.warning("records can be written again in %s", self._path)
            self.trouble = None

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._is_stale = False

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction; a disk error rolls it back and raises StoreUnavailable."""
        connection = self.connection()
        with self._raising_unavailable():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                mark = self._mark(connection) if self._written_at is None or self.trouble is not None else None
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            self._restore_if_deleted(connection)
        self._written_at = self._clock()
        if mark is not None:
            self._write_note(mark)

    def rows(self, query: str, *values: object) -> Rows:
        """Return all rows of a query."""
        connection = self.connection()
        with self._raising_unavailable():
            return connection.execute(query, values).fetchall()

    def size_bytes(self) -> int:
        """Return the bytes that the content takes on disk, free pages excluded."""
        query = """
            SELECT (page_count - freelist_count) * page_size
            FROM pragma_page_count, pragma_freelist_count, pragma_page_size
            """
        return int(self.rows(query)[0][0])

    def shrink(self) -> None:
        """Make the file as small as its content."""
        connection = self.connection()
        with self._raising_unavailable():
            # execute() would take one step only, and one step of this pragma frees one page.
            connection.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")

    @property
    def awaits_checkpoint(self) -> bool:
        """Whether the log holds writes that :meth:`checkpoint_when_idle` has not checkpointed yet."""
        return self._written_at is not None

    def checkpoint_when_idle(self) -> None:
        """Checkpoint the log after a while without writes, so that losing the log loses nothing."""
        if self._written_at is not None and self._clock() - self._written_at >= self.IDLE_SECONDS:
            self.rows("PRAGMA wal_checkpoint(TRUNCATE)")
            self._written_at = None

    def _restore_if_deleted(self, connection: sqlite3.Connection) -> None:
        """Write a new file if the name is gone: the connection has all content until it is closed."""
        if os.path.lexists(self._path):
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        copy = _beside(self._path, ".copy")
        copy.unlink(missing_ok=True)
        os.close(os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        connection.execute("VACUUM INTO ?", (str(copy),))
        copy.rename(self._path)
        self._is_stale = True
        self._report_damage(f"{self._path.name} was deleted while it was in use: its content was written again")

    def _open(self) -> None:
        try:
            if self._is_damaged:
                raise Damaged(self.trouble)
            self._open_to_write()
        except (OSError, sqlite3.Error, Damaged) as error:
            if isinstance(error, Damaged) or _code(error) in DAMAGE:
                self._retry_at = self._clock() + self.REPLACE_RETRY_SECONDS  # replacing takes long and needs space
                self._replace(str(error))
                self._open_to_write()
                self._retry_at = -1.0
                return
            if isinstance(error, OSError) or _code(error) in STILL_READABLE:
                self._open_to_read()
            raise

    def _open_to_write(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = _beside(self._path, ".new")
        if fresh.exists() and not os.path.lexists(self._path):
            fresh.replace(self._path)  # the supervisor was killed while it set a damaged file aside
        with contextlib.suppress(FileNotFoundError):
            mode = self._path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                raise Damaged("it is not a file")
        for suffix in ("-wal", "-journal"):  # SQLite waits for ever for the writer of a FIFO
            self._set_aside_unless_file(_beside(self._path, suffix))
        # SQLite gives the log the same mode.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        size_bytes = self._path.stat().st_size
        if not size_bytes and self._log_path.exists() and self._log_path.stat().st_size:
            raise Damaged("it is empty, and its log is not")  # SQLite would delete the log
        connection = _connected(str(self._path))
        try:
            # This must precede any use of the log, or SQLite creates a shared memory file for an existing log.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
            self._check(connection, size_bytes)
            _prepare(connection, is_new=not size_bytes)
            self._mark_start(connection)
        except BaseException:
            connection.close()
            raise
        self._connection, self._is_damaged = connection, False

    def _open_to_read(self) -> None:
        """Open the file and its log read-only; no other process writes them, since the data directory is locked."""
        if self._path.is_symlink():
            return
        with contextlib.suppress(sqlite3.Error):
            connection = _connected_to_read(self._path)
            try:
                _probe(connection)
            except sqlite3.Error:
                connection.close()
                raise
            self._connection = connection

    def _check(self, connection: sqlite3.Connection, size_bytes: int) -> None:
        """
        Check that the file is one of ours and sound.

        Raises:
            Damaged: The file is foreign or corrupt.
            OfLaterVersion: Its version is higher than that of this package.
        """
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
        if not version and not tables:
            return
        if version > len(MIGRATIONS) and "marks" in tables:
            raise OfLaterVersion(
                f"a later version of agent-runtime wrote {self._path.name}: its format is {version}, and this one "
                f"knows {len(MIGRATIONS)}; run that version, or name another data directory"
            )
        if version < 0 or (version >= len(MIGRATIONS) and "marks" not in tables):
            raise Damaged("it holds something else")
        try:
            _probe(connection)
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_ERROR:
                raise
            raise Damaged("it holds something else") from None
        if size_bytes <= CHECKED_BYTES:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise Damaged(found)

    def _mark_start(self, connection: sqlite3.Connection) -> None:
        """Increment the mark for this start; report damage if it was lower than the note."""
        if _read_mark(connection) < self._read_note():
            self._report_damage(
                f"{self._path.name} lacks what was written: it or its log was emptied, deleted, damaged or replaced"
            )
        try:
            self._write_note(self._mark(connection))
        except sqlite3.Error as error:
            if _code(error) != sqlite3.SQLITE_FULL:
                raise
            self._set_trouble(str(error))  # the file can still be read

    def _mark(self, connection: sqlite3.Connection) -> int:
        mark = max(_read_mark(connection), self._read_note()) + 1
        connection.execute("INSERT OR REPLACE INTO marks VALUES (1, ?, ?)", (mark, time.time()))
        return mark

    def _replace(self, reason: str) -> None:
        """Set the file and its log aside, and put a new file with the readable rows in its place."""
        aside = _unused_name(self._path)
        fresh = _beside(self._path, ".new")
        for left in (fresh, _beside(fresh, "-wal")):
            left.unlink(missing_ok=True)
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            saved = self._salvage_into(fresh)
        except sqlite3.Error:
            fresh.unlink()  # the unfinished file would take the space that retention frees
            raise
        with contextlib.suppress(FileNotFoundError):
            self._log_path.replace(_beside(aside, "-wal"))
        self._path.replace(aside)
        fresh.replace(self._path)
        self._is_damaged = False
        self._report_damage(
            f"{self._path.name} was damaged ({reason}): set aside as {aside.name}, records saved from it: {saved}"
        )

    def _salvage_into(self, fresh: Path) -> int:
        with contextlib.closing(_connected(str(fresh))) as target:
            _prepare(target, is_new=True)
            saved = 0
            with contextlib.ExitStack() as held:
                source = None
                with contextlib.suppress(sqlite3.Error):
                    source = held.enter_context(contextlib.closing(_connected_to_read(self._path)))
                    source.execute("PRAGMA writable_schema=ON")  # else a truncated file gives no rows
                if source is not None:
                    saved = salvage(source, target)
            self._mark(target)
        return saved

    def _set_aside_unless_file(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(path.lstat().st_mode):
                aside = _unused_name(path)
                path.replace(aside)
                self._report_damage(f"{path.name} was not a file: set aside as {aside.name}")

    def _read_note(self) -> int:
        """Return the number in the small file beside the database; 0 if there is no such file."""
        try:
            return msgspec.json.decode(read_file(self._note_path), type=Mark)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return 0

    def _write_note(self, mark: int) -> None:
        with contextlib.suppress(OSError):  # without a note, a lost file is not noticed
            replace_file(self._note_path, b"%d" % mark)

    def _report_damage(self, damage: str) -> None:
        log.error("%s", damage)
        self.damage.append(damage)

    @contextlib.contextmanager
    def _raising_unavailable(self) -> Iterator[None]:
        """Turn disk errors of the block into StoreUnavailable, and note them in :attr:`trouble`."""
        try:
            yield
        except (OSError, Damaged, OfLaterVersion) as error:
            self._failed(getattr(error, "strerror", None) or str(error), stale=True)
        except sqlite3.Error as error:
            code = _code(error)
            if code not in NEEDS_REOPENING:
                raise
            self._is_damaged |= code in DAMAGE
            self._failed(str(error), stale=NEEDS_REOPENING[code])

    def _failed(self, reason: str, *, stale: bool) -> NoReturn:
        self._set_trouble(reason)
        self._is_stale |= stale
        if self._clock() >= self._retry_at:  # else every request meanwhile would postpone the next try
            self._retry_at = self._clock() + self.RETRY_SECONDS
        raise StoreUnavailable(f"the record store does not work: {reason}") from None

    def _set_trouble(self, reason: str) -> None:
        if self.trouble is None:
            log.error("records cannot be written in %s: %s", self._path, reason)
        self.trouble = reason


def _connected(address: str) -> sqlite3.Connection:
    return sqlite3.connect(
        address, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=address.startswith("file:")
    )


def _connected_to_read(path: Path) -> sqlite3.Connection:
    """Open a file without writing anything and without a lock, which a read-only disk does not grant."""
    log = _beside(path, "-wal")
    # Without a log SQLite would have to create one.
    mode = "mode=ro&vfs=unix-none" if log.exists() and log.stat().st_size else "immutable=1"
    connection = _connected(f"{path.absolute().as_uri()}?{mode}")
    connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
    return connection


def _probe(connection: sqlite3.Connection) -> None:
    for probe in PROBES:
        connection.execute(probe).fetchall()


def _prepare(connection: sqlite3.Connection, *, is_new: bool) -> None:
    # Setting auto_vacuum is a write: left out for an old file, which has it and must also open on a full disk.
    pragmas = ["locking_mode=EXCLUSIVE", *(["auto_vacuum=INCREMENTAL"] if is_new else [])]
    # SQLite would hold 2 MB of pages, which the kernel holds, too: a list of 200 records takes as long with 256 KiB.
    pragmas += ["journal_mode=WAL", "synchronous=NORMAL", f"journal_size_limit={LOG_LIMIT_BYTES}", "cache_size=-256"]
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}").fetchall()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={number}")
        connection.execute("COMMIT")


def _read_mark(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(count), 0) FROM marks").fetchone()[0])


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _unused_name(path: Path) -> Path:
    """Return an unused path beside *path*, to rename a damaged file to."""
    aside = _beside(path, time.strftime(".damaged-%Y%m%dT%H%M%SZ", time.gmtime()))
    while os.path.lexists(aside):
        aside = _beside(aside, "x")
    return aside


def _code(error: BaseException) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF
