"""What becomes of executions when their supervisor ends and another one takes over its directories."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from agent_runtime.client import SyncAgentClient
from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, serve
from tests.support.supervised import DEADLINE_SECONDS, OLD, Supervised, eventually, marked_processes, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--uts", "--kill-child")
"""Its own process ids and host name; who ends it ends all that is in it."""


def can_make_containers() -> bool:
    try:
        return subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


needs_containers = pytest.mark.skipif(not can_make_containers(), reason="namespaces cannot be made here")


def interrupted_once(path: Path) -> str:
    """Hang in the first process, and finish in the one that resumes it."""
    steps = [
        {"do": "init"},
        {"do": "assistant", "text": "Begun."},
        {"do": "touch", "path": str(path)},
        {"do": "hang", "when": "first"},
        {"do": "result", "text": "Resumed."},
    ]
    return json.dumps({"script": steps})


def kill(running: Supervised) -> None:
    running.process.send_signal(signal.SIGKILL)
    running.process.wait(DEADLINE_SECONDS)


def has_ended_with(running: Supervised, execution_id: str, outcome: str) -> bool:
    return bool(running.record(execution_id)["outcome"] == outcome)


def killed_with(home: Path, names: list[str], flags: tuple[str, ...] = ()) -> None:
    """Leave executions behind that a killed supervisor had running."""
    with supervised(home, flags=flags, expect_exit=None) as running:
        for name in names:
            running.post(interrupted_once(home / name), execution_id=name, async_result=True)
        eventually(lambda: all((home / name).exists() for name in names))
        kill(running)


@pytest.mark.slow
def test_what_was_interrupted_goes_on_as_soon_as_there_is_a_token(tmp_path: Path) -> None:
    killed_with(tmp_path, ["cut"])
    (tmp_path / "secret" / "token").unlink()
    with supervised(tmp_path, token=None, flags=("--resume-interrupted",)) as running:
        assert running.record("cut")["error_class"] == "interrupted"

        running.write_token(OLD)

        eventually(lambda: has_ended_with(running, "cut", "success"))


@pytest.mark.slow
def test_of_what_was_interrupted_all_goes_on_though_fewer_find_room_at_once(tmp_path: Path) -> None:
    names = [f"cut-{n}" for n in range(4)]
    killed_with(tmp_path, names, flags=("--slots", "4"))
    with supervised(tmp_path, flags=("--slots", "1", "--queue", "1", "--resume-interrupted")) as running:
        for name in names:
            eventually(partial(has_ended_with, running, name, "success"))


@pytest.mark.slow
def test_a_task_that_was_left_behind_without_being_interrupted_is_not_run_again(tmp_path: Path) -> None:
    """Its supervisor was killed between the two writes that end it, or begin it."""
    count = tmp_path / "count"
    script = json.dumps({"script": [{"do": "touch", "path": str(count)}, {"do": "init"}, {"do": "exit"}]})
    with supervised(tmp_path) as running:
        assert running.post(script, execution_id="failed").json()["error_class"] == "lost_result"
        tasks = running.data_dir / "tasks"
        for name in ("failed", "never-let-in"):
            kept = {"message": script, "execution_id": name}
            (tasks / f"{name.encode().hex()}.json").write_text(json.dumps(kept))
        (tasks / "6162.new").write_text("{")
    begun = len(count.read_text().splitlines())

    with supervised(tmp_path, flags=("--resume-interrupted",)) as running:
        assert list(tasks.iterdir()) == []
        assert running.client.get("/api/executions/never-let-in").status_code == 404
        assert running.record("failed")["error_class"] == "lost_result"
    assert len(count.read_text().splitlines()) == begun


def init_of(running: Supervised) -> psutil.Process:
    """Find PID 1 of a container, which is the supervisor."""
    (init,) = psutil.Process(running.process.pid).children()
    return init


@contextlib.contextmanager
def in_a_new_container(home: Path, host_name: str, **options: Any) -> Iterator[Supervised]:
    """Run a supervisor in process and host name space of its own, as PID 1."""
    named = ("sh", "-c", 'hostname "$0" && exec "$@"', host_name)
    with supervised(home, prefix=(*CONTAINER, *named), expect_exit=None, **options) as running:
        yield running
        if running.process.poll() is None:
            init_of(running).send_signal(signal.SIGTERM)
            assert running.process.wait(DEADLINE_SECONDS) == 0


@pytest.mark.slow
@needs_containers
@pytest.mark.parametrize("flags", [(), ("--resume-interrupted",)], ids=["asked again", "by itself"])
def test_a_new_container_on_the_same_volumes_goes_on_with_the_session(tmp_path: Path, flags: tuple[str, ...]) -> None:
    with in_a_new_container(tmp_path, "first") as running:
        running.post(interrupted_once(tmp_path / "begun"), execution_id="moved", async_result=True)
        eventually((tmp_path / "begun").exists)
        session_id = running.record("moved")["session_id"]
        kill(running)
    eventually(lambda: not marked_processes("moved"))

    with in_a_new_container(tmp_path, "second", flags=flags) as running:
        with SyncAgentClient(running.url) as agent:
            answer = agent.run(interrupted_once(tmp_path / "begun"), execution_id="moved")

        record = running.record("moved")
        assert (answer.response, answer.session_id, record["session_id"]) == ("Resumed.", session_id, session_id)
        assert len(record["attempts"]) == 2


@needs_containers
@pytest.mark.slow
@pytest.mark.every_cli
@pytest.mark.real_cli
def test_a_new_container_goes_on_with_the_session_of_the_real_cli(tmp_path: Path, claude: str) -> None:
    api = MessagesApi()
    api.accept(OLD)
    # The tool that was cut off is called again by the API where the CLI tells it nothing of the first call.
    command = f"test -e {tmp_path}/began && exit; touch {tmp_path}/began; sleep 60"
    api.script("long", Tool(command=command), Text(text="Finished."))
    task = "[[script:long]] Do it."
    with serve(api) as url:
        with in_a_new_container(tmp_path, "first", api_url=url, claude=claude) as running:
            running.post(task, execution_id="moved", async_result=True)
            eventually((tmp_path / "began").exists)
            session_id = running.record("moved")["session_id"]
            kill(running)
        eventually(lambda: not marked_processes("moved"))

        with in_a_new_container(
            tmp_path, "second", api_url=url, claude=claude, flags=("--resume-interrupted",)
        ) as running:
            with SyncAgentClient(running.url) as agent:
                answer = agent.run(task, execution_id="moved")

            record = running.record("moved")
            assert (answer.status, record["session_id"], len(record["attempts"])) == ("success", session_id, 2)
            asked = [request for request in api.requests if request.status == 200 and not request.aside]
            assert asked[-1].script == "long", "the conversation does not know its first prompt"
