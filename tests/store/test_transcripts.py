"""A transcript keeps every line under its number: while it is written, after a crash, and around a full disk."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from agent_runtime.store.transcripts import TranscriptStore, TranscriptWriter
from tests.support.transcript_lines import append

if TYPE_CHECKING:
    from pathlib import Path

IDS = ["task-1", "A", "a", "0" * 128, "with:colon", "a.b_c-d", "a.jsonl", "con", "-", "-rf", "--help", "_x", "-.."]
HOSTILE_IDS = ["../escape", "", ".", "..", "a/b", "a\0b", "x" * 300, ".hidden", "nul\n", "é", "\udcff"]


@pytest.fixture
def store(tmp_path: Path) -> TranscriptStore:
    return TranscriptStore(tmp_path / "transcripts")


def numbered(first: int, last: int, size_bytes: int = 0) -> list[bytes]:
    return [b'{"n":%d}' % n + b" " * size_bytes for n in range(first, last + 1)]


def all_of(store: TranscriptStore, execution_id: str = "x") -> dict[int, bytes]:
    return dict(store.reader(execution_id).read(0, limit_lines=1_000_000, limit_bytes=1 << 30))


def test_lines_are_read_back_under_their_numbers(store: TranscriptStore) -> None:
    with closing(store.writer("x")) as writer:
        assert writer.last_line == 0
        assert append(writer, b'{"n":1}') == 1
        assert append(writer, b'{"n":2}', b"", b'{"n":4}') == 4

    assert store.reader("x").read(0) == [(1, b'{"n":1}'), (2, b'{"n":2}'), (3, b""), (4, b'{"n":4}')]
    assert store.reader("x").read(3) == [(4, b'{"n":4}')]
    assert store.reader("x").read(4) == store.reader("x").read(400) == []
    assert store.reader("x").read(-1)[0] == (1, b'{"n":1}')
    assert store.reader("x").last_line == 4


def test_appended_lines_can_be_read_at_once(store: TranscriptStore) -> None:
    with closing(store.writer("x")) as writer:
        append(writer, b"a")
        assert store.reader("x").read(0) == [(1, b"a")]


def test_numbering_goes_on_when_the_transcript_is_opened_again(store: TranscriptStore) -> None:
    for attempt in range(3):
        with closing(store.writer("x")) as writer:
            assert writer.last_line == attempt * 10
            append(writer, *numbered(attempt * 10 + 1, attempt * 10 + 10))

    assert all_of(store) == dict(enumerate(numbered(1, 30), 1))


def test_a_writer_that_was_closed_can_still_be_read_and_written(store: TranscriptStore) -> None:
    writer = store.writer("x")
    append(writer, b"one")
    writer.close()
    writer.close()
    assert writer.read(0) == [(1, b"one")]

    append(writer, b"two")
    writer.close()
    assert writer.read(0) == [(1, b"one"), (2, b"two")]


def test_limits_of_a_read_hold_and_one_line_always_comes(store: TranscriptStore) -> None:
    with closing(store.writer("x")) as writer:
        append(writer, b"a" * 9, b"b" * 9, b"c" * 1_000_000, b"d" * 9)
    reader = store.reader("x")

    assert [n for n, _ in reader.read(0, limit_lines=1)] == [1]
    assert [n for n, _ in reader.read(0, limit_bytes=20)] == [1, 2]
    assert [n for n, _ in reader.read(0, limit_bytes=19)] == [1]
    assert [n for n, _ in reader.read(0, limit_bytes=1)] == [1]
    assert [n for n, _ in reader.read(2, limit_bytes=1)] == [3]
    assert len(reader.read(2, limit_bytes=1)[0][1]) == 1_000_000


def test_a_transcript_can_be_read_while_it_is_written(store: TranscriptStore) -> None:
    lines = numbered(1, 20_000)
    done = threading.Event()

    def write() -> None:
        with closing(store.writer("x")) as writer:
            for first in range(0, len(lines), 7):
                append(writer, *lines[first : first + 7])
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    reader, position = store.reader("x"), 0
    while True:
        ended = done.is_set()
        found = reader.read(position)
        assert found == list(enumerate(lines[position : position + len(found)], position + 1))
        position += len(found)
        if ended and not found:
            break
    thread.join()

    assert position == len(lines)


def test_of_a_transcript_that_is_not_there_nothing_is_read(store: TranscriptStore) -> None:
    reader = store.reader("x")

    assert (reader.read(0), reader.last_line, reader.answer_log(100)) == ([], 0, ([], False))


def test_a_deleted_transcript_is_gone_and_its_id_begins_anew(store: TranscriptStore) -> None:
    with closing(store.writer("x")) as writer:
        append(writer, b"old")
    assert store.total_bytes() == store.size_bytes("x") == 4 + 8

    store.delete("x")
    store.delete("x")

    assert store.reader("x").read(0) == []
    assert store.total_bytes() == 0
    with closing(store.writer("x")) as writer:
        assert append(writer, b"new") == 1


def test_every_id_has_files_of_its_own_inside_the_directory(store: TranscriptStore) -> None:
    for execution_id in IDS + HOSTILE_IDS:
        with closing(store.writer(execution_id)) as writer:
            append(writer, execution_id.encode(errors="replace").replace(b"\n", b" "))

    for execution_id in IDS + HOSTILE_IDS:
        assert store.reader(execution_id).last_line == 1, execution_id
    files = [path for path in store.directory.parent.rglob("*") if path.is_file()]
    assert {path.parent for path in files} == {store.directory}
    assert len(files) == 2 * len(IDS + HOSTILE_IDS)
    assert (store.directory / "task-1.jsonl").read_bytes() == b"task-1\n"


def test_nobody_else_can_read_transcripts(store: TranscriptStore) -> None:
    with closing(store.writer("x")) as writer:
        append(writer, b"private")

    for path in [store.directory, *store.directory.iterdir()]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_a_link_in_place_of_a_transcript_is_not_followed(store: TranscriptStore, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    (store.directory / "x.jsonl").symlink_to(victim)

    with closing(store.writer("x")) as writer:
        append(writer, b"line")

    assert writer.incomplete
    assert victim.read_bytes() == b"untouched"


# -- the log in an answer


def test_a_short_transcript_goes_into_the_answer_whole(store: TranscriptStore) -> None:
    with closing(store.writer("x")) as writer:
        append(writer, *numbered(1, 5))

    assert store.reader("x").answer_log(1000) == (numbered(1, 5), False)
    assert store.reader("x").answer_log(40) == (numbered(1, 5), False)


def test_of_a_long_transcript_start_end_and_the_result_go_into_the_answer(store: TranscriptStore) -> None:
    with closing(store.writer("x")) as writer:
        append(writer, *numbered(1, 1000, 91))
    length = len(numbered(1, 1, 91)[0])

    for result in (1, 3, 500, 990, 1000):
        log, truncated = store.reader("x").answer_log(2000, must_include_line=result)
        numbers = [int(line.split(b":")[1].split(b"}")[0]) for line in log]
        assert truncated
        assert numbers == sorted(set(numbers))
        assert {1, 2, result, 999, 1000} <= set(numbers)
        assert sum(len(line) + 1 for line in log) <= 2000 + length


@pytest.mark.parametrize("limit_bytes", [0, 1, 10, 50, 99, 100, 101, 399, 400, 401, 799])
@pytest.mark.parametrize("result", [None, 1, 4, 8, 9])
def test_the_limit_of_an_answer_holds_wherever_it_falls(
    store: TranscriptStore, limit_bytes: int, result: int | None
) -> None:
    lines = [b"%d" % n * 99 for n in range(1, 9)]
    with closing(store.writer("x")) as writer:
        append(writer, *lines)

    log, truncated = store.reader("x").answer_log(limit_bytes, must_include_line=result)

    assert truncated
    assert len(set(log)) == len(log)
    assert set(log) <= set(lines)
    if result is not None and result <= len(lines):
        assert lines[result - 1] in log
        log.remove(lines[result - 1])
        limit_bytes = max(0, limit_bytes - 100)
    assert sum(len(line) + 1 for line in log) <= limit_bytes


def test_a_result_longer_than_the_limit_goes_into_the_answer_all_the_same(store: TranscriptStore) -> None:
    with closing(store.writer("x")) as writer:
        append(writer, b"start", b"r" * 5000, b"end")

    assert store.reader("x").answer_log(100, must_include_line=2) == ([b"r" * 5000], True)


# -- crashes


def test_half_a_line_left_by_a_crash_is_cut_off(store: TranscriptStore) -> None:
    with closing(store.writer("x")) as writer:
        append(writer, *numbered(1, 3))
    with (store.directory / "x.jsonl").open("ab") as data:
        data.write(b'{"n":4}\n{"n":5}\n{"half')

    assert store.reader("x").last_line == 3
    with closing(store.writer("x")) as writer:
        assert append(writer, b"6") == 6

    assert all_of(store) == dict(enumerate([*numbered(1, 5), b"6"], 1))
    assert (store.directory / "x.jsonl").read_bytes() == b"\n".join([*numbered(1, 5), b"6", b""])


@pytest.mark.parametrize("lost_bytes", [1, 7, 8, 9, 17, 24])
def test_an_index_that_lost_its_end_is_made_again(store: TranscriptStore, lost_bytes: int) -> None:
    with closing(store.writer("x")) as writer:
        append(writer, *numbered(1, 3))
    index = store.directory / "x.idx"
    os.truncate(index, index.stat().st_size - lost_bytes)

    store.writer("x").close()
    assert index.stat().st_size == 3 * 8
    with closing(store.writer("x")) as writer:
        assert append(writer, b'{"n":4}') == 4

    assert all_of(store) == dict(enumerate(numbered(1, 4), 1))


def test_half_an_index_entry_left_by_a_crash_is_cut_off(store: TranscriptStore) -> None:
    with closing(store.writer("x")) as writer:
        append(writer, *numbered(1, 3))
    index = store.directory / "x.idx"
    with index.open("ab") as entries:
        entries.write(b"\0\0\0")

    store.writer("x").close()

    assert index.stat().st_size == 3 * 8
    assert all_of(store) == dict(enumerate(numbered(1, 3), 1))


@pytest.mark.parametrize("left_bytes", [0, 1, 8, 9, 23])
def test_lines_whose_data_was_lost_are_missing_but_keep_their_numbers(store: TranscriptStore, left_bytes: int) -> None:
    with closing(store.writer("x")) as writer:
        append(writer, *numbered(1, 3))
    os.truncate(store.directory / "x.jsonl", left_bytes)

    store.reader("x").read(0)
    store.reader("x").answer_log(1000)
    store.writer("x").close()
    assert store.reader("x").last_line == 3
    with closing(store.writer("x")) as writer:
        assert append(writer, b'{"n":4}') == 4

    left = left_bytes // 8
    assert all_of(store) == {**dict(enumerate(numbered(1, left), 1)), 4: b'{"n":4}'}
    assert store.reader("x").answer_log(1000)[1]


@pytest.mark.parametrize("damage", [b"\0" * 8, b"\xff" * 8, b"\1" * 8])
@pytest.mark.parametrize("entries", [1, 2, 5])
def test_an_index_whose_end_was_damaged_is_made_again(store: TranscriptStore, damage: bytes, entries: int) -> None:
    true = dict(enumerate(numbered(1, 5), 1))
    with closing(store.writer("x")) as writer:
        append(writer, *list(true.values()))
    with (store.directory / "x.idx").open("r+b") as index:
        index.seek((5 - entries) * 8)
        index.write(damage * entries)

    store.reader("x").read(0)
    store.reader("x").read(5)
    store.reader("x").answer_log(20, must_include_line=5)
    with closing(store.writer("x")) as writer:
        assert writer.last_line == 5

    assert all_of(store) == true


@pytest.mark.slow
def test_a_writer_killed_at_any_write_leaves_whole_lines_under_right_numbers(store: TranscriptStore) -> None:
    lines = numbered(1, 40)
    survived = set()
    for limit_bytes in range(0, 360, 5):
        store.delete("x")
        pid = os.fork()
        if pid == 0:
            # The kernel kills the child at the write that makes a file longer than this.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
            writer = store.writer("x")
            for first in range(0, len(lines), 4):
                append(writer, *lines[first : first + 4])
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGXFSZ)
        before = all_of(store)
        assert before == dict(enumerate(lines[: len(before)], 1))
        with closing(store.writer("x")) as writer:
            after = writer.last_line
            append(writer, b"next")
        assert after >= len(before)
        assert all_of(store) == {**dict(enumerate(lines[:after], 1)), after + 1: b"next"}
        survived.add(after)

    assert {0, 40} < survived


# -- disks that do not take it


class Clock:
    """A time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def writer_with_clock(store: TranscriptStore, clock: Clock) -> TranscriptWriter:
    paths = store.directory / "x.jsonl", store.directory / "x.idx"
    return TranscriptWriter(*paths, clock=clock)


