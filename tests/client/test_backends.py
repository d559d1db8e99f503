"""A real backend works as it is: its calls against a real supervisor, and what its rules make of the answers."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import re
import secrets
import signal
import socket
import sqlite3
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest

from agent_runtime.errors import ErrorClass
from agent_runtime.evidence.verdict import BLOCKED_SENTENCE, limit_sentence
from agent_runtime.model.problem import problem, with_detail_object
from tests.backends.trinity import (
    RULES,
    Row,
    data,
    is_session_lost,
    known_ids,
    resolve,
    row_of,
    row_of_result,
    switch_for,
    text_of,
)
from tests.support.supervised import NEW, OLD, Supervised, eventually, marked_processes, supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

CALLS: list[dict[str, Any]] = data("calls")
FAILURES: list[dict[str, Any]] = data("failures")
SECONDS: dict[str, float] = RULES["seconds"]
KEY = "the-key-of-this-backend"
INIT: dict[str, Any] = {"do": "init"}
TEXT: dict[str, Any] = {"do": "assistant", "text": "Hello.", "usage": {"input_tokens": 7, "output_tokens": 5}}
OK = [INIT, TEXT, {"do": "result", "text": "Hello."}]
DEAD = [INIT, TEXT, {"do": "api_error", "status": 401, "when": "first"}, {"do": "hang", "when": "first"}, *OK[1:]]
KINDS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "list": lambda value: isinstance(value, list),
    "frames": lambda value: isinstance(value, list) and all(isinstance(one, dict) and "type" in one for one in value),
    "count": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value >= 0,
    "positive": lambda value: isinstance(value, int) and value > 0,
}


@functools.cache
def picture() -> str:
    return base64.b64encode(os.urandom(10 * 1024 * 1024)).decode()


class Backend:
    """The calls of this backend to one agent."""

    def __init__(self, running: Supervised) -> None:
        self.agent = running
        self.client = httpx.Client(
            base_url=running.url, headers={"X-Trinity-Agent-Token": KEY}, timeout=60, trust_env=False
        )

    def task(self, cli: list[dict[str, Any]], **fields: Any) -> httpx.Response:
        """Send a task as it is sent for a schedule."""
        body = dict(CALLS[0]["request"]["json"]) | {"message": json.dumps({"script": cli})}
        return self.client.post("/api/task", json=body | {"execution_id": secrets.token_urlsafe(16)} | fields)

    def get(self, path: str) -> Any:
        return self.client.get(path).raise_for_status().json()

    def reload(self, token: str) -> httpx.Response:
        """Give the agent another token, as a switch does."""
        return self.client.post(
            "/api/credentials/reload-token",
            json={"token": token, "remove_api_key": True},
            timeout=SECONDS["reload"],
        )

    def terminate(self, execution_id: str) -> httpx.Response:
        return self.client.post(f"/api/executions/{execution_id}/terminate", timeout=SECONDS["terminate"])


@contextlib.contextmanager
def backend(home: Path, *, token: str | None = OLD, flags: tuple[str, ...] = (), **options: Any) -> Iterator[Backend]:
    """Run an agent as this backend's container has it: the first token in the environment, a directory to write to."""
    (home / "key").write_text(KEY)
    environment: Mapping[str, str] = {
        **RULES["settings"],
        "AGENT_RUNTIME_ACCESS_KEY_FILE": str(home / "key"),
        **({"CLAUDE_CODE_OAUTH_TOKEN": token} if token is not None else {}),
    }
    with supervised(home, token=None, environment=environment, flags=flags, **options) as running:
        one = Backend(running)
        with one.client:
            yield one


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with backend(tmp_path_factory.mktemp("trinity")) as one:
        yield one


# -- what it sends, and what it reads of the answers


@pytest.mark.parametrize("call", CALLS, ids=[call["name"] for call in CALLS])
def test_a_call_is_taken_and_its_answer_can_be_read(shared: Backend, call: dict[str, Any]) -> None:
    request = call["request"]
    text = json.dumps(request["json"])
    text = text.replace('"{message}"', json.dumps(json.dumps({"script": call["cli"]})))
    text = text.replace("{id}", secrets.token_urlsafe(16)).replace("{ten megabytes}", picture())

    response = shared.client.request(request["method"], request["path"], content=text)

    assert call["status"] in (None, response.status_code), response.text
    body = response.json()
    for path, kind in call["reads"].items():
        assert KINDS[kind](resolve(path, body)), f"{path} is {resolve(path, body)!r}"
    if call["row"] is not None:
        row = row_of(response)
        assert {name: getattr(row, name) for name in call["row"]} == call["row"]
        assert 0 <= row.context_percent <= 100


@pytest.mark.parametrize("first", ["", "-", "_", "--", "-_"])
def test_every_id_it_makes_is_taken(shared: Backend, first: str) -> None:
    execution_id = (first + secrets.token_urlsafe(16))[:22]
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,128}", execution_id)

    assert shared.task(OK, execution_id=execution_id).status_code == 200
    assert execution_id in known_ids(shared.get("/api/executions/running"))
    assert row_of_result(shared.get(f"/api/executions/{execution_id}/result")).status == "success"


def test_the_token_of_the_environment_is_the_first(tmp_path: Path) -> None:
    with backend(tmp_path) as one:
        assert one.task(OK).status_code == 200
        assert one.agent.token_file.read_text().strip() == OLD
        assert one.get("/api/token")["generation"] == 1


# -- what it concludes of failures


def made(failure: dict[str, Any], home: Path) -> httpx.Response:
    """Let an agent fail as told."""
    how = failure.get("made_by")
    if how == "a CLI that does not exist":
        with backend(home, claude="/nonexistent/forbidden/claude") as one:
            return one.task(OK)
    if how == "a secret file that holds no token":
        (home / "secret").mkdir()
        (home / "secret" / "token").write_text("CLAUDE_CODE_OAUTH_TOKEN=${secrets.oauth}\n")
        with backend(home) as one:
            return one.task(OK)
    with backend(home, flags=("--slots", "1", "--queue", "0", "--park", "0", "--drain-timeout", "0.1")) as one:
        if how is None:
            return one.task(failure["cli"], **failure.get("fields", {}))
        return _refused(one, how)


def _refused(one: Backend, how: str) -> httpx.Response:
    held: list[dict[str, Any]] = [INIT, TEXT, {"do": "hang"}]
    if how == "an unknown id":
        return one.client.get("/api/executions/forbidden-401/status")
    if how == "a wrong method":
        return one.client.put("/api/task")
    if how == "a long body":
        return one.task(OK, system_prompt="x" * (16 << 20))
    if how == "a record that cannot be read":
        (one.agent.data_dir / "transcripts" / "forbidden.jsonl").write_text("{}\n")
        return one.task(OK, execution_id="forbidden")
    if how == "a drain":
        one.client.post("/api/drain")
        return one.task(OK)
    one.task(held, execution_id="held", async_result=True)
    eventually(lambda: one.get("/api/executions/running")["executions"])
    if how == "another body":
        return one.task(OK, execution_id="held")
    if how == "full slots":
        return one.task(OK)
    assert how == "a shutdown"
    one.agent.process.send_signal(signal.SIGTERM)
    return one.task(held, execution_id="held")


@pytest.mark.slow
@pytest.mark.parametrize("failure", FAILURES, ids=[failure["error_class"] for failure in FAILURES])
def test_it_switches_where_another_token_helps_and_nowhere_else(failure: dict[str, Any], tmp_path: Path) -> None:
    response = made(failure, tmp_path)

    body = response.json()
    assert (body["error_class"], response.status_code) == (failure["error_class"], failure["status"]), response.text
    assert switch_for(response) == failure["switch"], text_of(response)
    row = row_of(response)
    assert (row.status, row.error) == ("failed", text_of(response))
    assert row.context_max > 0
    assert not is_session_lost(row.error or "")
    if "cli" in failure:
        assert row.session_id is not None
        assert [frame["type"] for frame in row.log][:1] == ["system"]


@pytest.mark.parametrize("error_class", list(ErrorClass))
@pytest.mark.parametrize("shape", ["text", "object"])
def test_what_it_concludes_of_every_class_is_right(error_class: ErrorClass, shape: str) -> None:
    if error_class in (ErrorClass.ACCESS, ErrorClass.CANCELLED):
        pytest.skip("a wrong key is a 401 of its own, and a cancelled execution no error")
    said = problem(error_class, error_class.sentence)
    body = with_detail_object(said) if shape == "object" else said
    response = httpx.Response(error_class.status, content=msgspec.json.encode(body))

    assert (switch_for(response) is not None) == error_class.cured_by_token
    assert (switch_for(response) == "rate_limit") == (error_class is ErrorClass.RATE_LIMIT)


def test_no_sentence_about_a_token_is_taken_for_something_else() -> None:
    sentences = [BLOCKED_SENTENCE, limit_sentence(None), limit_sentence(1.8e9)]
    sentences += [error_class.sentence for error_class in ErrorClass if error_class.cured_by_token]

    assert [text for text in sentences if any(words in text.lower() for words in RULES["switch"]["never_with"])] == []


def test_each_class_that_can_be_made_here_is_among_the_failures() -> None:
    elsewhere = {
        *(ErrorClass.OOM, ErrorClass.STALLED),  # want a cgroup, and time
        *(ErrorClass.ACCESS, ErrorClass.NOT_WRITABLE, ErrorClass.CANCELLED),  # below, or no failure
    }
    assert {failure["error_class"] for failure in FAILURES} == {str(one) for one in set(ErrorClass) - elsewhere}


# -- switching


@pytest.mark.parametrize("kind", ["auth", "rate_limit"])
def test_a_switch_and_the_same_task_again_go_on_in_the_session(tmp_path: Path, kind: str) -> None:
    steps = [INIT, TEXT, *DEAD[1:]]
    if kind == "rate_limit":
        limit = {"do": "rate_limit", "status": "rejected", "limit_type": "five_hour", "resets_at": 4_102_444_800}
        give_up = {"do": "give_up", "text": "You've hit your limit", "error": "rate_limit", "status": 429}
        steps = [INIT, TEXT, {**limit, "when": "first"}, {**give_up, "when": "first"}, {"do": "exit", "when": "first"}]
        steps += OK[1:]
    with backend(tmp_path) as one:
        met = one.task(steps, execution_id="-again")
        assert switch_for(met) == kind, met.text
        if kind == "rate_limit":
            assert "until 2100-01-01 00:00 UTC" in text_of(met)

        switched = one.reload(NEW)
        assert switched.is_success, switched.text
        again = one.task(steps, execution_id="-again", timeout_seconds=890)

        assert (again.status_code, again.json()["metadata"]["token_generation"]) == (200, 2), again.text
        row = row_of(again)
        assert (row.status, row.switch, row.response) == ("success", None, "Hello.")
        assert row.session_id == row_of(met).session_id
        assert one.agent.token_file.read_text().strip() == NEW


def test_a_token_that_is_there_already_makes_no_new_container(shared: Backend) -> None:
    for _ in range(2):
        begun = time.monotonic()
        answer = shared.reload(OLD)
        assert (answer.status_code, answer.json()["status"]) == (200, "success"), answer.text
        assert time.monotonic() - begun < SECONDS["reload"]
    assert shared.get("/api/token")["generation"] == 1


# -- terminate, and the watchdog


@pytest.mark.slow
def test_a_stubborn_execution_is_ended_while_it_waits(shared: Backend) -> None:
    steps = [
        {"do": "stubborn"},
        INIT,
        TEXT,
        {"do": "spawn", "kind": "setsid", "ignore_signals": True},
        {"do": "spawn", "kind": "double_fork", "ignore_signals": True, "hold_pipes": True},
        {"do": "hang"},
    ]
    shared.task(steps, execution_id="_stubborn", async_result=True)
    eventually(lambda: len(marked_processes("_stubborn")) >= 3)

    ended = shared.terminate("_stubborn")

    assert ended.json()["status"] == "terminated"
    assert marked_processes("_stubborn") == []
    assert shared.terminate("_stubborn").json()["status"] == "already_finished"
    row = row_of_result(shared.get("/api/executions/_stubborn/result"))
    assert (row.status, row.error, row.context_max) == ("cancelled", None, 200_000)
    assert shared.client.post("/api/executions/unknown/terminate").status_code == 404


@pytest.mark.slow
def test_an_execution_that_asks_about_its_token_first_is_ended_at_once(tmp_path: Path) -> None:
    with silent_api() as url, backend(tmp_path, api_url=url, flags=("--probe", "before_dispatch")) as one:
        one.task(OK, execution_id="asking", async_result=True)
        eventually(lambda: "asking" in known_ids(one.get("/api/executions/running")))
        begun = time.monotonic()

        assert one.terminate("asking").is_success
        assert time.monotonic() - begun < 3
        assert one.get("/api/executions/asking")["outcome"] == "cancelled"


