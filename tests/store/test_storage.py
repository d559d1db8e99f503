"""What the disk does to records and transcripts costs no outcome, and nothing runs twice because of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.supervised import Supervised, eventually, supervised
from tests.system.test_executions import OK, holding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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


@pytest.mark.parametrize("what", ["file", pytest.param("nothing", marks=pytest.mark.slow)])
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_where_no_record_can_be_read_only_tasks_without_an_id_run_until_it_can(tmp_path: Path) -> None:
    tasks = {name: counting(tmp_path, name) for name in ("done", "new")}
    with supervised(tmp_path, expect_exit=None) as running:
        assert running.post(tasks["done"], execution_id="done").status_code == 200
        running.post(holding(tmp_path / "never"), execution_id="cut", async_result=True)
        eventually(lambda: running.record("cut")["state"] == "running")
        running.process.kill()
        running.process.wait()
    database = tmp_path / "data" / "records.sqlite"
    database.rename(tmp_path / "elsewhere")
    database.symlink_to(database)  # as unreadable for root as a broken disk

    with supervised(tmp_path, expect_exit=None) as running:
        for name in ("done", "cut", "unknown"):
            assert is_refused_as_unreadable(running, name, tasks["done"])
        assert running.post(OK).json()["metadata"]["retained"] is False
        listed = running.client.get("/api/executions")
        assert (listed.status_code, listed.json()["error_class"]) == (500, "storage")
        health = running.get("/health")
        assert (health["status"], health["disk"]["error"] is None) == ("degraded", False)
        assert running.client.get("/readyz").status_code == 200

        database.unlink()
        (tmp_path / "elsewhere").rename(database)
        eventually(lambda: running.get("/health")["status"] == "ok")
        cut = eventually(lambda: running.record("cut")["state"] == "finished" and running.record("cut"))
        assert cut["error_class"] == "interrupted"
        assert running.post(tasks["done"], execution_id="done").status_code == 200
        assert running.post(tasks["new"], execution_id="new").json()["metadata"]["retained"] is True
        assert len(running.get("/api/executions")["executions"]) == 4, "what had no id was held and is written"
    assert [runs(tmp_path, name) for name in tasks] == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["emptied", "directory"])
def test_a_database_that_is_gone_is_told_and_no_task_that_ran_runs_again(tmp_path: Path, damage: str) -> None:
    task = counting(tmp_path, "x")
    with supervised(tmp_path) as running:
        assert running.post(task, execution_id="x").status_code == 200
    database = tmp_path / "data" / "records.sqlite"
    if damage == "emptied":
        os.truncate(database, 0)
    else:
        database.unlink()
        database.mkdir()

    for start in range(2):
        with supervised(tmp_path) as running:
            assert is_refused_as_unreadable(running, "x", task)
            assert running.post(OK, execution_id=f"new-{start}").status_code == 200
            disk = running.get("/health")["disk"]
            assert disk["transcripts_without_record"] == 1
            assert len(disk["set_aside"]) == (damage == "directory")
            assert bool(disk["damage"]) == (start == 0)
            told = "x" if start else "records.sqlite"
            assert told in running.log.read_text()
            with running.client.stream("GET", "/api/events", headers={"Last-Event-ID": "1"}) as response:
                seen = next(line for line in response.iter_lines() if "storage.damaged" in line)
            assert seen
    assert runs(tmp_path, "x") == 1


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_database_that_is_deleted_while_it_is_in_use_is_written_again(tmp_path: Path, what: str) -> None:
    data = tmp_path / "data"
    with supervised(tmp_path) as running:
        assert running.post(OK, execution_id="before").status_code == 200
        if what == "directory":
            data.rename(tmp_path / "elsewhere")  # to delete it file by file, while files are made in it, can fail
        else:
            for path in data.glob("records.sqlite*"):
                path.unlink()
        assert running.post(OK, execution_id="after").json()["metadata"]["retained"] is True
        assert "was deleted while it was in use" in eventually(lambda: running.get("/health")["disk"]["damage"])[0]
        assert (data / "records.sqlite").stat().st_mode & 0o777 == 0o600

    with supervised(tmp_path) as running:
        for name in ("before", "after"):
            assert running.get(f"/api/executions/{name}/result")["status"] == "success"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="a small volume takes a mount")
def test_a_full_volume_costs_no_outcome_and_heals(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    mount = 'mount -t tmpfs -o size=6m tmpfs "$1/data" && exec "$2" -W error -m "$3" "$1"'
    program = "tests.support.programs.tasks_on_a_full_volume"
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, program]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])

    assert ran.stdout == "held\n", ran.stderr


@pytest.mark.slow
def test_no_record_says_that_it_runs_where_its_answer_cannot_be_built(tmp_path: Path) -> None:
    flags = ("--token-delivery", "env")  # else the first port that is found may be that of the check on loopback
    with supervised(
        tmp_path,
        program=("-m", "tests.support.programs.unanswerable_supervisor"),
        output=subprocess.DEVNULL,
        flags=flags,
    ) as running:
        answer = running.post(OK, execution_id="x")
        assert (answer.status_code, answer.json()["error_class"]) == (500, "error")
        assert (running.record("x")["state"], running.record("x")["error_class"]) == ("finished", "error")
        assert running.get("/api/executions/x/result")["status_code"] == 500


@pytest.mark.slow
def test_an_end_that_was_in_a_lost_log_is_not_taken_for_an_interruption(tmp_path: Path) -> None:
    go = tmp_path / "go"
    log = tmp_path / "data" / "records.sqlite-wal"
    with supervised(tmp_path, expect_exit=None) as running:
        pending = running.start(holding(go), execution_id="done")
        running.post(holding(tmp_path / "never"), execution_id="cut", async_result=True)
        eventually(lambda: len(running.get("/api/executions/running")["executions"]) == 2)
        eventually(lambda: log.stat().st_size == 0)  # they are in the file itself
        go.touch()
        assert pending.answer().status_code == 200
        running.process.kill()
        running.process.wait()
    log.unlink()

    with supervised(tmp_path) as running:
        assert is_refused_as_unreadable(running, "done", holding(go))
        assert running.record("cut")["error_class"] == "interrupted"
        assert running.get("/health")["disk"]["transcripts_without_record"] == 1


ROOT_WITHOUT_POWERS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
FORBIDDEN: dict[str, tuple[tuple[str, ...], list[str], list[str], str]] = {
    "closed transcripts": (ROOT_WITHOUT_POWERS, ["chmod", "0"], ["chmod", "700"], "transcripts"),
    "closed directory": (ROOT_WITHOUT_POWERS, ["chmod", "0"], ["chmod", "700"], "."),
    "immutable records": ((), ["chattr", "+i"], ["chattr", "-i"], "records.sqlite-wal"),
    "immutable transcript": ((), ["chattr", "+i"], ["chattr", "-i"], "transcripts/x.jsonl"),
}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("chattr") is None, reason="takes root, setpriv and chattr")
@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_success_survives_what_it_may_not_write_or_read(tmp_path: Path, what: str) -> None:
    prefix, forbid, allow, name = FORBIDDEN[what]
    go = tmp_path / "go"
    with supervised(tmp_path, prefix=prefix) as running:
        pending = running.start(holding(go), execution_id="x")
        transcript = running.data_dir / "transcripts" / "x.jsonl"
        eventually(lambda: transcript.exists() and transcript.stat().st_size)
        if subprocess.run([*forbid, running.data_dir / name], capture_output=True, check=False).returncode:
            go.touch()
            pending.answer()
            pytest.skip("this file system has no such attribute")
        try:
            go.touch()
            answer = pending.answer().json()
            assert (answer["response"], answer["metadata"]["retained"]) == ("Done.", False)
            assert answer["truncated_log"] is (what != "immutable records")
            assert running.record("x")["outcome"] == "success"
            assert running.post(holding(go), execution_id="x").json()["response"] == "Done."
            assert running.post(OK).status_code == 200
        finally:
            subprocess.run([*allow, running.data_dir / name], check=True)
        eventually(lambda: running.get("/health")["status"] == "ok")
    with supervised(tmp_path, prefix=prefix) as running:
        assert running.record("x")["outcome"] == "success"
