"""Whatever stands in place of a file that the supervisor keeps: nothing waits for ever, and a restart goes on."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_runtime.delivery.reload_results import ReloadResults
from agent_runtime.errors import CannotStart
from agent_runtime.model.records import ExecutionRecord
from agent_runtime.model.state import Phase
from agent_runtime.model.tokens import Token
from agent_runtime.secret.generations import GenerationLedger
from agent_runtime.serve.bootstrap import _locked
from agent_runtime.store.records import RecordStore
from agent_runtime.store.tasks import TaskStore
from agent_runtime.telemetry.redaction import Redactor
from tests.support.supervised import Supervised, supervised
from tests.system.test_executions import OK

if TYPE_CHECKING:
    from collections.abc import Callable


def directory(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def socket_file(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as made:
        made.bind(str(path))


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


OBSTACLES = [directory, pipe, socket_file, link_to_itself, link_to_nothing]
every_obstacle = pytest.mark.parametrize("put", OBSTACLES, ids=lambda put: put.__name__)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The name of a socket must be short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@every_obstacle
@pytest.mark.parametrize("suffix", ["sqlite-wal", "sqlite-journal", "note"])
def test_beside_the_records_it_is_set_aside_or_replaced_and_the_records_stay(
    place: Path, put: Callable[[Path], None], suffix: str
) -> None:
    path, obstacle = place / "records.sqlite", place / f"records.{suffix}"
    before, new = (ExecutionRecord(execution_id=name, created_at=1.0, state=Phase.FINISHED) for name in ("x", "y"))
    with RecordStore(path) as store:
        store.save(before)
    obstacle.unlink(missing_ok=True)
    put(obstacle.relative_to(place))

    with RecordStore(path) as store:
        store.save(new)
        assert (store.load("x"), store.load("y"), store.trouble) == (before, new, None)
        assert len(store.damage) == ("sqlite" in suffix)
    with RecordStore(path) as store:
        assert (store.load("y"), store.damage) == (new, [])


@every_obstacle
def test_in_place_of_the_generations_it_costs_their_numbers_at_most(place: Path, put: Callable[[Path], None]) -> None:
    put(Path("generations.json"))
    ledger = GenerationLedger(place)

    assert ledger.number_of(Token("sk-ant-oat01-made-up-for-tests")) == 1
    assert ledger.save() == (put is not directory), "only a directory cannot be replaced"
    assert GenerationLedger(place).current == (put is not directory)


@every_obstacle
def test_in_place_of_a_task_it_costs_its_resumption_at_most(place: Path, put: Callable[[Path], None]) -> None:
    (place / "tasks").mkdir()
    put(Path("tasks", "78.json"))
    tasks = TaskStore(place / "tasks", Redactor())
    assert [task.message for task in tasks.load_all()] == []

    tasks.save("x", b'{"message": "Hello."}')

    assert [task.message for task in tasks.load_all()] == ([] if put is directory else ["Hello."])


def test_what_a_crash_left_of_a_task_is_deleted(tmp_path: Path) -> None:
    tasks = TaskStore(tmp_path, Redactor())
    tasks.save("x", b'{"message": "Hello."}')
    for name in (".0123456789abcdef.new", "79.json.new"):
        (tmp_path / name).write_bytes(b'{"mess')

    assert list(tasks.ids()) == ["x"]
    assert [path.name for path in tmp_path.iterdir()] == ["78.json"]


@every_obstacle
def test_in_place_of_the_results_of_reload_checks_it_costs_another_check(
    place: Path, put: Callable[[Path], None]
) -> None:
    put((place / "proofs.json").relative_to(place))

    assert ReloadResults(place, place / "built-in")._stored.facts == {}


@every_obstacle
def test_in_place_of_the_lock_it_is_a_lock_as_well_or_named(place: Path, put: Callable[[Path], None]) -> None:
    put((place / "lock").relative_to(place))

    if put in {directory, pipe}:
        with _locked(place / "lock", "VARIABLE"), pytest.raises(CannotStart, match="another supervisor uses"):
            ExitStack().enter_context(_locked(place / "lock", "VARIABLE"))
    else:
        with pytest.raises(CannotStart, match="lock there is not a file: remove it"):
            ExitStack().enter_context(_locked(place / "lock", "VARIABLE"))


@pytest.mark.slow
def test_a_supervisor_starts_and_works_whatever_an_agent_has_put_there(place: Path) -> None:
    with supervised(place) as running:
        assert running.post(OK, execution_id="before").status_code == 200
    data = running.data_dir
    for name, put in {
        "run": pipe,
        "generations.json": pipe,
        "proofs.json": link_to_nothing,
        "records.sqlite-wal": pipe,
        "records.sqlite-journal": link_to_nothing,
        "records.note": pipe,
    }.items():
        path = data / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        put(path)

    with supervised(place) as running:
        assert running.post(OK, execution_id="after").status_code == 200
        assert running.record("before")["outcome"] == "success"
        assert running.get("/health")["status"] == "ok"


@pytest.mark.slow
def test_records_of_a_later_version_are_told_with_it_and_stay_as_they_are(tmp_path: Path) -> None:
    def version(running: Supervised, number: int) -> None:
        with closing(sqlite3.connect(running.data_dir / "records.sqlite")) as connection:
            connection.execute(f"PRAGMA user_version = {number}")

    with supervised(tmp_path) as running:
        assert running.post(OK, execution_id="x").status_code == 200
    with closing(RecordStore(running.data_dir / "records.sqlite")) as store:
        known = int(store._rows("PRAGMA user_version")[0][0])
    version(running, 77)
    content = (running.data_dir / "records.sqlite").read_bytes()

    with supervised(tmp_path) as running:
        health = running.get("/health")
        assert health["status"] == "degraded"
        assert "later version of agent-runtime" in health["disk"]["error"]
        assert "77" in health["disk"]["error"]
        assert running.client.get("/readyz").status_code == 200
        posted, asked = running.post(OK, execution_id="x"), running.client.get("/api/executions/x")
        assert [(one.status_code, one.json()["error_class"]) for one in (posted, asked)] == [
            (409, "storage"),
            (500, "storage"),
        ]
        assert running.post(OK).json()["metadata"]["retained"] is False
    assert (running.data_dir / "records.sqlite").read_bytes() == content

    version(running, known)
    with supervised(tmp_path) as running:
        assert running.record("x")["outcome"] == "success"
        assert running.get("/health")["status"] == "ok"
