"""Tasks of unfinished executions come back as they were posted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent_runtime.model.task import Task
from agent_runtime.model.tokens import Token
from agent_runtime.store.tasks import TaskStore
from agent_runtime.telemetry.redaction import Redactor

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = Token("sk-ant-oat01-a-token-of-this-test-0000000000001")


@pytest.mark.parametrize("own_id", [None, "mine"])
def test_a_task_comes_back_under_its_id_whether_the_caller_or_the_supervisor_made_it(
    tmp_path: Path, own_id: str | None
) -> None:
    store = TaskStore(tmp_path, Redactor([TOKEN]))
    task = Task(message=f"use {TOKEN.secret}", execution_id=own_id, fresh_session=True, max_turns=3)
    store.save("mine", store.prepare(task, []).content)

    (found,) = TaskStore(tmp_path, Redactor()).load_all()
    assert (found.execution_id, found.fresh_session, found.max_turns) == ("mine", None, 3)
    assert TOKEN.secret not in found.message
    assert [*store.ids()] == ["mine"]


def test_the_digest_of_a_prepared_task_is_that_of_the_task(tmp_path: Path) -> None:
    task = Task(message="x", execution_id="mine")
    prepared = TaskStore(tmp_path, Redactor()).prepare(task, ["other"])
    assert prepared.task.digest == Task(message="x").digest
    assert prepared.ignored_fields == ["other"]


@pytest.mark.parametrize("length", [1, 122, 123, 124, 127, 128])
@pytest.mark.parametrize("letter", ["a", "A", "_", ":"])
def test_a_task_is_kept_whatever_the_length_of_its_id(tmp_path: Path, length: int, letter: str) -> None:
    execution_id = letter * (length - 1) + "Z"
    store = TaskStore(tmp_path, Redactor())
    store.save(execution_id, store.prepare(Task(message="x"), []).content)

    assert list(store.ids()) == [execution_id]
    assert [task.execution_id for task in store.load_all()] == [execution_id]
    store.delete(execution_id)
    assert list(store.ids()) == []
