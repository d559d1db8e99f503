"""Records survive whatever ends the supervisor, and a disk that fails costs nothing but what comes after a restart."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from agent_runtime.errors import ErrorClass, InvalidRequest, StoreUnavailable
from agent_runtime.model.records import (
    Answer,
    AttemptRecord,
    EvidenceRecord,
    ExecutionRecord,
    Metadata,
    TokenRecord,
    instant,
    record_json,
    rfc3339,
    to_json,
)
from agent_runtime.model.state import Outcome, Phase, StopReason
from agent_runtime.store import database as database_module
from agent_runtime.store import records as records_module
from agent_runtime.store import retention
from agent_runtime.store.database import Database
from agent_runtime.store.records import RecordStore
from agent_runtime.store.retention import prune
from agent_runtime.store.tables import MIGRATIONS, put_answer, put_record
from agent_runtime.store.transcripts import TranscriptStore
from tests.support.transcript_lines import append

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

CREATED_AT = 1_790_000_000.25


SESSION = "6c1c7ea8-3b6e-4a0c-8d38-1c2d3e4f5a6b"


def record(execution_id: str = "x", *, created_at: float = CREATED_AT, state: Phase = Phase.QUEUED) -> ExecutionRecord:
    return ExecutionRecord(execution_id=execution_id, created_at=created_at, state=state, request_digest="d" * 64)


def finished(execution_id: str = "x", *, ended_at: float = CREATED_AT + 60) -> ExecutionRecord:
    return ExecutionRecord(
        execution_id=execution_id,
        created_at=ended_at - 60,
        started_at=ended_at - 59,
        ended_at=ended_at,
        state=Phase.FINISHED,
        outcome=Outcome.FAILED,
        error_class=ErrorClass.AUTH,
        detail="the API refused the token",
        session_id=SESSION,
        request_digest="d" * 64,
        attempts=[
            AttemptRecord(
                pid=4711,
                tokens=[TokenRecord(generation=3, fingerprint="0123456789ab", delivered_at=ended_at - 59)],
                started_at=ended_at - 59,
                ended_at=ended_at,
                exit_code=1,
                stop_reason=StopReason.REFUSED,
                evidence=EvidenceRecord(rule="stderr-401", stream="stderr", line="[ERROR] …", seconds_to_signal=0.0004),
            )
        ],
        metadata=Metadata(token_generation=3, attempts=1, ignored_fields=["unknown"], session_id=SESSION),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "records.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[RecordStore]:
    with RecordStore(path) as store:
        yield store


def ids(found: tuple[Iterable[ExecutionRecord], str | None]) -> list[str]:
    return [record.execution_id for record in found[0]]


# -- the model


def test_a_record_shows_the_fields_of_the_contract_with_times_in_utc() -> None:
    fields = msgspec.json.decode(record_json(finished()))

    assert fields["created_at"] == "2026-09-21T14:13:20.250Z"
    assert fields["attempts"][0]["tokens"][0]["delivered_at"] == "2026-09-21T14:13:21.250Z"
    assert fields["attempts"][0]["evidence"].keys() == {"rule", "stream", "line", "seconds_to_signal"}
    assert fields["metadata"]["ignored_fields"] == ["unknown"]
    assert (fields["state"], fields["outcome"], fields["error_class"]) == ("finished", "failed", "auth")
    assert "request_digest" not in fields
    assert msgspec.json.decode(record_json(record()))["ended_at"] is None


def test_an_instant_is_written_in_utc_to_the_millisecond() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(CREATED_AT) == "2026-09-21T14:13:20.250Z"
    for seconds in (0, CREATED_AT, 0.0009999999, 1_790_000_000.9996, 253_402_300_799.0):
        assert to_json([instant(seconds)]).decode() == f'["{rfc3339(seconds)}"]'
    with pytest.raises(TypeError):
        to_json(object())


# -- records and answers


def test_a_record_comes_back_as_it_was_saved_also_after_a_restart(path: Path) -> None:
    with RecordStore(path) as store:
        store.save(finished())
        assert store.load("x") == finished()
        assert store.load("unknown") is None

    with RecordStore(path) as store:
        assert store.load("x") == finished()


def test_a_record_that_is_saved_again_takes_the_place_of_the_old_one(store: RecordStore) -> None:
    store.save(record())
    store.save(finished())

    assert store.load("x") == finished()
    assert ids(store.list()) == ["x"]
    assert store.unfinished() == []


def test_an_answer_is_kept_over_restarts_until_a_newer_one_comes(path: Path) -> None:
    with RecordStore(path) as store:
        assert store.answer("x") is None
        store.conclude(record("x"), Answer(503, b'{"old":1}'))
        store.conclude(record("x"), Answer(200, b'{"new":"\xc3\xa9"}'))

    with RecordStore(path) as store:
        assert store.answer("x") == Answer(200, b'{"new":"\xc3\xa9"}')


def test_what_a_dead_supervisor_left_is_listed_as_unfinished(path: Path) -> None:
    with RecordStore(path) as store:
        for n, state in enumerate(Phase):
            store.save(record(state.value, created_at=CREATED_AT + n, state=state))

    with RecordStore(path) as store:
        assert [found.execution_id for found in store.unfinished()] == ["queued", "running", "parked", "stopping"]


def test_pages_hold_every_record_once_newest_first(store: RecordStore) -> None:
    # Several were created at the same instant.
    for n in range(25):
        store.save(record(f"id-{n:02}", created_at=CREATED_AT + n // 4))

    seen: list[str] = []
    cursor: str | None = None
    while True:
        page, cursor = store.list(limit=4, cursor=cursor)
        seen += [found.execution_id for found in page]
        if cursor is None:
            break
        store.save(record(f"newer-{len(seen)}", created_at=CREATED_AT + 1000))

    assert seen == [f"id-{n:02}" for n in reversed(range(25))]


def test_a_page_holds_only_what_was_asked_for(store: RecordStore) -> None:
    for n in range(20):
        store.save(record(f"queued-{n:02}", created_at=CREATED_AT + n))
        store.save(finished(f"failed-{n:02}", ended_at=CREATED_AT + n))

    assert len(ids(store.list())) == 40
    assert ids(store.list(state="queued", limit=2)) == ["queued-19", "queued-18"]
    assert ids(store.list(outcome="failed", limit=2)) == ["failed-19", "failed-18"]
    assert ids(store.list(outcome="success")) == []
    assert ids(store.list(state="queued", outcome="failed")) == []


@pytest.mark.parametrize("cursor", ["", "x", "~", "'; DROP TABLE executions", "é~x"])
def test_a_cursor_from_elsewhere_is_refused(store: RecordStore, cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="cursor"):
        store.list(cursor=cursor)


def test_a_page_of_ten_thousand_records_comes_in_less_than_half_a_second(store: RecordStore) -> None:
    # 50 ms are promised; ten times that are allowed to a slow machine.
    with store._database.transaction() as connection:
        for n in range(10_000):
            one = finished(f"id-{n:05}", ended_at=CREATED_AT + n)
            one.labels = {"number": str(n), "all": "alike"}
            put_record(connection, msgspec.json.encode(one))

    filters: list[dict[str, Any]] = [
        *({}, {"state": "finished"}, {"outcome": "failed"}, {"state": "queued"}, {"outcome": "success"}),
        *({"labels": {"all": "alike", "number": "3"}}, {"labels": {"all": "alike"}}, {"labels": {"other": ""}}),
    ]
    for given in filters:
        cursor = store.list(limit=50)[1]
        began = time.process_time()
        store.list(**given, limit=50, cursor=cursor)
        assert time.process_time() - began < 0.5, given


ODD = "= & % \n \0 ' \" \u00e9 \U0001f600"


def test_records_are_listed_by_their_labels(store: RecordStore) -> None:
    for n in range(12):
        one = finished(f"id-{n:02}", ended_at=CREATED_AT + n)
        one.labels = {"even": str(n % 2 == 0), "third": str(n % 3), "odd": ODD}
        store.save(one)
    store.save(record("queued"))

    assert ids(store.list(labels={"even": "True", "third": "0"})) == ["id-06", "id-00"]
    assert ids(store.list(labels={"even": "True", "other": "0"})) == ids(store.list(labels={"even": "true"})) == []
    assert len(ids(store.list(labels={"odd": ODD}))) == 12
    assert ids(store.list(labels={"odd": ODD}, state="queued")) == []
    found, cursor = store.list(labels={"third": "1"}, outcome="failed", limit=3)
    page = list(found)
    assert [one.execution_id for one in page] + ids(store.list(labels={"third": "1"}, cursor=cursor)) == [
        "id-10",
        "id-07",
        "id-04",
        "id-01",
    ]
    page[0].labels = {"third": "9"}
    store.save(page[0])
    store.delete("id-04")
    assert ids(store.list(labels={"third": "1"})) == ["id-07", "id-01"]


def test_a_record_that_is_only_in_memory_is_listed_by_its_labels(path: Path) -> None:
    path.parent.write_bytes(b"in the way")
    clock = Clock()
    store = RecordStore(path, clock=clock)
    one, other = record("one"), record("other")
    one.labels = {"a": "1", "b": "2"}
    for held in (one, other):
        with pytest.raises(StoreUnavailable):
            store.save(held)
    path.parent.unlink()
    clock.now += Database.RETRY_SECONDS

    assert ids(store.list(labels={"a": "1"})) == ids(store.list(labels={"a": "1", "b": "2"})) == ["one"]
    assert ids(store.list(labels={"a": "2"})) == []
    store.close()


def of_the_version_before_labels(path: Path) -> None:
    """Write a file of version 3, the first that was released after 0.1.0."""
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for statement in (step for steps in MIGRATIONS[:3] for step in steps):
            connection.execute(statement)
        connection.execute("PRAGMA user_version = 3")
        old = msgspec.to_builtins(finished())
        for name in ("title", "labels", "prompt"):
            del old[name]
        values = ("x", CREATED_AT, CREATED_AT + 60, "finished", "failed", msgspec.json.encode(old))
        connection.execute("INSERT INTO executions VALUES (?, ?, ?, ?, ?, ?)", values)


def test_a_file_from_before_labels_is_opened_and_searched(path: Path) -> None:
    of_the_version_before_labels(path)

    for found in ([], ["new"]):
        with RecordStore(path) as store:
            assert (store.damage, store.load("x")) == ([], finished())
            assert ids(store.list(labels={"a": "b"})) == found
            one = record("new")
            one.labels = {"a": "b"}
            store.save(one)
            assert ids(store.list(labels={"a": "b"})) == ["new"]


def test_a_file_from_before_labels_can_be_read_where_it_cannot_be_migrated(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_the_version_before_labels(path)
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL

    def open_to_write(database: Database) -> None:
        raise full

    monkeypatch.setattr(Database, "_open_to_write", open_to_write)
    with RecordStore(path) as store:
        assert ids(store.list()) == ["x"]
        with pytest.raises(StoreUnavailable, match="label"):
            store.list(labels={"a": "b"})


def test_a_store_can_be_used_by_many_threads_at_once(store: RecordStore) -> None:
    failed: list[BaseException] = []

    def use(name: int) -> None:
        try:
            for n in range(25):
                store.conclude(record(f"{name}-{n}"), Answer(200, b"{}"))
                assert store.load(f"{name}-{n}") is not None
                store.list(limit=5)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    threads = [threading.Thread(target=use, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failed
    assert len(ids(store.list(limit=1000))) == 100


def test_nobody_else_can_read_records(store: RecordStore, path: Path) -> None:
    store.save(record())

    files = list(path.parent.iterdir())
    assert path in files
    for file in [path.parent, *files]:
        assert not stat.S_IMODE(file.stat().st_mode) & 0o077, file


# -- versions of the file


def test_a_file_of_a_later_version_is_neither_touched_nor_read_and_taken_up_again_when_it_is_replaced(
    path: Path,
) -> None:
    clock = Clock()
    RecordStore(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1000")
    content = path.read_bytes()

    with contextlib.closing(RecordStore(path, clock=clock)) as store:
        for _ in range(3):
            clock.now += Database.RETRY_SECONDS
            with pytest.raises(StoreUnavailable, match="its format is 1000, and this one knows"):
                store.save(record("new"))
            with pytest.raises(StoreUnavailable):
                store.load("x")
            with pytest.raises(StoreUnavailable):
                store.upkeep()
        assert (path.read_bytes(), store.damage, store.set_aside) == (content, [], [])
        assert "later version" in (store.trouble or "")
        assert store.awaits_upkeep

        path.unlink()
        clock.now += Database.RETRY_SECONDS
        store.upkeep()
        assert (store.trouble, store.load("new")) == (None, record("new"))
        assert store.awaits_upkeep, "the log is to be checkpointed"
        clock.now += Database.IDLE_SECONDS
        store.upkeep()
        assert not store.awaits_upkeep


def test_a_file_of_an_earlier_version_is_migrated_step_by_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RecordStore(path) as store:
        store.save(finished())
    steps = (*MIGRATIONS, ("ALTER TABLE executions ADD COLUMN note TEXT DEFAULT 'added'",))
    monkeypatch.setattr(database_module, "MIGRATIONS", steps)

    for _ in range(2):
        with RecordStore(path) as store:
            assert store.load("x") == finished()
            assert store._rows("SELECT note FROM executions") == [("added",)]


def test_a_record_that_cannot_be_read_hides_no_other(store: RecordStore, caplog: pytest.LogCaptureFixture) -> None:
    store.save(record("good"))
    store.save(record("bad", created_at=CREATED_AT + 1))
    store._rows("UPDATE executions SET record = ? WHERE execution_id = 'bad'", b'{"state":"from-the-future"}')

    assert ids(store.list()) == ["good"]
    page, cursor = store.list(limit=1)
    assert [*page, *store.list(cursor=cursor)[0]] == [store.load("good")], "it ends no list, either"
    assert [found.execution_id for found in store.unfinished()] == ["good"]
    assert "cannot be read" in caplog.text
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        store.load("bad")


# -- crashes


@pytest.mark.slow
def test_a_supervisor_killed_at_any_step_of_a_write_leaves_the_old_record_or_the_new_one(
    path: Path, tmp_path: Path
) -> None:
    old, new = record(), finished()
    with RecordStore(path) as store:
        store.save(old)
    seen = []
    for step in range(1, 1000):
        crashed = fresh_copy(path, tmp_path)
        pid = os.fork()
        if pid == 0:
            save_and_be_killed(crashed, new, at_step=step)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        with RecordStore(crashed) as store:
            found = store.load("x")
            assert found in (old, new), step
            assert store.trouble is None
            seen.append(found == new)
        if not killed:
            break
    assert len(seen) > 20
    assert seen[0] is False
    assert seen[-1] is True


@pytest.mark.slow
def test_a_supervisor_killed_at_any_byte_it_writes_leaves_the_old_record_or_the_new_one(
    path: Path, tmp_path: Path
) -> None:
    old, new = record(), finished()
    with RecordStore(path) as store:
        store.save(old)
    seen = set()
    for limit_bytes in [*range(0, 4096, 509), *range(4096, 40_000, 1021)]:
        crashed = fresh_copy(path, tmp_path)
        pid = os.fork()
        if pid == 0:
            save_and_be_killed(crashed, new, at_byte=limit_bytes)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, -signal.SIGXFSZ)
        with RecordStore(crashed) as store:
            found = store.load("x")
            assert found in (old, new), limit_bytes
            seen.add(found == new)

    assert seen == {False, True}


def save_and_be_killed(
    path: Path, new: ExecutionRecord, at_step: int | None = None, at_byte: int | None = None
) -> None:
    """Run in a child: save, and be killed at a step of SQLite's virtual machine, or at the write beyond a file size."""
    store = RecordStore(path)
    if at_step is not None:
        steps = iter(range(at_step - 1))
        store._database.connection().set_progress_handler(
            lambda: os.kill(os.getpid(), signal.SIGKILL) if next(steps, None) is None else None, 1
        )
    if at_byte is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (at_byte, at_byte))
    store.save(new)
    os._exit(0)


def fresh_copy(path: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "crashed"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(path.parent, directory)
    return directory / path.name


# -- disks that do not take it


class Clock:
    """A time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_the_disk_does_not_take_is_held_and_written_later(path: Path) -> None:
    clock = Clock()
    path.parent.write_bytes(b"in the way")
    store = RecordStore(path, clock=clock)

    for n in range(3):
        with pytest.raises(StoreUnavailable):
            store.save(record(f"id-{n}", created_at=CREATED_AT + n))
    with pytest.raises(StoreUnavailable):
        store.conclude(record("id-1", created_at=CREATED_AT + 1), Answer(200, b"{}"))
    held = store.load("id-1")
    assert held is not None
    assert (held.created_at, held.metadata.retained) == (CREATED_AT + 1, False)
    assert store.answer("id-1") is not None
    assert "records.sqlite" in repr(store)
    assert store.trouble is not None

    path.parent.unlink()
    clock.now += Database.RETRY_SECONDS
    store.save(finished("id-0", ended_at=CREATED_AT + 60))
    assert repr(store) == f"<RecordStore {path} available>"
    store.close()
    with RecordStore(path) as reopened:
        assert ids(reopened.list()) == ["id-2", "id-1", "id-0"]
        assert reopened.load("id-0") == finished("id-0", ended_at=CREATED_AT + 60)
        assert reopened.load("id-1") == record("id-1", created_at=CREATED_AT + 1)
        assert reopened.answer("id-1") is not None


def test_a_disk_that_allows_nothing_at_the_start_is_no_reason_to_fail(path: Path) -> None:
    path.parent.write_bytes(b"in the way")

    with RecordStore(path) as store:
        assert store.trouble
        with pytest.raises(StoreUnavailable):
            store.save(record())
        assert store.load("x") is not None


# -- files that are damaged


def other_tables(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE executions (name TEXT)")


def no_table_of_answers(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE answers")


def no_marks(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE marks")


def another_program(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE notes (text TEXT)")
        connection.execute("PRAGMA user_version = 77")


def with_pages(path: Path, garble: Callable[[bytearray, int], None]) -> None:
    content = bytearray(path.read_bytes())
    garble(content, len(content) // 4096)
    path.write_bytes(content)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def empty_with_a_log(path: Path) -> None:
    os.truncate(path, 0)
    log_of(path).write_bytes(b"log")


def middle(content: bytearray, pages: int) -> None:
    content[4096 * (pages // 2) : 4096 * (pages // 2 + 3)] = bytes(3 * 4096)


def all_but_some(content: bytearray, pages: int) -> None:
    content[4096 * 12 :] = os.urandom(len(content) - 4096 * 12)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "another format": lambda path: path.write_bytes(b"something else entirely" * 100),
    "a header gone": lambda path: with_pages(path, lambda content, _: content.__setitem__(slice(0, 100), bytes(100))),
    "half of it": lambda path: os.truncate(path, path.stat().st_size // 8192 * 4096),
    "half a page": lambda path: os.truncate(path, 2000),
    "three pages": lambda path: with_pages(path, middle),
    "nearly all": lambda path: with_pages(path, all_but_some),
    "other tables": other_tables,
    "no answers": no_table_of_answers,
    "no marks": no_marks,
    "of another program": another_program,
    "a directory": directory,
    "a pipe": pipe,
    "empty with a log": empty_with_a_log,
}
KEEPS = {"half of it": 100, "three pages": 200, "no answers": 300, "no marks": 300}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside_and_what_can_be_read_of_it_is_saved(path: Path, damage: str) -> None:
    with RecordStore(path) as store, store._database.transaction() as connection:
        for n in range(300):
            one = finished(f"id-{n:03}", ended_at=CREATED_AT + n)
            put_record(connection, msgspec.json.encode(one))
            put_answer(connection, one.execution_id, 200, b"x" * 3000, 1.0)
    DAMAGES[damage](path)
    was = path.read_bytes() if path.is_file() else None

    with RecordStore(path) as store:
        assert store.trouble is None, store.trouble
        (text,), (aside,) = store.damage, store.set_aside
        assert was is None or path.with_name(aside).read_bytes() == was, "it is kept as it was"
        saved = ids(store.list(limit=1000))
        assert len(saved) >= KEEPS.get(damage, 0)
        assert f"saved from it: {len(saved)}" in text
        assert all(store.load(one) == finished(one, ended_at=CREATED_AT + int(one[3:])) for one in saved)
        store.save(record("new"))
        store.upkeep()
    with RecordStore(path) as store:
        assert (store.damage, store.set_aside) == ([], [aside])
        assert store.load("new") == record("new")


def test_damage_that_is_met_later_is_dealt_with_then(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    with RecordStore(path) as store, store._database.transaction() as connection:
        for n in range(300):
            put_record(connection, msgspec.json.encode(finished(f"id-{n:03}")))
    with_pages(path, middle)
    monkeypatch.setattr(database_module, "CHECKED_BYTES", 0)  # as of one too long to be looked through

    with contextlib.closing(RecordStore(path, clock=clock)) as store:
        with pytest.raises(StoreUnavailable):
            store.list(limit=1000)
        clock.now += Database.RETRY_SECONDS
        assert 200 < len(ids(store.list(limit=1000))) < 300
        store.upkeep()
        assert (store.trouble, len(store.damage)) == (None, 1)


def test_a_supervisor_killed_while_a_file_is_set_aside_leaves_the_new_one_to_be_found(path: Path) -> None:
    with RecordStore(path) as store:
        store.save(record())
    path.rename(path.with_name("records.sqlite.new"))

    with RecordStore(path) as store:
        assert (store.load("x"), store.damage) == (record(), [])


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def emptied(path: Path) -> None:
    os.truncate(path, 0)
    log_of(path).unlink()


def deleted(path: Path) -> None:
    path.unlink()
    log_of(path).unlink()


def log_deleted(path: Path) -> None:
    log_of(path).unlink()


def log_garbled(path: Path) -> None:
    log_of(path).write_bytes(os.urandom(log_of(path).stat().st_size))


def log_in_the_file(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


@pytest.mark.parametrize("loss", [emptied, deleted, log_deleted, log_garbled, log_in_the_file, None])
def test_a_lost_log_and_an_emptied_file_are_noticed_once(path: Path, loss: Callable[[Path], None] | None) -> None:
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            RecordStore(path).save(record())
            os._exit(0)  # as one that is killed
        os.waitpid(pid, 0)
    if loss is not None:
        loss(path)

    is_lost = loss not in (None, log_in_the_file)
    for expected in (is_lost, False):
        with RecordStore(path) as store:
            assert bool(store.damage) == expected, store.damage
            assert (store.load("x") is None) == is_lost


def test_the_log_is_written_into_the_file_when_nothing_happens(path: Path) -> None:
    clock = Clock()
    with contextlib.closing(RecordStore(path, clock=clock)) as store:
        store.save(record())
        store.upkeep()
        assert log_of(path).stat().st_size > 0
        clock.now += Database.IDLE_SECONDS
        store.upkeep()
        assert log_of(path).stat().st_size == 0
        shutil.copy(path, path.with_name("copy"))
    with contextlib.closing(sqlite3.connect(path.with_name("copy"))) as connection:
        assert connection.execute("SELECT count(*) FROM executions").fetchone() == (1,)


def test_unsaved_records_and_answers_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "UNSAVED_RECORDS", 5)
    monkeypatch.setattr(records_module, "UNSAVED_ANSWER_BYTES", 1000)
    path.parent.write_bytes(b"in the way")

    with RecordStore(path) as store:
        for n in range(20):
            with pytest.raises(StoreUnavailable):
                store.conclude(record(f"id-{n}"), Answer(200, b"x" * 300))

        assert len(store._unsaved_records) == 5
        assert len(store._unsaved_answers) == 3
        assert store.load("id-19") is not None


FULL_DISK = "tests.support.programs.records_on_a_full_disk"


def test_a_full_and_a_read_only_disk_cost_no_record_before_a_restart(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("a mount namespace cannot be made here")

    ran = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.stdout == "all held\n", ran.stderr


# -- retention


@pytest.fixture
def transcripts(tmp_path: Path) -> TranscriptStore:
    return TranscriptStore(tmp_path / "transcripts")


def filled(store: RecordStore, transcripts: TranscriptStore, count: int, size_bytes: int) -> None:
    for n in range(count):
        name = f"id-{n}"
        store.conclude(finished(name, ended_at=CREATED_AT + n), Answer(200, b"a" * size_bytes))
        with contextlib.closing(transcripts.writer(name)) as writer:
            append(writer, b"t" * size_bytes)


def test_what_is_too_old_goes_with_its_transcript_and_answer(store: RecordStore, transcripts: TranscriptStore) -> None:
    filled(store, transcripts, 10, 100)
    store.save(record("still-running", created_at=1.0, state=Phase.RUNNING))

    deleted = prune(store, transcripts, max_age_seconds=100, max_bytes=1 << 40, now=CREATED_AT + 105, in_use={"id-0"})

    assert deleted == 4
    assert ids(store.list()) == [*[f"id-{n}" for n in reversed(range(5, 10))], "id-0", "still-running"]
    assert store.answer("id-1") is None
    assert transcripts.reader("id-1").last_line == 0
    assert store.answer("id-5") is not None
    assert transcripts.reader("id-5").last_line == 1


def test_what_takes_too_much_room_goes_oldest_first_and_the_room_is_given_back(
    store: RecordStore, transcripts: TranscriptStore, path: Path
) -> None:
    filled(store, transcripts, 20, 100_000)
    limit_bytes = 1_000_000

    deleted = prune(store, transcripts, max_age_seconds=1e9, max_bytes=limit_bytes, now=CREATED_AT)

    assert 14 <= deleted <= 17
    assert ids(store.list()) == [f"id-{n}" for n in reversed(range(deleted, 20))]
    assert sum(file.stat().st_size for file in path.parent.iterdir()) + transcripts.total_bytes() <= limit_bytes


def test_where_little_is_free_lines_go_first_and_answers_last(
    store: RecordStore, transcripts: TranscriptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, transcripts, 4, 10_000)
    store.save(record("running", state=Phase.RUNNING))
    with contextlib.closing(transcripts.writer("running")) as writer:
        append(writer, b"line")
    monkeypatch.setattr(retention, "lacking_bytes", lambda _: 1)  # however much is deleted
    late = CREATED_AT + 2 + retention.SPARED_SECONDS

    deleted = prune(store, transcripts, max_age_seconds=1e9, max_bytes=1 << 40, now=late - 10, in_use={"running"})

    assert deleted == 0
    assert all(store.answer(f"id-{n}") for n in range(4))
    assert [transcripts.reader(f"id-{n}").read(0) for n in range(4)] == [[]] * 4
    assert transcripts.reader("id-0").last_line == 1, "numbers stay"
    assert transcripts.reader("id-0").answer_log(1000) == ([], True)
    assert transcripts.reader("running").read(0) == [(1, b"line")]

    assert prune(store, transcripts, max_age_seconds=1e9, max_bytes=1 << 40, now=late, in_use={"running"}) == 1
    assert store.load("id-0") is None


def test_lines_go_only_until_enough_is_free(
    store: RecordStore, transcripts: TranscriptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, transcripts, 4, 10)
    for n in range(4):
        os.utime(transcripts.directory / f"id-{n}.jsonl", (n, n))
        os.utime(transcripts.directory / f"id-{n}.idx", (n, n))
    free = iter([1, 1, 1, 0, 0])
    monkeypatch.setattr(retention, "lacking_bytes", lambda _: next(free))

    prune(store, transcripts, max_age_seconds=1e9, max_bytes=1 << 40, now=CREATED_AT)

    assert [len(transcripts.reader(f"id-{n}").read(0)) for n in range(4)] == [0, 0, 1, 1]


def test_a_transcript_whose_record_is_lost_goes_when_it_is_too_old(
    store: RecordStore, transcripts: TranscriptStore
) -> None:
    odd = "a/b"
    for name in ("lost", "kept", odd):
        with contextlib.closing(transcripts.writer(name)) as writer:
            append(writer, b"line")
    transcripts.writer("empty").close()
    for name in ("kept", odd):
        store.save(finished(name))
    now = time.time()

    assert list(retention.without_record(store, transcripts)) == ["lost"]
    prune(store, transcripts, max_age_seconds=100, max_bytes=1 << 40, now=CREATED_AT + 60)
    assert transcripts.reader("lost").last_line == 1
    store.save(finished("kept", ended_at=now + 150))
    prune(store, transcripts, max_age_seconds=100, max_bytes=1 << 40, now=now + 200)
    assert (transcripts.reader("lost").last_line, transcripts.reader("kept").last_line) == (0, 1)


def test_nothing_goes_while_all_fits(store: RecordStore, transcripts: TranscriptStore) -> None:
    filled(store, transcripts, 3, 10)

    assert prune(store, transcripts, max_age_seconds=1000, max_bytes=1 << 30, now=CREATED_AT) == 0
    assert len(ids(store.list())) == 3