@contextlib.contextmanager
def silent_api() -> Iterator[str]:
    """Take connections, and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_a_task_is_answered_within_its_timeout_and_what_is_waited_for_beyond_it(shared: Backend) -> None:
    begun = time.monotonic()
    answer = shared.task([{"do": "stubborn"}, INIT, TEXT, {"do": "hang"}], timeout_seconds=1)

    assert time.monotonic() - begun < 1 + SECONDS["beyond_timeout"]
    assert (answer.status_code, switch_for(answer)) == (504, None)
    assert row_of(answer).context_used == 7


def test_a_caller_that_gives_up_finds_the_result_later(shared: Backend, tmp_path: Path) -> None:
    steps = [INIT, TEXT, {"do": "wait_file", "path": str(tmp_path / "go")}, {"do": "result", "text": "Hello."}]
    body = {"message": json.dumps({"script": steps}), "execution_id": "-left", "timeout_seconds": 60}
    with pytest.raises(httpx.ReadTimeout):
        shared.client.post("/api/task", json=body, timeout=0.5)
    assert "-left" in known_ids(shared.get("/api/executions/running"))
    (tmp_path / "go").touch()
    eventually(lambda: shared.client.get("/api/executions/-left/result").status_code == 200)

    row = row_of_result(shared.get("/api/executions/-left/result"))
    assert (row.status, row.response, row.context_used, len(row.log)) == ("success", "Hello.", 7, 3)


@pytest.mark.slow
def test_nothing_that_ended_well_is_declared_lost_after_a_restart(tmp_path: Path) -> None:
    with backend(tmp_path) as one:
        ids = [secrets.token_urlsafe(16) for _ in range(3)]
        for execution_id in ids:
            one.task(OK, execution_id=execution_id)
        one.task([INIT, TEXT, {"do": "hang"}], execution_id="-cut", async_result=True)
        eventually(lambda: one.get("/api/executions/running")["executions"])
    with backend(tmp_path) as one:
        assert known_ids(one.get("/api/executions/running")) >= {*ids, "-cut"}
        rows: dict[str, Row] = {
            execution_id: row_of_result(one.get(f"/api/executions/{execution_id}/result"))
            for execution_id in (*ids, "-cut")
        }
        assert [rows[execution_id].status for execution_id in ids] == ["success"] * 3
        assert (rows["-cut"].status, rows["-cut"].log[0]["type"]) == ("failed", "system")


def test_a_result_that_is_not_kept_is_told_from_a_path_that_is_not_there(tmp_path: Path) -> None:
    with backend(tmp_path) as one:
        one.task(OK, execution_id="pruned")
    with closing(sqlite3.connect(tmp_path / "data" / "records.sqlite")) as database:
        database.execute("DELETE FROM answers")
        database.commit()
    with backend(tmp_path) as one:
        answer = one.client.get("/api/executions/pruned/result")
        assert (answer.status_code, answer.json()["detail"]["code"]) == (404, "no_retained_result")


# -- conversations


def test_a_conversation_goes_on(shared: Backend) -> None:
    first = row_of(shared.task(OK, persist_session=True))
    again = row_of(shared.task([*OK, *OK[1:]], persist_session=True, resume_session_id=first.session_id))

    assert (again.status, again.session_id) == ("success", first.session_id)


def test_a_conversation_that_is_gone_is_begun_anew_and_switches_nothing(shared: Backend) -> None:
    fields = {"persist_session": True, "execution_id": secrets.token_urlsafe(16)}
    gone = shared.task(OK, **fields, resume_session_id=str(uuid.uuid4()))

    assert (gone.status_code, gone.json()["error_class"]) == (409, "conflict")
    assert gone.json()["code"] == gone.json()["detail"]["code"] == "session_unknown"
    assert is_session_lost(text_of(gone))
    assert switch_for(gone) is None
    again = row_of(shared.task(OK, **fields, resume_session_id=None))
    assert (again.status, again.response) == ("success", "Hello.")
    assert again.session_id is not None


def test_two_turns_of_one_conversation_are_taken_one_after_the_other(shared: Backend, tmp_path: Path) -> None:
    first = row_of(shared.task(OK, persist_session=True))
    waits = {"do": "wait_file", "path": str(tmp_path / "go")}
    steps = [*OK, waits, TEXT, {"do": "result", "text": "First."}]
    fields = {"resume_session_id": first.session_id, "async_result": True}
    shared.task(steps, execution_id="-turn-1", **fields)
    eventually(lambda: shared.get("/api/executions/running")["executions"])
    shared.task([*steps, TEXT, {"do": "result", "text": "Second."}], execution_id="-turn-2", **fields)

    assert known_ids(shared.get("/api/executions/running")) >= {"-turn-1", "-turn-2"}
    (tmp_path / "go").touch()
    for execution_id, said in (("-turn-1", "First."), ("-turn-2", "Second.")):
        eventually(lambda: shared.client.get(f"/api/executions/{execution_id}/result").status_code == 200)  # noqa: B023
        row = row_of_result(shared.get(f"/api/executions/{execution_id}/result"))
        assert (row.status, row.response, row.session_id) == ("success", said, first.session_id)