def test_what_could_not_be_kept_leaves_a_gap_and_numbers_go_on(tmp_path: Path) -> None:
    store, clock = TranscriptStore(tmp_path / "transcripts"), Clock()
    writer = writer_with_clock(store, clock)
    append(writer, *numbered(1, 2))
    writer.close()
    store.directory.rename(tmp_path / "away")
    store.directory.write_bytes(b"in the way")
    append(writer, *numbered(3, 5))

    assert (writer.incomplete, (writer._retry_at is None)) == (True, False)
    assert (writer.last_line, writer.missing_lines) == (5, 3)

    store.directory.unlink()
    (tmp_path / "away").rename(store.directory)
    append(writer, *numbered(6, 6))
    assert writer.missing_lines == 4, "it must not try again before the time is over"

    clock.now += TranscriptWriter.RETRY_SECONDS
    assert append(writer, *numbered(7, 8)) == 8
    writer.close()

    assert (writer.incomplete, (writer._retry_at is None)) == (True, True)
    assert all_of(store) == {n: b'{"n":%d}' % n for n in (1, 2, 7, 8)}
    assert store.reader("x").read(2, limit_lines=1) == [(7, b'{"n":7}')]
    assert store.reader("x").last_line == 8
    assert store.reader("x").answer_log(1000) == ([b'{"n":%d}' % n for n in (1, 2, 7, 8)], True)
    with closing(store.writer("x")) as again:
        assert again.last_line == 8


FULL_DISK = "tests.support.programs.transcripts_on_a_full_disk"


def test_a_full_and_a_read_only_disk_cost_lines_but_never_their_numbers(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    private = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if private.returncode != 0:
        pytest.skip("a mount namespace cannot be made here")

    ran = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.stdout == "all held\n", ran.stderr
