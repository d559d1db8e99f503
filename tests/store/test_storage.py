"""What the disk does to records and transcripts costs no outcome, and nothing runs twice because of it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING

import pytest

from tests.support.supervised import Supervised, eventually, supervised
from tests.system.test_executions import OK, holding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


# -- a transcript that cannot be written or read


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("shared")) as running:
        yield running


def directory_for_both(transcript: Path) -> None:
    for path in (transcript, transcript.with_suffix(".idx")):
        path.unlink()
        path.mkdir()


def directory_for_data(transcript: Path) -> None:
    transcript.unlink()
    transcript.mkdir()


def pipe_for_data(transcript: Path) -> None:
    transcript.unlink()
    os.mkfifo(transcript)


def garbled(transcript: Path) -> None:
    transcript.write_bytes(bytes(byte ^ 0x55 if byte != 0x0A else byte for byte in transcript.read_bytes()))


def emptied(transcript: Path) -> None:
    transcript.write_bytes(b"")


def gone(transcript: Path) -> None:
    transcript.unlink()
    transcript.with_suffix(".idx").unlink()


@pytest.mark.parametrize("damage", [directory_for_both, directory_for_data, pipe_for_data, garbled, emptied, gone])
def test_a_success_survives_its_transcript(shared: Supervised, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    name, go = damage.__name__, tmp_path / "go"
    pending = shared.start(holding(go), execution_id=name)
    transcript = shared.data_dir / "transcripts" / f"{name}.jsonl"
    eventually(lambda: transcript.exists() and transcript.stat().st_size)

    damage(transcript)
    go.touch()
    answer = pending.answer().json()

    assert (answer.get("response"), answer.get("truncated_log")) == ("Done.", True), answer
    assert answer["metadata"]["retained"] is (damage is emptied)  # its last lines were kept
    assert shared.record(name)["outcome"] == "success"
    assert shared.get(f"/api/executions/{name}/result")["answer"] == answer
    assert shared.post(holding(go), execution_id=name).json() == answer, "it ran again"
    with shared.client.stream("GET", f"/api/executions/{name}/stream") as response:
        assert "stream_end" in response.read().decode()


@pytest.mark.parametrize("what", ["file", "nothing"])
def test_executions_go_on_without_a_directory_of_transcripts(tmp_path: Path, what: str) -> None:
    go = tmp_path / "go"
    with supervised(tmp_path) as running:
        pending = running.start(holding(go), execution_id="before")
        transcripts = running.data_dir / "transcripts"
        eventually(lambda: (transcripts / "before.jsonl").exists() and (transcripts / "before.jsonl").stat().st_size)
        transcripts.rename(running.data_dir / "moved")
        if what == "file":
            transcripts.touch()
        go.touch()

        assert pending.answer().json()["response"] == "Done."
        answer = running.post(OK, execution_id="after").json()
        assert (answer["status"], answer["truncated_log"]) == ("success", what == "file")
        assert running.get("/health")["disk"]["free_bytes"] > 0
        assert running.client.get("/metrics").status_code == 200


# -- what cannot be read is not unknown


def counting(home: Path, name: str) -> dict[str, object]:
    """Return a task that leaves a line in a file each time it runs."""
    touch = {"do": "touch", "path": str(home / f"runs-{name}")}
    return {"script": [{"do": "init"}, touch, {"do": "assistant", "text": "Hello."}, {"do": "result", "text": "Done."}]}


def runs(home: Path, name: str) -> int:
    return len((home / f"runs-{name}").read_text().splitlines())


def is_refused_as_unreadable(running: Supervised, execution_id: str, task: dict[str, object]) -> bool:
    """Whether a task under this id is turned away, and questions for it are not answered with "unknown"."""
    posted = running.post(task, execution_id=execution_id)
    asked = [running.client.get(f"/api/executions/{execution_id}{path}") for path in ("", "/status", "/result")]
    said = [(response.status_code, response.json().get("error_class")) for response in (posted, *asked)]
    return said == [(409, "storage"), *[(500, "storage")] * 3] and int(posted.headers["retry-after"]) > 0


RECORDS: dict[str, object] = {
    "bad-JSON": b"{",
    "no-UTF-8": b'{"detail": "\xff"}',
    "of-a-later-version": b'{"state": "sleeping"}',
    "no-object": b"[1]",
    "a-number": 7,
    "odd-counts": b'{"metadata": {"model_name": 7}}',
    "no-record": None,
}
ANSWERS: dict[str, tuple[object, object]] = {
    "bad-answer": (200, b"{"),
    "text": (200, "{}"),
    "odd-status": ("200 OK", b"{}"),
    "no-answer": (None, None),
}


def test_what_cannot_be_read_of_an_execution_is_not_unknown_and_nothing_runs_again(tmp_path: Path) -> None:
    tasks = {name: counting(tmp_path, name) for name in (*RECORDS, *ANSWERS)}
    with supervised(tmp_path) as running:
        for name, task in tasks.items():
            assert running.post(task, execution_id=name).status_code == 200
        running.post(OK, execution_id="other")
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "records.sqlite")) as connection, connection:
        for name, record in RECORDS.items():
            connection.execute("UPDATE executions SET record = ? WHERE execution_id = ?", (record or b"", name))
        for name, (status_code, answer) in ANSWERS.items():
            values = (status_code or 0, answer or b"", name)
            connection.execute("UPDATE answers SET status_code = ?, answer = ? WHERE execution_id = ?", values)
        connection.execute("DELETE FROM executions WHERE execution_id = 'no-record'")
        connection.execute("DELETE FROM answers WHERE execution_id = 'no-answer'")

    with supervised(tmp_path) as running:
        for name in RECORDS:
            assert is_refused_as_unreadable(running, name, tasks[name]), name
        for name in ANSWERS:
            posted = running.post(tasks[name], execution_id=name)
            assert (posted.status_code, posted.json()["error_class"]) == (409, "storage"), name
            assert posted.headers["retry-after"] == "5"
            assert running.record(name)["outcome"] == "success"
            result = running.client.get(f"/api/executions/{name}/result")
            expected = (404, "not_found") if name == "no-answer" else (500, "storage")
            assert (result.status_code, result.json()["error_class"]) == expected
        assert {running.post(OK, execution_id=name).status_code for name in ("other", "new", None)} == {200}
        listed = {record["execution_id"] for record in running.get("/api/executions")["executions"]}
        assert {"other", "new", *ANSWERS} < listed
        assert not listed & {*RECORDS}
    assert [runs(tmp_path, name) for name in tasks] == [1] * len(tasks)
