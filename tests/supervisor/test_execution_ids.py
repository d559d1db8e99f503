"""Ids of executions as backends make them: which are taken, and that each is only ever a name."""

from __future__ import annotations

import base64
import json
import os
import secrets
from typing import TYPE_CHECKING

import pytest

from agent_runtime.cli.main import main
from agent_runtime.errors import InvalidRequest
from agent_runtime.model.task_reading import parse
from tests.support.supervised import Supervised, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OK = {"script": [{"do": "init"}, {"do": "assistant", "text": "Hello."}, {"do": "result", "text": "Hello."}]}
TAKEN = ["-", "_", "--", "-rf", "--help", "--json", "_x", "-..", "--version", "-1", "-Zm9vLWJhcl9iYXo_-x", "a:b.c-d_e"]
REFUSED = ["", ".", "..", ".x", ":x", "a/b", "-/..", "a b", "-\n", "x\n", "é", "running", "_" * 129]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("ids")) as running:
        yield running


def test_every_id_that_secrets_makes_is_taken() -> None:
    for _ in range(2000):
        execution_id = secrets.token_urlsafe(16)
        task, _ = parse(json.dumps({"message": "x", "execution_id": execution_id}).encode(), strict=True)
        assert task.execution_id == execution_id


@pytest.mark.parametrize("execution_id", REFUSED)
def test_an_id_that_could_be_more_than_a_name_is_refused(execution_id: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^execution_id: "):
        parse(json.dumps({"message": "x", "execution_id": execution_id}).encode(), strict=True)


@pytest.mark.parametrize("execution_id", TAKEN)
def test_an_id_may_begin_with_a_dash_or_an_underscore(shared: Supervised, execution_id: str) -> None:
    answer = shared.post(OK, execution_id=execution_id)

    assert (answer.status_code, answer.json()["execution_id"]) == (200, execution_id)
    path = f"/api/executions/{execution_id}"
    assert shared.get(path)["execution_id"] == shared.get(f"{path}/status")["execution_id"] == execution_id
    assert shared.get(f"{path}/result")["answer"] == shared.post(OK, execution_id=execution_id).json()
    assert "event: end" in shared.client.get(f"{path}/stream").text
    assert shared.client.post(f"{path}/terminate").json()["status"] == "already_finished"
    assert execution_id in shared.get("/api/executions/running")["recently_completed_ids"]
    assert (shared.data_dir / "transcripts" / f"{execution_id}.jsonl").is_file()
    assert {path.name for path in shared.home.iterdir()} == {
        *("secret", "workspace", "data", "config", "home", "supervisor.log")
    }


@pytest.mark.parametrize("words", [("--execution-id", "-x"), ("--execution-id=--json",), ("--execution-id", "--y")])
def test_run_takes_such_an_id(shared: Supervised, words: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--url", shared.url, json.dumps(OK), *words, "--detach"]) == 0

    execution_id = words[-1].removeprefix("--execution-id=")
    assert capfd.readouterr().out == f"{execution_id}\n"
    assert shared.record(execution_id)["execution_id"] == execution_id


def test_images_of_ten_megabytes_reach_the_cli(shared: Supervised, tmp_path: Path) -> None:
    image = {"media_type": "image/png", "data": base64.b64encode(os.urandom(10 * 1024 * 1024)).decode()}
    script = {"script": [{"do": "init"}, {"do": "report", "path": str(tmp_path / "given")}, {"do": "result"}]}

    answer = shared.post(script, images=[image])

    assert answer.status_code == 200, answer.text
    assert json.loads((tmp_path / "given").read_text())["images"] == ["image/png"]


def test_the_longest_body_is_a_setting(tmp_path: Path) -> None:
    with supervised(tmp_path, environment={"AGENT_RUNTIME_BODY_LIMIT": "5000"}) as running:
        exact = running.client.post("/api/task", content=json.dumps({"message": ""}) + " " * (5000 - 15))
        longer = running.client.post("/api/task", content=json.dumps({"message": ""}) + " " * (5000 - 14))
        in_pieces = running.client.post("/api/task", content=iter([b"x" * 3000, b"x" * 3000]))

        assert exact.status_code == 400, exact.text
        for refused in (longer, in_pieces):
            assert (refused.status_code, refused.json()["error_class"]) == (413, "too_large")
            assert "5000 bytes" in refused.json()["detail"]
