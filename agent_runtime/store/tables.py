"""The tables of the record file: migrations, writing rows, and saving rows from a damaged file."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import msgspec

from agent_runtime.model.records import read_record

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE executions (
            execution_id TEXT PRIMARY KEY,
            created_at REAL NOT NULL,
            ended_at REAL,
            state TEXT NOT NULL,
            outcome TEXT,
            record BLOB NOT NULL
        )
        """,
        "CREATE INDEX executions_by_age ON executions (created_at, execution_id)",
        "CREATE INDEX executions_by_state ON executions (state, created_at, execution_id)",
        "CREATE INDEX executions_by_outcome ON executions (outcome, created_at, execution_id)",
        """
        CREATE TABLE answers (
            execution_id TEXT PRIMARY KEY,
            status_code INTEGER NOT NULL,
            answer BLOB NOT NULL,
            retained_at REAL NOT NULL
        )
        """,
    ),
    (),  # no change, but 0.1.0, which cannot decode newer error classes, does not open a file of this version
    ("CREATE TABLE marks (one INTEGER PRIMARY KEY CHECK (one = 1), count INTEGER NOT NULL, at REAL NOT NULL)",),
    (
        """
        CREATE TABLE labels (
            execution_id TEXT, name TEXT, value TEXT NOT NULL, PRIMARY KEY (execution_id, name)
        ) WITHOUT ROWID
        """,
    ),
    (
        "ALTER TABLE executions ADD COLUMN session_id TEXT",
        "ALTER TABLE executions ADD COLUMN cwd TEXT",
        """
        UPDATE executions SET session_id = json_extract(CAST(record AS TEXT), '$.session_id')
        WHERE json_valid(CAST(record AS TEXT))
        """,
        "CREATE INDEX executions_by_session ON executions (session_id, created_at)",
        "CREATE INDEX executions_by_cwd ON executions (cwd)",
    ),
)
"""Statements that lead from each version of the file to the next; entries are only added, never changed."""

COLUMNS = {"executions": "execution_id, record", "answers": "execution_id, status_code, answer, retained_at"}
PROBES = (
    "SELECT execution_id, created_at, ended_at, state, outcome, record FROM executions LIMIT 1",
    "SELECT execution_id, status_code, answer, retained_at FROM answers LIMIT 1",
)

UNREADABLE = (msgspec.DecodeError, ValueError, TypeError, AttributeError, KeyError, RecursionError)
"""Exceptions of decoding bytes that are not a record or an answer."""


def salvage(damaged: sqlite3.Connection, fresh: sqlite3.Connection) -> int:
    """
    Copy every readable record and answer from one file to the other; return the number of records.

    A table is read from both ends up to the damage, and then by the ids that its index still holds.
    """
    damaged.text_factory = lambda data: data.decode(errors="replace")
    fresh.execute("BEGIN")
    for table, columns in COLUMNS.items():
        select = f"SELECT {columns} FROM {table}"  # noqa: S608 - constants
        known: set[object] = set()
        for order in ("rowid", "rowid DESC"):
            for row in _readable(damaged, f"{select} ORDER BY {order}"):
                if row[0] in known:
                    break  # the other direction has already read the rest
                known.add(row[0])
                _put(fresh, row)
        ids = f"SELECT execution_id FROM {table} ORDER BY execution_id"  # noqa: S608
        for query in (ids, f"{ids} DESC"):
            for (execution_id,) in _readable(damaged, query):
                if execution_id not in known:
                    known.add(execution_id)
                    for row in _readable(damaged, f"{select} WHERE execution_id = ?", execution_id):
                        _put(fresh, row)
    fresh.execute("COMMIT")
    return int(fresh.execute("SELECT count(*) FROM executions").fetchone()[0])


def _readable(connection: sqlite3.Connection, query: str, *values: object) -> Iterator[Any]:
    """Yield rows up to the first one that cannot be read."""
    with contextlib.suppress(sqlite3.DatabaseError):
        yield from connection.execute(query, values)


def _put(connection: sqlite3.Connection, row: tuple[Any, ...]) -> None:
    with contextlib.suppress(*UNREADABLE, sqlite3.IntegrityError):
        if len(row) == 2:
            put_record(connection, row[1])
        else:
            put_answer(connection, *row)


def put_record(connection: sqlite3.Connection, encoded: bytes) -> None:
    """Insert or replace a record, given as JSON, with its labels."""
    record = read_record(encoded)
    connection.execute(
        """
        INSERT INTO executions (execution_id, created_at, ended_at, state, outcome, session_id, cwd, record)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (execution_id) DO UPDATE SET created_at = excluded.created_at, ended_at = excluded.ended_at,
            state = excluded.state, outcome = excluded.outcome, session_id = excluded.session_id, cwd = excluded.cwd,
            record = excluded.record
        """,
        (
            *(record.execution_id, record.created_at, record.ended_at, record.state, record.outcome),
            *(record.session_id, record.cwd, encoded),
        ),
    )
    connection.execute("DELETE FROM labels WHERE execution_id = ?", (record.execution_id,))
    labels = ((record.execution_id, name, value) for name, value in record.labels.items())
    connection.executemany("INSERT INTO labels VALUES (?, ?, ?)", labels)


def put_answer(
    connection: sqlite3.Connection, execution_id: str, status_code: int, body: bytes, retained_at: float
) -> None:
    """Insert an answer, or replace the earlier one; *retained_at* is in epoch seconds."""
    connection.execute(
        "INSERT OR REPLACE INTO answers (execution_id, status_code, answer, retained_at) VALUES (?, ?, ?, ?)",
        (execution_id, status_code, body, retained_at),
    )
