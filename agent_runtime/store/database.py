"""
One SQLite file: opened, migrated, and watched for what the disk does to it.

The file is locked by the process that has it open, and the index of its write-ahead log stays in memory: there is no
shared memory file that a full disk or a network file system could break.

A file that is damaged, or no database of ours, is set aside under another name and never deleted; what can be read of
it goes into a new one. Each start, and each first write into an empty log, is counted in the file and in a note beside
it, so that a file that was emptied or replaced, or whose log is gone, is not taken for all that was written.

Source: https://www.sqlite.org/wal.html#use_of_wal_without_shared_memory
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Sequence  # noqa: TC003 - msgspec reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import msgspec

from agent_runtime.errors import CannotStart, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import NoReturn

log = logging.getLogger(__name__)

Rows: TypeAlias = list[tuple[Any, ...]]

BUSY_SECONDS = 0.2
"""How long a file that another process has locked is waited for."""

LOG_LIMIT_BYTES = 16 << 20
"""What the write-ahead log is cut back to."""

CHECKED_BYTES = 64 << 20
"""A file of at most this size is looked through when it is opened; damage in a longer one is found when it is met."""

DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
STILL_READABLE = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}
)
"""Results of opening a file for writing that say nothing about reading it."""

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


Mark: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Damaged(Exception):
    """The file is no database of ours, or what is in it cannot be right."""


class Schema(msgspec.Struct, frozen=True):
    """
    What a file holds.

    Attributes:
        migrations: What leads from each version of the file to the next. The table ``marks`` is in one of them.
        probes: Queries that work in every version.
        salvage: Copies what can be read of a damaged file into a new one, and returns how much that was.
    """

    migrations: Sequence[Sequence[str]]
    probes: Sequence[str]
    salvage: Callable[[sqlite3.Connection, sqlite3.Connection], int]


class Database:
    """
    A connection that is made when it is needed and made again when the disk broke it; for one thread at a time.

    Attributes:
        trouble: What the disk did that it should not have, until :meth:`works`; None: nothing.
        damage: What was found to be lost or set aside, a sentence each.
    """

    RETRY_SECONDS = 1.0
    """How long a file that cannot be opened is left alone."""

    REPLACE_RETRY_SECONDS = 10.0
    """How long a damaged file is left alone that cannot be set aside."""

    IDLE_SECONDS = 1.0
    """How long nothing must have been written before the log goes into the file."""

    def __init__(self, path: Path, schema: Schema, *, clock: Callable[[], float]) -> None:
        self._path = path
        self._log_path = _beside(path, "-wal")
        self._note_path = path.with_suffix(".note")
        self._schema = schema
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
            StoreUnavailable: The file cannot be opened, or was tried a moment ago.
            CannotStart: It was written by a later version of this package.
        """
        if self._is_stale and self._clock() >= self._retry_at:
            self.close()
        if self._connection is None:
            if self._clock() < self._retry_at:
                raise StoreUnavailable(f"the record store does not work: {self.trouble}")
            try:
                with self._watched():
                    self._open()
            except StoreUnavailable:
                if self._connection is None:
                    raise
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
                mark = self._mark(connection) if self._written_at is None or self.trouble is not None else None
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        self._written_at = self._clock()
        if mark is not None:
            self._note(mark)

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

    def checkpoint_when_idle(self) -> None:
        """Write the log into the file when nothing has been written for a while: a log that gets lost costs nothing."""
        if self._written_at is not None and self._clock() - self._written_at >= self.IDLE_SECONDS:
            self.rows("PRAGMA wal_checkpoint(TRUNCATE)")
            self._written_at = None

    def _open(self) -> None:
        try:
            if self._is_damaged:
                raise Damaged(self.trouble)
            self._open_to_write()
        except (OSError, sqlite3.Error, Damaged) as error:
            if isinstance(error, Damaged) or _code(error) in DAMAGE:
                self._retry_at = self._clock() + self.REPLACE_RETRY_SECONDS  # it is much work, and needs room
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
            fresh.replace(self._path)  # killed while a damaged one was being set aside
        with contextlib.suppress(FileNotFoundError):
            mode = self._path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                raise Damaged("it is no file")
        # SQLite gives its other files the same mode.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        size_bytes = self._path.stat().st_size
        if not size_bytes and self._log_path.exists() and self._log_path.stat().st_size:
            raise Damaged("it is empty, and its log is not")  # SQLite would delete that
        connection = _connected(str(self._path))
        try:
            # Before the log is used, or one that is there already gets a shared memory file.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
            self._check(connection, size_bytes)
            _prepare(connection, self._schema.migrations, is_new=not size_bytes)
            self._mark_start(connection)
        except BaseException:
            connection.close()
            raise
        self._connection, self._is_damaged = connection, False

    def _open_to_read(self) -> None:
        """Open a file that cannot be written, with its log; no other process has it: the directory is locked."""
        if self._path.is_symlink():
            return
        with contextlib.suppress(sqlite3.Error):
            connection = _connected_to_read(self._path)
            try:
                for probe in self._schema.probes:
                    connection.execute(probe).fetchall()
            except sqlite3.Error:
                connection.close()
                raise
            self._connection = connection

    def _check(self, connection: sqlite3.Connection, size_bytes: int) -> None:
        """
        Find out whether the file is one of ours, and sound.

        Raises:
            Damaged: It is not.
            CannotStart: It was written by a later version.
        """
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
        if not version and not tables:
            return
        if version > len(self._schema.migrations) and "marks" in tables:
            raise CannotStart(
                "the records in the data directory were written by a later version of agent-runtime; "
                "run that one, or name another directory"
            )
        if version < 0 or (version >= len(self._schema.migrations) and "marks" not in tables):
            raise Damaged("it holds something else")
        try:
            for probe in self._schema.probes:
                connection.execute(probe).fetchall()
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_ERROR:
                raise
            raise Damaged("it holds something else") from None
        if size_bytes <= CHECKED_BYTES:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise Damaged(found)

    def _mark_start(self, connection: sqlite3.Connection) -> None:
        """Count this start, and find out whether all is there that was counted before."""
        if _marks(connection) < self._noted():
            self._tell(
                f"{self._path.name} lacks what was written: it or its log was emptied, deleted, damaged or replaced"
            )
        try:
            self._note(self._mark(connection))
        except sqlite3.Error as error:
            if _code(error) != sqlite3.SQLITE_FULL:
                raise
            self._remember(str(error))  # it can still be read

    def _mark(self, connection: sqlite3.Connection) -> int:
        mark = max(_marks(connection), self._noted()) + 1
        connection.execute("INSERT OR REPLACE INTO marks VALUES (1, ?, ?)", (mark, time.time()))
        return mark

    def _replace(self, reason: str) -> None:
        """Set the file aside, with its log, and put a new one in its place that holds what could be read."""
        aside = _beside(self._path, time.strftime(".damaged-%Y%m%dT%H%M%SZ", time.gmtime()))
        while os.path.lexists(aside):
            aside = _beside(aside, "x")
        fresh = _beside(self._path, ".new")
        for left in (fresh, _beside(fresh, "-wal")):
            left.unlink(missing_ok=True)
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            saved = self._saved_into(fresh)
        except sqlite3.Error:
            fresh.unlink()  # on a full disk it is in the way of what frees some
            raise
        with contextlib.suppress(FileNotFoundError):
            self._log_path.replace(_beside(aside, "-wal"))
        self._path.replace(aside)
        fresh.replace(self._path)
        self._is_damaged = False
        self._tell(
            f"{self._path.name} was damaged ({reason}): set aside as {aside.name}, records saved from it: {saved}"
        )

    def _saved_into(self, fresh: Path) -> int:
        with contextlib.closing(_connected(str(fresh))) as target:
            _prepare(target, self._schema.migrations, is_new=True)
            saved = 0
            with contextlib.ExitStack() as held:
                source = None
                with contextlib.suppress(sqlite3.Error):
                    source = held.enter_context(contextlib.closing(_connected_to_read(self._path)))
                    source.execute("PRAGMA writable_schema=ON")  # or a file that was cut off gives nothing
                if source is not None:
                    saved = self._schema.salvage(source, target)
            self._mark(target)
        return saved

    def _noted(self) -> int:
        """Return the mark beside the file; 0: there is none, so nothing can be said."""
        try:
            return msgspec.json.decode(self._note_path.read_bytes(), type=Mark)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return 0

    def _note(self, mark: int) -> None:
        with contextlib.suppress(OSError):  # then less is noticed
            new = _beside(self._note_path, ".new")
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(b"%d" % mark)
            new.replace(self._note_path)

    def _tell(self, damage: str) -> None:
        log.error("%s", damage)
        self.damage.append(damage)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Translate what the disk does to SQLite, and remember it."""
        try:
            yield
        except (OSError, Damaged) as error:
            self._failed(getattr(error, "strerror", None) or str(error), stale=True)
        except sqlite3.Error as error:
            code = _code(error)
            if code not in NEEDS_REOPENING:
                raise
            self._is_damaged |= code in DAMAGE
            self._failed(str(error), stale=NEEDS_REOPENING[code])

    def _failed(self, reason: str, *, stale: bool) -> NoReturn:
        self._remember(reason)
        self._is_stale |= stale
        if self._clock() >= self._retry_at:  # else what is asked meanwhile would put off the next try for ever
            self._retry_at = self._clock() + self.RETRY_SECONDS
        raise StoreUnavailable(f"the record store does not work: {reason}") from None

    def _remember(self, reason: str) -> None:
        if self.trouble is None:
            log.error("records cannot be kept in %s: %s", self._path, reason)
        self.trouble = reason


def _connected(address: str) -> sqlite3.Connection:
    return sqlite3.connect(
        address, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=address.startswith("file:")
    )


def _connected_to_read(path: Path) -> sqlite3.Connection:
    """Open a file without a write to it or beside it, and without a lock, which a read-only disk does not give."""
    log = _beside(path, "-wal")
    # Where there is no log SQLite would have to make one.
    mode = "mode=ro&vfs=unix-none" if log.exists() and log.stat().st_size else "immutable=1"
    connection = _connected(f"{path.absolute().as_uri()}?{mode}")
    connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
    return connection


def _prepare(connection: sqlite3.Connection, migrations: Sequence[Sequence[str]], *, is_new: bool) -> None:
    # The second is a write, and known to a file that is not new: a full disk must not keep that from being opened.
    pragmas = ["locking_mode=EXCLUSIVE", *(["auto_vacuum=INCREMENTAL"] if is_new else [])]
    for pragma in (*pragmas, "journal_mode=WAL", "synchronous=NORMAL", f"journal_size_limit={LOG_LIMIT_BYTES}"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number, statements in enumerate(migrations[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={number}")
        connection.execute("COMMIT")


def _marks(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(count), 0) FROM marks").fetchone()[0])


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _code(error: BaseException) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF
