"""
The records of all executions and the answers that their callers got.

Each change of a record is one transaction: a killed supervisor leaves the old record or the new one.

While the disk is full, read-only or broken, records and answers stay in memory, within :data:`UNSAVED_RECORDS` and
:data:`UNSAVED_ANSWER_BYTES`. They can be read, are written as soon as a write succeeds, and are lost if the supervisor
restarts before that.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import Self

import msgspec

from agent_runtime.errors import InvalidRequest, StoreUnavailable
from agent_runtime.model.records import Answer, ExecutionRecord, read_record
from agent_runtime.store.database import Database, Rows
from agent_runtime.store.tables import UNREADABLE, put_answer, put_record

log = logging.getLogger(__name__)

UNSAVED_ANSWER_BYTES = 64 << 20
"""Bytes of unwritten answers held in memory; the oldest are dropped first."""

UNSAVED_RECORDS = 10_000
"""Number of unwritten records held in memory; the oldest are dropped first."""

CURSOR_PATTERN = r"[0-9]{1,12}(\.[0-9]{1,20})?~[A-Za-z0-9_-][A-Za-z0-9._:-]{0,127}"
"""``next_cursor`` of a page: the creation time (epoch seconds) and the id of its last record."""

_ENCODE = msgspec.json.Encoder().encode


class RecordStore:
    """
    The records on disk; every method may be called from any thread.

    One connection under one lock: a save takes about 0.1 ms, and there is one supervisor.

    The file is opened at once, and created or migrated. After a disk error the constructor does not raise: records are
    held in memory, and opening is tried again. The same holds for a file that a later version of this package wrote;
    that file is left unchanged.

    Attributes:
        path: The SQLite file.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._database = Database(path, clock=clock)
        self._unsaved_records: dict[str, bytes] = {}
        self._unsaved_answers: dict[str, tuple[Answer, float]] = {}
        with contextlib.suppress(StoreUnavailable):
            self._database.connection()

    def __repr__(self) -> str:
        return f"<RecordStore {self.path} {self.trouble or 'available'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    @property
    def trouble(self) -> str | None:
        """The last disk error; None if everything saved is on disk."""
        return self._database.trouble

    @property
    def damage(self) -> list[str]:
        """One sentence for each loss or damaged file found since the start."""
        return self._database.damage

    @property
    def set_aside(self) -> list[str]:
        """Names of damaged files that were set aside, by this supervisor or an earlier one."""
        found = (path.name for path in self.path.parent.glob(f"{self.path.name}.damaged-*"))
        return sorted(name for name in found if not name.endswith("-wal"))

    @property
    def awaits_upkeep(self) -> bool:
        """Whether :meth:`upkeep` has something to do now or soon; takes no lock."""
        return self.trouble is not None or self._database.awaits_checkpoint

    def upkeep(self) -> None:
        """
        Retry pending writes; if there are none, checkpoint the log. Called periodically.

        Raises:
            StoreUnavailable: The disk still cannot be written.
        """
        with self._lock:
            if self.trouble is not None:
                self.write_unsaved()
            else:
                self._database.checkpoint_when_idle()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            self._database.close()

    def save(self, record: ExecutionRecord) -> None:
        """
        Write a record, new or changed.

        Raises:
            StoreUnavailable: The record is held in memory only.
        """
        with self._lock:
            self._unsaved_records.pop(record.execution_id, None)
            self._unsaved_records[record.execution_id] = _ENCODE(record)
            self.write_unsaved()

    def conclude(self, record: ExecutionRecord, answer: Answer) -> None:
        """
        Write a final record and its answer as one change: after a crash either both are there or neither.

        The answer replaces an earlier one.

        Raises:
            StoreUnavailable: Both are held in memory only.
        """
        execution_id = record.execution_id
        with self._lock:
            self._unsaved_answers.pop(execution_id, None)
            self._unsaved_answers[execution_id] = answer, record.ended_at or time.time()
            self.save(record)

    def write_unsaved(self) -> None:
        """
        Write all records and answers that are held in memory; :meth:`save` and :meth:`conclude` do this, too.

        Raises:
            StoreUnavailable: The disk still cannot be written.
        """
        with self._lock:
            try:
                with self._database.transaction() as connection:
                    for encoded in self._unsaved_records.values():
                        put_record(connection, encoded)
                    for name, (answer, retained_at) in self._unsaved_answers.items():
                        put_answer(connection, name, answer.status_code, answer.body, retained_at)
            except StoreUnavailable:
                self._forget_oldest_unsaved()
                raise
            self._unsaved_records.clear()
            self._unsaved_answers.clear()
            self._database.clear_trouble()

    def load(self, execution_id: str) -> ExecutionRecord | None:
        """
        Return a record, or None if there is none.

        Raises:
            StoreUnavailable: The record cannot be read.
        """
        with self._lock:
            if (encoded := self._unsaved_records.get(execution_id)) is not None:
                return _unsaved(encoded)
            rows = self._rows("SELECT record FROM executions WHERE execution_id = ?", execution_id)
        if not rows:
            return None
        try:
            return read_record(rows[0][0])
        except UNREADABLE:
            raise StoreUnavailable("the record of this execution is there, and cannot be read") from None

    def answer(self, execution_id: str) -> Answer | None:
        """
        Return the stored answer of an execution, or None; headers are not stored.

        Raises:
            StoreUnavailable: The disk cannot be read.
        """
        with self._lock:
            if unsaved := self._unsaved_answers.get(execution_id):
                return unsaved[0]
            for row in self._rows("SELECT status_code, answer FROM answers WHERE execution_id = ?", execution_id):
                status_code, body = row
                if not (isinstance(status_code, int) and isinstance(body, bytes)):
                    raise StoreUnavailable("the answer of this execution is there, and cannot be read")
                return Answer(status_code, body)
        return None

    def answer_bytes(self, execution_id: str) -> int | None:
        """
        Return the length in bytes of the stored answer of an execution, or None.

        Raises:
            StoreUnavailable: The disk cannot be read.
        """
        with self._lock:
            if unsaved := self._unsaved_answers.get(execution_id):
                return len(unsaved[0].body)
            rows = self._rows("SELECT length(answer) FROM answers WHERE execution_id = ?", execution_id)
        return int(rows[0][0] or 0) if rows else None

    def unfinished(self) -> list[ExecutionRecord]:
        """
        Return the records that are not finished, oldest first; at the start, those that an earlier supervisor left.

        Raises:
            StoreUnavailable: The disk cannot be read.
        """
        rows = self._rows("SELECT record FROM executions WHERE state != 'finished' ORDER BY created_at, execution_id")
        return [record for (encoded,) in rows if (record := _decoded(encoded))]

    def finished_ids(self, since: float = 0.0) -> Rows:
        """
        Return ids and end times of executions that ended at or after *since*, earliest first; both in epoch seconds.

        Raises:
            StoreUnavailable: The disk cannot be read.
        """
        query = """
            SELECT execution_id, CAST(coalesce(ended_at, created_at) AS REAL) FROM executions
            WHERE state = 'finished' AND coalesce(ended_at, created_at) >= ? ORDER BY 2
            """
        return self._rows(query, since)

    def ended_since(self, since: float) -> Iterator[ExecutionRecord]:
        """
        Yield the records of executions that ended at or after *since* (epoch seconds) or have not ended.

        Records that are not written yet are all yielded, and those that cannot be read are left out.

        Raises:
            StoreUnavailable: The disk cannot be read.
        """
        with self._lock:
            held = dict(self._unsaved_records)
        yield from map(read_record, held.values())
        columns, after = "rowid, execution_id, record", -1
        where = "rowid > ? AND (ended_at IS NULL OR ended_at >= ?)"
        query = f"SELECT {columns} FROM executions WHERE {where} ORDER BY rowid LIMIT 200"  # noqa: S608 - constants
        while page := self._rows(query, after, since):
            after = page[-1][0]
            yield from filter(None, (_decoded(encoded) for _, name, encoded in page if name not in held))

    def ids(self) -> set[str]:
        """
        Return the ids of all records, including unreadable ones.

        Raises:
            StoreUnavailable: The disk cannot be read.
        """
        with self._lock:
            return {execution_id for (execution_id,) in self._rows("SELECT execution_id FROM executions")}.union(
                self._unsaved_records
            )

    def of_session(self, session_id: str) -> ExecutionRecord | None:
        """
        Return the oldest record whose session is *session_id* and is not known to be unresumable; None: there is none.

        Raises:
            StoreUnavailable: The disk cannot be read.
        """
        with self._lock:
            held = [one for one in self._unsaved_records.values() if session_id.encode() in one]
            query = "SELECT record FROM executions WHERE session_id = ? ORDER BY created_at LIMIT 100"
            rows = self._rows(query, session_id)
        found = (record for encoded in (*(row[0] for row in rows), *held) if (record := _decoded(encoded)) is not None)
        return next((one for one in found if one.session_id == session_id and one.resumable is not False), None)

    def ids_in(self, cwd: str) -> set[str]:
        """
        Return the ids of executions whose directory is *cwd*, relative to the workspace, or lies below it.

        Raises:
            StoreUnavailable: The disk cannot be read.
        """
        query = "SELECT execution_id FROM executions WHERE cwd = ?1 OR cwd >= ?1 || '/' AND cwd < ?1 || '0'"
        with self._lock:
            held = {name for name, one in self._unsaved_records.items() if f'"{cwd}'.encode() in one}
            return held.union(name for (name,) in self._rows(query, cwd))

    def delete(self, execution_id: str) -> None:
        """
        Delete the record and the answer of an execution.

        Raises:
            StoreUnavailable: The disk cannot be written.
        """
        with self._lock:
            self._unsaved_records.pop(execution_id, None)
            self._unsaved_answers.pop(execution_id, None)
            with self._database.transaction() as connection:
                for table in ("executions", "answers", "labels"):
                    connection.execute(f"DELETE FROM {table} WHERE execution_id = ?", (execution_id,))  # noqa: S608

    def size_bytes(self, execution_id: str | None = None) -> int:
        """
        Return the bytes that all records and answers take on disk, or those of one execution.

        Raises:
            StoreUnavailable: The disk cannot be read.
        """
        if execution_id is None:
            with self._lock:
                return self._database.size_bytes()
        query = """
            SELECT coalesce((SELECT length(record) FROM executions WHERE execution_id = ?1), 0)
                 + coalesce((SELECT length(answer) FROM answers WHERE execution_id = ?1), 0)
            """
        return int(self._rows(query, execution_id)[0][0])

    def shrink(self) -> None:
        """
        Shrink the file to its content.

        Raises:
            StoreUnavailable: The disk cannot be written.
        """
        with self._lock:
            self._database.shrink()

    def _forget_oldest_unsaved(self) -> None:
        while len(self._unsaved_records) > UNSAVED_RECORDS:
            del self._unsaved_records[next(iter(self._unsaved_records))]
        held = sum(len(answer.body) for answer, _ in self._unsaved_answers.values())
        while held > UNSAVED_ANSWER_BYTES:
            held -= len(self._unsaved_answers.pop(next(iter(self._unsaved_answers)))[0].body)

    def _rows(self, query: str, *values: object) -> Rows:
        with self._lock:
            return self._database.rows(query, *values)

    # Defined last: the name hides the type ``list`` in everything after it.
    def list(
        self,
        state: str | None = None,
        outcome: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
        *,
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[Iterator[ExecutionRecord], str | None]:
        """
        Return records, newest first, and the cursor of the next page; None on the last page.

        Each record is decoded when it is taken, so that a long page is never decoded as a whole.

        Args:
            labels: Only executions that have all of these labels are returned.

        Raises:
            InvalidRequest: *cursor* was not returned by this method.
            StoreUnavailable: The disk cannot be read.
        """
        before = _parsed_cursor(cursor)
        where = "(created_at, execution_id) < (?, ?)"
        values: list[object] = [*before]
        for column, wanted in (("state", state), ("outcome", outcome)):
            if wanted is not None:
                where += f" AND {column} = ?"
                values.append(wanted)
        for label in labels.items():
            where += (
                " AND EXISTS (SELECT 1 FROM labels WHERE labels.execution_id = executions.execution_id"
                " AND name = ? AND value = ?)"
            )
            values += label
        # S608: built from the constants above; values are passed separately.
        query = f"SELECT created_at, execution_id, record FROM executions WHERE {where}"  # noqa: S608 - our own text; values are bound
        with self._lock:
            unsaved = dict(self._unsaved_records)
            try:
                rows = self._rows(
                    f"{query} ORDER BY created_at DESC, execution_id DESC LIMIT ?", *values, limit + 1 + len(unsaved)
                )
            except sqlite3.OperationalError:  # a file of an earlier version, on a disk that allows no migration
                raise StoreUnavailable("records cannot be searched by label while they cannot be written") from None
        found = [row for row in rows if row[1] not in unsaved]
        for encoded in unsaved.values():
            record = read_record(encoded)
            if (
                (age := (record.created_at, record.execution_id)) < before
                and (state is None or record.state == state)
                and (outcome is None or record.outcome == outcome)
                and labels.items() <= record.labels.items()
            ):
                found.append((*age, encoded))
        found.sort(reverse=True)
        page = found[:limit]
        shown = (_unsaved(encoded) if name in unsaved else _decoded(encoded) for _, name, encoded in page)
        return filter(None, shown), f"{page[-1][0]!r}~{page[-1][1]}" if len(found) > limit else None


def _unsaved(encoded: bytes) -> ExecutionRecord:
    """Decode a record that is not written yet; ``retained`` is False, so that callers see that."""
    record = read_record(encoded)
    record.metadata.retained = False
    return record


def _decoded(encoded: bytes) -> ExecutionRecord | None:
    try:
        return read_record(encoded)
    except UNREADABLE as error:
        log.error("a record cannot be read: %s", error)
        return None


def _parsed_cursor(cursor: str | None) -> tuple[float, str]:
    if cursor is None:
        return inf, ""
    if re.fullmatch(CURSOR_PATTERN, cursor) is None:
        raise InvalidRequest("cursor: must be the next_cursor of an earlier answer")
    created_at, _, execution_id = cursor.partition("~")
    return float(created_at), execution_id
