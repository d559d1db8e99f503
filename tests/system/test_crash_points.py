"""L8 with a real supervisor: killed at each of its writes in turn, the next one tells the truth and goes on."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_runtime.client import SyncAgentClient
from tests.support.supervised import DEADLINE_SECONDS, Supervised, eventually, marked_processes, supervised
from tests.system.test_load import ENDINGS, lines_in, one_at_a_time

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DYING = (str(Path(__file__).parents[1] / "support/dying_supervisor.py"),)
MOST = 500


def script(home: Path) -> str:
    steps: list[dict[str, Any]] = [
        {"do": "init"},
        {"do": "assistant", "text": "Begun."},
        {"do": "touch", "path": str(home / "begun")},
        {"do": "wait_file", "path": str(home / "go")},
        {"do": "assistant", "text": "Gone on."},
        {"do": "result", "text": "Done."},
    ]
    return json.dumps({"script": steps})


def live_and_die(home: Path, at: int, message: str | None, claude: str) -> tuple[bool, bool]:
    """
    Run a supervisor that dies at a write, and give it something to do.

    Returns:
        Whether it lived to the end, and whether it said that it had let the task in.
    """
    environment = {"DIE_AT": str(at), "DIE_LOG": str(home / f"writes-{at}"), "PYTHONPATH": str(Path.cwd())}
    was_accepted = False
    try:
        with supervised(
            home,
            program=DYING,
            environment=environment,
            claude=claude,
            flags=("--resume-interrupted", "--token-delivery", "env"),
            expect_exit=None,
        ) as running:
            with contextlib.suppress(httpx.HTTPError):
                if message is not None:
                    body = {"message": message, "execution_id": "x", "async_result": True}
                    was_accepted = running.client.post("/api/task", json=body).status_code == 202
                eventually(lambda: running.client.get("/api/executions/x").json()["state"] == "finished")
            lived = running.process.poll() is None and settled(running)
            running.process.send_signal(signal.SIGKILL)
            running.process.wait(DEADLINE_SECONDS)
    except pytest.fail.Exception as error:
        if "exit -9" not in str(error):
            raise
        return False, False
    return lived, was_accepted


def settled(running: Supervised) -> bool:
    """Whether the answer is there, too: the last write of an execution."""
    with contextlib.suppress(httpx.HTTPError):
        return bool(eventually(lambda: running.client.get("/api/executions/x/result").status_code == 200))
    return False


def tells_the_truth(home: Path, message: str, claude: str, *, was_accepted: bool) -> None:
    with supervised(home, claude=claude, flags=("--token-delivery", "env")) as running:
        alive = running.get("/api/executions/running")
        assert (alive["executions"], alive["pending_ids"]) == ([], [])
        assert marked_processes("x") == []
        found = running.client.get("/api/executions/x")
        if found.status_code == 404:
            assert not was_accepted
        else:
            record = found.json()
            assert (record["state"], record["error_class"]) in (("finished", None), ("finished", "interrupted"))
            kept = running.get("/api/executions/x/result")
            assert (kept["status_code"] == 200) == (record["error_class"] is None)
            tasks = list((home / "data" / "tasks").glob("*"))
            assert len(tasks) == (record["error_class"] == "interrupted")
        with SyncAgentClient(running.url) as agent:
            assert agent.run(message, execution_id="x").response in ENDINGS
            ids = [event.id for event in agent.stream("x") if event.name == "message"]
        (transcript,) = (home / "data" / "transcripts").glob("x*.jsonl")
        assert ids == list(range(1, len(lines_in(transcript)) + 1))
        assert list((home / "data" / "tasks").glob("*")) == []
    assert lines_in(home / "twice") == []


@pytest.mark.parametrize("kind", ["the first", "the next"])
def test_a_supervisor_killed_at_any_write_is_followed_by_one_that_tells_the_truth(tmp_path: Path, kind: str) -> None:
    """*the next*: the one that accounts for what a killed one has left, and resumes it."""
    message = script(tmp_path)
    template = tmp_path / "template"
    template.mkdir()
    if kind == "the next":
        with supervised(template, expect_exit=None, flags=("--token-delivery", "env")) as running:
            running.post(message, execution_id="x", async_result=True)
            eventually((tmp_path / "begun").exists)
            running.process.send_signal(signal.SIGKILL)
            running.process.wait(DEADLINE_SECONDS)
    (tmp_path / "go").touch()
    seen: set[str] = set()
    for at in range(1, MOST):
        home = tmp_path / f"home-{at}"
        shutil.copytree(template, home)
        claude = one_at_a_time(home)
        lived, was_accepted = live_and_die(home, at, message if kind == "the first" else None, claude)
        seen |= set(lines_in(home / f"writes-{at}"))
        tells_the_truth(home, message, claude, was_accepted=was_accepted or kind == "the next")
        shutil.rmtree(home)
        if lived:
            break
    else:
        pytest.fail("it never lived to the end")
    writes = {"open .new", "os.rename", "os.remove", "open .jsonl", "lines", "sql BEGIN", "sql INSERT", "sql COMMIT"}
    assert writes <= seen
    assert at > 20
