"""A config directory that is removed while executions run costs its sessions, and nothing else for long."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, serve
from tests.support.supervised import NEW, OLD, eventually, supervised
from tests.system.test_executions import OK, holding

if TYPE_CHECKING:
    from pathlib import Path


def remove(directory: Path) -> None:
    """Remove a directory by one rename first, so that no file written into it meanwhile can stop the removal."""
    shutil.rmtree(directory.rename(directory.with_name("removed")), ignore_errors=True)


@pytest.mark.parametrize("delivery", ["env", pytest.param("file", marks=pytest.mark.slow)])
def test_after_the_config_directory_was_removed_the_next_execution_has_one_again(tmp_path: Path, delivery: str) -> None:
    go = tmp_path / "go"
    with supervised(tmp_path, flags=("--token-delivery", delivery)) as running:
        running.post(holding(go), execution_id="held", async_result=True)
        eventually(lambda: running.record("held")["state"] == "running")
        remove(tmp_path / "config")
        go.touch()

        eventually(lambda: running.record("held")["state"] == "finished")
        assert running.record("held")["outcome"] == "success"
        remove(tmp_path / "config")  # the CLI may have made it again
        assert running.post(OK).json()["status"] == "success"
        assert (tmp_path / "config").stat().st_mode & 0o777 == 0o700
        running.write_token(NEW)
        eventually(lambda: running.get("/api/token")["generation"] == 2)
        assert running.post(OK).json()["metadata"]["token_generation"] == 2
        assert running.get("/health")["status"] == "ok"
        assert "was made again" in running.log.read_text()


@pytest.mark.slow
def test_what_cannot_be_made_again_is_told_at_each_spawn(tmp_path: Path) -> None:
    with supervised(tmp_path, flags=("--token-delivery", "file")) as running:
        assert running.post(OK).status_code == 200
        remove(tmp_path / "config")
        (tmp_path / "config").touch()

        answer = running.post(OK)
        assert (answer.status_code, answer.json()["error_class"]) == (500, "spawn")
        assert "Not a directory" in answer.json()["detail"]
        assert running.get("/health")["status"] == "degraded"

        (tmp_path / "config").unlink()
        assert running.post(OK).status_code == 200
        assert running.get("/health")["status"] == "ok"


@pytest.mark.slow
@pytest.mark.real_cli
@pytest.mark.newest_cli
@pytest.mark.parametrize("delivery", ["env", "file"])
def test_the_real_cli_survives_the_removal_of_its_config_directory(tmp_path: Path, claude: str, delivery: str) -> None:
    api, go, began = MessagesApi(), tmp_path / "go", tmp_path / "began"
    api.accept(OLD)
    wait = f"touch {began}; for i in $(seq 1200); do test -e {go} && exit 0; sleep 0.05; done; exit 1"
    api.script("long", Tool(command=wait), Text(text="finished"))
    flags = ("--token-delivery", delivery)
    with serve(api) as url, supervised(tmp_path, api_url=url, claude=claude, flags=flags) as running:
        pending = running.start("[[script:long]] Do it.", execution_id="long")
        eventually(began.exists)
        remove(tmp_path / "config")
        go.touch()

        first = pending.answer().json()
        assert first["status"] == "success", first
        if delivery == "env":
            assert (first["response"], first["metadata"]["attempts"]) == ("finished", 1)
        # Under file its login is gone with the directory: it is ended as refused, and goes on in a second attempt.
        assert first["metadata"]["attempts"] <= 2
        assert running.post("Say hello.").json()["status"] == "success"
        assert running.get("/api/token")["state"] == "ready"
        assert running.get("/health")["status"] == "ok"
