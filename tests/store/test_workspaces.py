"""Directories of executions are deleted by descriptor, bit by bit, and with their records only."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from agent_runtime.errors import InvalidRequest, SpawnFailed
from agent_runtime.model.records import ExecutionRecord
from agent_runtime.model.state import Phase
from agent_runtime.model.task import Task
from agent_runtime.settings import Settings
from agent_runtime.store import workspaces as module
from agent_runtime.store.records import RecordStore
from agent_runtime.store.tasks import TaskStore
from agent_runtime.store.transcripts import TranscriptStore
from agent_runtime.store.workspaces import Workspaces
from agent_runtime.supervisor.archive import Archive
from agent_runtime.telemetry.redaction import Redactor

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "workspace" / "executions").mkdir(parents=True)
    return Settings(
        workspace=tmp_path / "workspace", workspaces="per_execution", retain_workspaces=False, retain_age=1.0
    )


def workspaces_of(settings: Settings) -> Workspaces:
    """Make them as a supervisor that starts does."""
    return Workspaces(settings, settings.workspace.parent / "marks")


def made(settings: Settings, *names: str) -> None:
    """Have own directories made, as executions that start do."""
    for name in names:
        os.close(workspaces_of(settings).open(Task(message="x"), name, f"executions/{name}"))


def all_deleted(workspaces: Workspaces) -> int:
    """Delete until nothing is left; return in how many turns."""
    turns = 0
    while workspaces.has_retired:
        workspaces.delete_some()
        turns += 1
        assert turns < 1000
    return turns


def test_a_directory_is_deleted_whatever_an_agent_has_left_in_it(settings: Settings, tmp_path: Path) -> None:
    outside, own = tmp_path / "outside", settings.workspace / "executions" / "one"
    (outside / "kept").mkdir(parents=True)
    made(settings, "one")
    (own / "shut" / "below").mkdir(parents=True)
    (own / "shut" / "below" / "file").touch()
    os.mkfifo(own / "fifo")
    (own / "file").touch(mode=0o000)
    for name in ("link", ".hidden", "shut/link"):
        (own / name).symlink_to(outside)
    place = os.open(own, os.O_PATH)
    for _ in range(1100):  # deeper than a recursion can follow
        os.mkdir("deep", dir_fd=place)
        below = os.open("deep", os.O_PATH, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    for path in (own / "shut" / "below", own / "shut", own):
        path.chmod(0o500)
    (settings.workspace / "executions" / "other").mkdir()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    try:
        workspaces = workspaces_of(settings)
        workspaces.retire("one")
        workspaces.retire("never-made")
        assert not own.exists()
        all_deleted(workspaces)
        left = sorted(str(path.relative_to(own.parent)) for path in own.parent.rglob("*"))
    finally:
        subprocess.run(["rm", "-rf", own, own.with_name(".retired")], check=True)  # which pytest cannot

    assert left == [".retired", "other"]
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_no_link_in_place_of_a_directory_leads_the_deletion_out(settings: Settings, tmp_path: Path) -> None:
    outside, executions = tmp_path / "outside", settings.workspace / "executions"
    for name in ("one", "two"):
        (outside / name).mkdir(parents=True)
        (outside / name / "kept").touch()
    workspaces = workspaces_of(settings)
    made(settings, "one", "two")
    (executions / "one").rmdir()
    (executions / "one").symlink_to(outside / "one")
    workspaces.retire("one")
    (executions / ".retired").rmdir()
    (executions / ".retired").symlink_to(outside)
    workspaces.retire("two")
    workspaces.delete_some()
    (executions / ".retired").unlink()
    executions.rename(settings.workspace / "moved")
    executions.symlink_to(outside)
    workspaces.retire("two")
    workspaces.delete_some()

    assert sorted(path.name for path in outside.rglob("*")) == ["kept", "kept", "one", "two"]


def test_a_deletion_takes_turns_and_goes_on_after_a_restart(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = settings.workspace / "executions" / "one"
    made(settings, "one")
    for number in range(300):
        (own / f"d{number}").mkdir(parents=True)
    monkeypatch.setattr(module, "_DELETE_SECONDS", 0.0)
    workspaces = workspaces_of(settings)
    workspaces.retire("one")
    workspaces.delete_some()
    assert len(list((settings.workspace / "executions" / ".retired").rglob("*"))) > 100
    monkeypatch.undo()

    all_deleted(workspaces_of(settings))
    assert list((settings.workspace / "executions" / ".retired").iterdir()) == []


def test_a_directory_goes_with_its_record_and_with_no_other(settings: Settings, tmp_path: Path) -> None:
    executions = settings.workspace / "executions"
    with RecordStore(tmp_path / "records.sqlite") as records:
        workspaces = workspaces_of(settings)
        tasks = TaskStore(tmp_path / "tasks", Redactor())
        archive = Archive(records, TranscriptStore(tmp_path / "transcripts"), tasks, workspaces, settings)
        now = time.time()

        def ended(execution_id: str, cwd: str | None, *, ago: float) -> None:
            if cwd == f"executions/{execution_id}":
                made(settings, execution_id)
            elif cwd is not None:
                (settings.workspace / cwd).mkdir(parents=True, exist_ok=True)
            at = now - ago
            record = ExecutionRecord(
                execution_id=execution_id, created_at=at, ended_at=at, state=Phase.FINISHED, cwd=cwd
            )
            records.save(record)

        ended("shared", None, ago=100)
        ended("named", "given", ago=100)
        ended("alone", "executions/alone", ago=100)
        ended("resumed", "executions/resumed", ago=100)
        ended("resumed.2", "executions/resumed", ago=0)
        ended("used", "executions/used", ago=100)
        ended("below", "executions/used/below", ago=0)
        ended("new", "executions/new", ago=0)
        (executions / "never-ours").mkdir()
        archive.prune(in_use=frozenset())
        all_deleted(workspaces)
        assert records.ids() == {"resumed", "resumed.2", "used", "below", "new"}
        assert {path.name for path in executions.iterdir()} - {".retired"} == {"resumed", "used", "new", "never-ours"}
        assert (settings.workspace / "given").is_dir()

        keeping = Settings(workspace=settings.workspace, workspaces="per_execution", retain_age=1.0)
        ended("kept", "executions/kept", ago=100)
        archive.settings = keeping
        archive.prune(in_use=frozenset())
        assert "kept" not in records.ids()
        assert (executions / "kept").is_dir()
        assert not workspaces_of(keeping).has_retired
        assert len(list((tmp_path / "marks").iterdir())) == 1  # of the new one


@pytest.mark.parametrize(
    ("named", "stays"),
    [
        ({"cwd": "executions/one"}, True),
        ({"cwd": "executions/one/below"}, True),
        ({"cwd": "executions/one/new", "create_cwd": True}, True),
        ({"cwd": "link/below"}, True),
        ({"add_dirs": ["link"]}, True),
        ({"add_dirs": ["executions/one/below"]}, True),
        ({"cwd": "executions"}, False),
        ({"cwd": "executions/other", "add_dirs": ["."]}, False),
        ({}, False),
    ],
)
def test_a_directory_that_a_task_has_named_stays_for_ever(
    settings: Settings, named: dict[str, Any], stays: bool
) -> None:
    executions = settings.workspace / "executions"
    made(settings, "one", "other")
    (executions / "one" / "below").mkdir()
    (settings.workspace / "link").symlink_to("executions/one")
    workspaces, task = workspaces_of(settings), Task(message="x", **named)
    if named.get("create_cwd"):
        os.close(workspaces.open(task, "by", task.cwd))
    assert workspaces.obstacle(task) is None  # as when it is posted
    workspaces_of(settings).retire("one")
    assert (executions / "one").exists() == stays


def test_only_a_directory_that_was_made_for_its_execution_is_deleted(settings: Settings, tmp_path: Path) -> None:
    executions, workspaces = settings.workspace / "executions", workspaces_of(settings)
    for name in ("before", "swapped.theirs"):
        (executions / name).mkdir(mode=0o750)
    made(settings, "before", "swapped", "retried", "retried")
    for name, theirs in (("by-named", "by-named"), ("by-other", "x")):
        named = Task(message="x", cwd=f"executions/{name}", create_cwd=True)
        os.close(workspaces.open(named, theirs, named.cwd))
        made(settings, name)
    (executions / "swapped").rename(tmp_path / "swapped")
    (executions / "swapped.theirs").rename(executions / "swapped")
    marks = set((tmp_path / "marks").iterdir())
    made(settings, "crashed")
    [mark] = set((tmp_path / "marks").iterdir()) - marks
    mark.write_bytes(b"")  # as a crash of the machine may leave it
    for name in ("crashed", "before", "swapped", "retried", "by-named", "by-other", "never"):
        workspaces.retire(name)
    assert stat.S_IMODE((executions / "before").stat().st_mode) == 0o750
    left = {path.name for path in executions.iterdir()} - {".retired"}
    assert left == {"crashed", "before", "swapped", "by-named", "by-other"}


@pytest.mark.parametrize("path", ["executions/.retired", "executions/.retired/x", "link", "link/x", "up/.retired/x"])
@pytest.mark.parametrize("is_there", [True, False])
def test_no_task_is_given_what_is_being_deleted(settings: Settings, path: str, is_there: bool) -> None:
    workspaces, retired = workspaces_of(settings), settings.workspace / "executions" / ".retired"
    (settings.workspace / "link").symlink_to("executions/.retired")
    (settings.workspace / "up").symlink_to("executions")
    if is_there:
        (retired / "x").mkdir(parents=True)
    task = Task(message="x", cwd=path, create_cwd=True)
    with pytest.raises(InvalidRequest, match=r"^cwd: what is in executions/\.retired is being deleted"):
        os.close(workspaces.open(task, "one", path))
    with pytest.raises(InvalidRequest, match=r"^add_dirs: what is in executions/\.retired is being deleted"):
        workspaces.added_directories(Task(message="x", add_dirs=[path]))
    refusal = workspaces.obstacle(task)
    assert "is being deleted" in str(refusal)


def test_a_link_that_was_put_in_place_of_an_own_directory_is_not_followed(settings: Settings) -> None:
    workspaces, task = workspaces_of(settings), Task(message="x")
    (settings.workspace / "theirs").mkdir()
    (settings.workspace / "executions" / "planted").symlink_to("../theirs")
    with pytest.raises(SpawnFailed, match="its directory cannot be opened: Not a directory"):
        workspaces.open(task, "planted", "executions/planted")
    os.close(workspaces.open(task, "made", "executions/made"))
    assert (settings.workspace / "executions" / "made").is_dir()
    assert list((settings.workspace / "theirs").iterdir()) == []


def test_a_directory_that_a_session_needs_and_is_gone_is_told_by_the_field_that_names_it(settings: Settings) -> None:
    task = Task(message="x", resume_session_id=UUID(int=1))
    with pytest.raises(InvalidRequest, match=r"^resume_session_id: there is no such directory"):
        workspaces_of(settings).open(task, "later", "executions/gone")
