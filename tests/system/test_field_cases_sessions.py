"""Field cases of sessions: what is finished is not done again (K2), and one that is at fault stops nobody (K9)."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.standins.messages_api import Fail, MessagesApi, Text, Tool, serve
from tests.support.poisoned_api import PoisonedApi
from tests.support.supervised import NEW, OLD, Supervised, eventually, supervised
from tests.system.test_executions import OK, holding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

INIT: dict[str, Any] = {"do": "init"}
HANG: dict[str, Any] = {"do": "hang"}
UNKNOWN = "7b0e4b6e-8a35-4f5f-9d0e-1f2a3b4c5d6e"
SIGNATURE = "messages.1.content.0: Invalid `signature` in `thinking` block"


def working(*end: dict[str, Any]) -> dict[str, Any]:
    """Finish a tool call, which leaves a line in the workspace; end so in the first process, in a later one well."""
    ends = [{**step, "when": "first"} for step in end]
    steps = [
        INIT,
        {"do": "assistant", "text": "Begun."},
        {"do": "tool", "command": "echo ran >>$AGENT_RUNTIME_EXECUTION_ID"},
    ]
    return {"script": [*steps, *ends, {"do": "result", "text": "Resumed."}]}


def given_up(text: str, error: str, status: int | None = None, kind: str | None = None) -> list[dict[str, Any]]:
    """End as the CLI does when it stops asking the API."""
    end = {"do": "give_up", "text": text, "error": error, "status": status, "kind": kind}
    return [end, {"do": "exit", "code": 1}]


def saying(text: str) -> dict[str, Any]:
    """Say *text*; a script that a session has played to its end already would say nothing."""
    return {"script": [INIT, {"do": "assistant", "text": text}, {"do": "result", "text": text}]}


def ran(running: Supervised, execution_id: str) -> int:
    """Count how often an execution's tool call ran."""
    return len((running.workspace / execution_id).read_text().splitlines())


def of(response: httpx.Response) -> tuple[int, str | None]:
    return response.status_code, response.json().get("error_class")


def is_waiting(running: Supervised, *execution_ids: str) -> bool:
    return all(name in running.get("/api/executions/running")["pending_ids"] for name in execution_ids)


def is_passed(running: Supervised, execution_id: str) -> bool:
    """Let another execution run to its end; return whether this one has not begun meanwhile."""
    before = len(running.record(execution_id)["attempts"])
    assert running.post(saying("passed")).status_code == 200
    found = running.record(execution_id)
    return found["state"] == "queued" and len(found["attempts"]) == before


def is_running(running: Supervised, execution_id: str) -> bool:
    return is_in(running, execution_id, "running")


def is_in(running: Supervised, execution_id: str, state: str) -> bool:
    found = running.client.get(f"/api/executions/{execution_id}")
    return found.status_code == 200 and found.json()["state"] == state


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    flags = ("--idle-timeout", "1.5", "--tool-timeout", "1.5", "--max-resumes", "0")
    with supervised(tmp_path_factory.mktemp("shared"), flags=flags) as running:
        yield running


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("small"), flags=("--slots", "2", "--queue", "2")) as running:
        yield running


# K2: the same id posted again after a failure goes on.


FAILURES: dict[str, list[dict[str, Any]]] = {
    "network": given_up("API Error: Connection error.", "unknown"),
    "upstream": given_up("API Error: 500 Internal server error", "server_error", 500, "api_error"),
    "overloaded": given_up("API Error: Repeated 529 Overloaded errors", "server_error", 529, "overloaded_error"),
    "lost_result": [{"do": "exit"}],
    "signal": [{"do": "kill"}],
    "stalled": [HANG],
    "max_turns": [{"do": "result", "is_error": True, "fields": {"subtype": "error_max_turns"}}, {"do": "exit"}],
    "max_output": given_up("The answer is too long", "max_output_tokens"),
    "model": given_up("The model x does not exist", "model_not_found"),
    "invalid_request": given_up("API Error: 400 Output blocked by content filtering policy", "invalid_request", 400),
    "error": [
        {"do": "result", "is_error": True, "text": "ENOSPC: no space left on device, write"},
        {"do": "exit", "code": 1},
    ],
}


@pytest.mark.parametrize("error_class", FAILURES)
def test_k2_whatever_the_failure_the_same_id_goes_on_in_its_session(shared: Supervised, error_class: str) -> None:
    name, task = f"k2-{error_class}", working(*FAILURES[error_class])
    failed = shared.post(task, execution_id=name)
    assert failed.json()["error_class"] == error_class
    before = shared.record(name)

    answer = shared.post(task, execution_id=name).json()

    record = shared.record(name)
    assert (answer["status"], answer["response"], ran(shared, name)) == ("success", "Resumed.", 1)
    assert (record["session_id"], len(record["attempts"])) == (before["session_id"], 2)
    assert (before["resumable"], answer["metadata"]["session_restarted"]) == (True, False)


def test_k2_an_execution_that_was_cancelled_or_ran_out_of_time_goes_on(shared: Supervised) -> None:
    task = working({"do": "touch", "path": str(shared.home / "begun")}, HANG)
    pending = shared.start(task, execution_id="cancelled")
    eventually((shared.home / "begun").exists)
    shared.client.post("/api/executions/cancelled/terminate")
    assert pending.answer().json()["status"] == "cancelled"
    late = shared.post(task, execution_id="late", timeout_seconds=1)
    assert of(late) == (504, "timeout")

    for name in ("cancelled", "late"):
        assert shared.post(task, execution_id=name).json()["response"] == "Resumed."
        assert ran(shared, name) == 1


@pytest.mark.slow
def test_k2_an_account_that_cannot_pay_costs_no_work(tmp_path: Path) -> None:
    task = working(*given_up("Credit balance is too low", "billing_error", 400, "invalid_request_error"))
    with supervised(tmp_path, flags=("--probe", "off", "--max-resumes", "0", "--park", "0")) as running:
        assert running.post(task, execution_id="unpaid").json()["error_class"] in {"billing", "upstream"}
        running.write_token(NEW)
        eventually(lambda: running.get("/api/token")["generation"] == 2)

        assert running.post(task, execution_id="unpaid").json()["response"] == "Resumed."
        assert ran(running, "unpaid") == 1


def test_k2_where_nothing_was_done_it_begins_anew_in_the_same_record(shared: Supervised) -> None:
    report = shared.home / "report"
    script = {
        "script": [INIT, *FAILURES["network"][:1], {"do": "report", "path": str(report)}, {"do": "exit", "code": 1}]
    }
    assert of(shared.post(script, execution_id="nothing")) == (502, "network")
    first = shared.record("nothing")
    assert first["resumable"] is False

    shared.post(script, execution_id="nothing")

    record = shared.record("nothing")
    assert record["session_id"] != first["session_id"]
    assert [one["pid"] for one in record["attempts"]][:1] == [one["pid"] for one in first["attempts"]]
    assert not any(word.startswith("--resume") for word in json.loads(report.read_text())["argv"])


@pytest.mark.parametrize("ended", ["failed", "cancelled"])
def test_k2_another_body_after_a_failure_begins_a_fresh_session_and_after_a_success_it_conflicts(
    shared: Supervised, ended: str
) -> None:
    name, begun = f"other-{ended}", shared.home / f"begun-{ended}"
    task = working({"do": "touch", "path": str(begun)}, {"do": "exit"} if ended == "failed" else HANG)
    pending = shared.start(task, execution_id=name)
    eventually(begun.exists)
    if ended == "cancelled":
        shared.client.post(f"/api/executions/{name}/terminate")
    pending.answer()
    before = shared.record(name)

    answer = shared.post(OK, execution_id=name).json()

    assert (answer["response"], answer["metadata"]["attempts"]) == ("Hello.", 2)
    assert answer["session_id"] != before["session_id"]
    assert of(shared.post(task, execution_id=name)) == (409, "conflict")


@pytest.mark.slow
def test_k2_progress_is_known_after_a_restart(tmp_path: Path) -> None:
    lost, network = working(*FAILURES["lost_result"]), {"script": [INIT, *FAILURES["network"]]}
    with supervised(tmp_path) as running:
        running.post(lost, execution_id="with")
        running.post(network, execution_id="without")
        kept = {name: running.record(name) for name in ("with", "without")}
    with supervised(tmp_path) as running:
        assert {name: running.record(name) for name in kept} == kept

        assert running.post(lost, execution_id="with").json()["response"] == "Resumed."
        running.post(network, execution_id="without")
        assert running.record("without")["session_id"] != kept["without"]["session_id"]


@pytest.mark.slow
def test_k2_work_of_a_killed_supervisor_in_a_session_the_caller_named_goes_on(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    task = working()
    task["script"][3:3] = [{"do": "touch", "path": str(begun)}, HANG]
    with supervised(tmp_path, expect_exit=None) as running:
        named = running.post(OK).json()["session_id"]
        running.post(task, execution_id="named", resume_session_id=named, async_result=True)
        eventually(begun.exists)
        eventually(lambda: running.record("named")["resumable"])
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
    with supervised(tmp_path) as running:
        answer = running.post(task, execution_id="named", resume_session_id=named).json()

        assert (answer["response"], answer["session_id"], ran(running, "named")) == ("Resumed.", named, 1)


# K2: the caller asks for a fresh session.


def test_k2_a_fresh_session_is_begun_where_it_is_asked_for(shared: Supervised) -> None:
    task = working(*FAILURES["lost_result"])
    shared.post(task, execution_id="fresh")
    before = shared.record("fresh")

    shared.post(task, execution_id="fresh", fresh_session=True)
    again = shared.record("fresh")
    assert (ran(shared, "fresh"), again["session_id"] == before["session_id"]) == (2, False)

    answer = shared.post(task, execution_id="fresh", fresh_session=False).json()
    assert (answer["response"], answer["session_id"], ran(shared, "fresh")) == ("Resumed.", again["session_id"], 2)
    kept = shared.post(task, execution_id="fresh", fresh_session=True)
    assert kept.json() == answer, "it is no other work"


def test_k2_a_fresh_session_and_a_session_to_resume_exclude_each_other(shared: Supervised) -> None:
    refused = shared.post(OK, fresh_session=True, resume_session_id=UNKNOWN)

    assert of(refused) == (400, "invalid_request")
    assert "fresh_session" in refused.json()["detail"]
    assert of(shared.post(OK, fresh_session="yes")) == (400, "invalid_request")
    assert shared.post(OK, fresh_session=False, resume_session_id=UNKNOWN).status_code == 409


@pytest.mark.slow
def test_k2_only_the_first_attempt_of_a_post_is_fresh(tmp_path: Path) -> None:
    dead = [{"do": "api_error", "status": 401}, HANG]
    task = working(*FAILURES["lost_result"])
    task["script"][3:3] = [{**step, "when": "first"} for step in dead]
    flags = ("--token-delivery", "env", "--probe", "off", "--max-resumes", "3")
    with supervised(tmp_path, flags=flags) as running:
        answer = running.post(task, execution_id="once", fresh_session=True).json()

        assert (answer["response"], answer["metadata"]["attempts"], ran(running, "once")) == ("Resumed.", 2, 1)


@pytest.mark.slow
def test_k2_after_a_restart_a_fresh_session_is_gone_on_with(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    task = working({"do": "touch", "path": str(begun)}, HANG)
    with supervised(tmp_path, expect_exit=None) as running:
        running.post(task, execution_id="cut", async_result=True)
        eventually(begun.exists)
        running.client.post("/api/executions/cut/terminate").raise_for_status()
        running.post(task, execution_id="cut", fresh_session=True, async_result=True)
        eventually(lambda: len(begun.read_text().splitlines()) == 2)
        eventually(lambda: running.record("cut")["resumable"])
        session_id = running.record("cut")["session_id"]
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
    with supervised(tmp_path, flags=("--resume-interrupted",)) as running:
        eventually(lambda: running.record("cut")["outcome"] == "success")

        assert (running.record("cut")["session_id"], ran(running, "cut")) == (session_id, 2)


# K9: a session that the CLI does not know.


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.0.128", "2.0.76", "2.1.30", "2.1.197", "2.1.330"])
def test_k9_a_session_that_the_caller_names_and_the_cli_does_not_know_is_a_conflict(
    tmp_path: Path, version: str
) -> None:
    with supervised(tmp_path, environment={"SCRIPTED_CLI_VERSION": version}) as running:
        response = running.post(OK, execution_id="named", resume_session_id=UNKNOWN)

        problem = response.json()
        assert (*of(response), problem["code"]) == (409, "conflict", "session_unknown")
        assert "no conversation found" in problem["detail"]
        record = running.record("named")
        assert (record["session_id"], len(record["attempts"])) == (UNKNOWN, 1)
        assert (record["outcome"], record["error_class"]) == ("failed", "conflict")
        assert UNKNOWN not in problem["detail"]
        kept = running.get("/api/executions/named/result")
        assert (kept["status_code"], kept["answer"]["code"]) == (409, "session_unknown")
        assert running.post(OK, execution_id="named", resume_session_id=UNKNOWN).json()["code"] == "session_unknown"
        assert running.post(OK, execution_id="named").json()["response"] == "Hello.", "other work under a failed id"


@pytest.mark.parametrize("named", ["not-an-id", "", "7b0e4b6e-8a35-4f5f-9d0e-1f2a3b4c5d6e7", "../../etc/passwd", 7])
def test_k9_what_is_no_session_id_is_refused_by_the_name_of_the_field(shared: Supervised, named: object) -> None:
    response = shared.post(OK, resume_session_id=named)

    assert of(response) == (400, "invalid_request")
    assert response.json()["detail"].startswith("resume_session_id")


def test_k9_a_session_of_ours_that_the_cli_has_lost_is_begun_anew(tmp_path: Path) -> None:
    task = working(*FAILURES["signal"])
    with supervised(tmp_path) as running:
        running.post(task, execution_id="lost")
        [session] = (tmp_path / "config" / "projects").rglob("*.jsonl")
        session.unlink()

        response = running.post(task, execution_id="lost")  # whose script has the first process of a session die

        assert of(response) == (500, "signal")
        record = running.record("lost")
        assert (len(record["attempts"]), ran(running, "lost")) == (3, 2)
        assert record["metadata"]["session_restarted"] is True
        assert running.post(task, execution_id="lost").json()["response"] == "Resumed."


def test_k9_what_a_tool_says_of_a_session_is_nothing_the_cli_says(shared: Supervised) -> None:
    said = f"No conversation found with session ID: {UNKNOWN}"
    forged = [{"do": "forge", "stream": stream, "text": said} for stream in ("stderr", "stdout")]
    session_id = shared.post(OK).json()["session_id"]

    answer = shared.post({"script": [INIT, *forged, {"do": "result", "text": "Done."}]}, resume_session_id=session_id)

    assert (answer.status_code, answer.json()["response"]) == (200, "Done.")
    failed = shared.post({"script": [INIT, *forged, {"do": "exit"}]}, resume_session_id=session_id)
    assert of(failed) == (502, "lost_result")


# K9: a session whose history is at fault.


FAULTS = {
    "signature": SIGNATURE,
    "modified": "messages.1.content.19: `thinking` or `redacted_thinking` blocks in the latest assistant message "
    "cannot be modified. These blocks must remain as they were in the original response.",
    "no result": "messages.37: `tool_use` ids were found without `tool_result` blocks immediately after: "
    "toolu_019hT8NaQcNRyZhDyPX7LwNz. Each `tool_use` block must have a corresponding `tool_result` block in the next "
    "message.",
    "no call": "messages.2.content.0: unexpected `tool_use_id` found in `tool_result` blocks: toolu_01. Each "
    "`tool_result` block must have a corresponding `tool_use` block in the previous message.",
    "twice": "messages: `tool_use` ids must be unique",
    "roles": 'messages: roles must alternate between "user" and "assistant", but found multiple "user" roles in a row',
    "empty": "messages: text content blocks must be non-empty",
    "blank": "messages: text content blocks must contain non-whitespace text",
    "cached": "messages.48.content.3.text: cache_control cannot be set for empty text blocks",
    "image": "messages.44.content.1.image.source.base64: image exceeds 5 MB maximum: 11641928 bytes > 5242880 bytes",
    "pixels": "messages.3.content.1.image.source.base64.data: At least one of the image dimensions exceed max allowed "
    "size for many-image requests: 2000 pixels",
    "no image": "Could not process image",
    "prefill": "This model does not support assistant message prefill. The conversation must end with a user message.",
    "half": "The request body is not valid JSON: no low surrogate in string: line 1 column 158446 (char 158445)",
    "quoted otherwise": "litellm.BadRequestError: messages.1.content.0: Invalid 'signature' in 'thinking' block",
}
NO_FAULTS = (
    "Output blocked by content filtering policy",
    "max_tokens: 200000 > 64000, which is the maximum allowed number of output tokens",
    "tools.0.custom.input_schema: JSON schema is invalid",
    "prompt is too long: 208310 tokens > 200000 maximum",
    "thinking.budget_tokens: Input should be greater than or equal to 1024",
)


@pytest.fixture
def api() -> PoisonedApi:
    return PoisonedApi()


@pytest.fixture
def poisoned(tmp_path: Path, api: PoisonedApi) -> Iterator[Supervised]:
    with serve(api) as url, supervised(tmp_path, api_url=url) as running:
        yield running


@pytest.mark.slow
def test_k9_a_session_whose_history_the_api_refuses_is_given_up_for_a_new_one(
    poisoned: Supervised, api: PoisonedApi
) -> None:
    for fault, message in FAULTS.items():
        session_id = poisoned.post("Remember the word blue.").json()["session_id"]
        api.poison(message)

        response = poisoned.post("Which word?", resume_session_id=session_id)

        answer = response.json()
        assert (response.status_code, answer.get("response")) == (200, "done"), fault
        assert (answer["metadata"]["session_restarted"], answer["metadata"]["attempts"]) == (True, 2)
        assert answer["session_id"] != session_id


def test_k9_a_new_session_is_begun_once(poisoned: Supervised, api: PoisonedApi) -> None:
    session_id = poisoned.post("Remember the word blue.").json()["session_id"]
    api.on(OLD, Fail(400, "invalid_request_error", SIGNATURE))

    response = poisoned.post("Which word?", execution_id="once", resume_session_id=session_id)

    assert of(response) == (400, "invalid_request")
    assert len(poisoned.record("once")["attempts"]) == 2


def test_k9_a_request_that_is_refused_by_itself_costs_no_session(poisoned: Supervised, api: PoisonedApi) -> None:
    for message in NO_FAULTS:
        session_id = poisoned.post("Remember the word blue.").json()["session_id"]
        api.on(OLD, Fail(400, "invalid_request_error", message))

        response = poisoned.post("Which word?", resume_session_id=session_id)

        assert (of(response), response.json()["metadata"]["attempts"]) == ((400, "invalid_request"), 1), message
        assert response.json()["metadata"]["session_restarted"] is False
        api.accept(OLD)


def test_k9_an_image_of_the_request_itself_is_not_the_session_s_fault(poisoned: Supervised, api: PoisonedApi) -> None:
    session_id = poisoned.post("Remember the word blue.").json()["session_id"]
    api.poison(FAULTS["image"])
    images = [{"media_type": "image/png", "data": "aGk="}]

    refused = poisoned.post("Look.", resume_session_id=session_id, images=images)

    assert (of(refused), refused.json()["metadata"]["attempts"]) == ((400, "invalid_request"), 1)


def test_k9_a_session_that_was_spoilt_in_the_middle_of_work_is_not_resumed(
    poisoned: Supervised, api: PoisonedApi
) -> None:
    fault = Fail(400, "invalid_request_error", SIGNATURE)
    api.script("work", Tool(command="echo ran >>$AGENT_RUNTIME_EXECUTION_ID"), fault)
    task = "[[script:work]] Do it."
    assert of(poisoned.post(task, execution_id="spoilt")) == (400, "invalid_request")
    before = poisoned.record("spoilt")
    assert (len(before["attempts"]), before["resumable"]) == (1, False), "what is done is not done again by itself"
    api.script("work", Tool(command="echo ran >>$AGENT_RUNTIME_EXECUTION_ID"), Text(text="finished"))

    answer = poisoned.post(task, execution_id="spoilt").json()

    assert (answer["response"], answer["metadata"]["attempts"], ran(poisoned, "spoilt")) == ("finished", 2, 2)
    assert answer["session_id"] != before["session_id"]


def test_k9_a_resume_that_is_refused_as_before_for_a_reason_nobody_knows_is_begun_anew(
    poisoned: Supervised, api: PoisonedApi
) -> None:
    fault = Fail(400, "invalid_request_error", "messages.3: a reason that nobody has seen before")
    api.script("work", Tool(command="echo ran >>$AGENT_RUNTIME_EXECUTION_ID"), fault)
    task = "[[script:work]] Do it."
    assert of(poisoned.post(task, execution_id="odd")) == (400, "invalid_request")
    assert poisoned.record("odd")["resumable"] is True
    api.poison(fault.message)
    api.script("work", Tool(command="echo ran >>$AGENT_RUNTIME_EXECUTION_ID"), Text(text="finished"))

    answer = poisoned.post(task, execution_id="odd").json()

    assert (answer["response"], answer["metadata"]["attempts"], ran(poisoned, "odd")) == ("finished", 3, 2)
    assert answer["metadata"]["session_restarted"] is True


def test_k9_what_the_cli_cures_by_itself_costs_no_session(shared: Supervised) -> None:
    session_id = shared.post(OK).json()["session_id"]
    error = {
        "do": "api_error",
        "status": 400,
        "kind": "invalid_request_error",
        "message": SIGNATURE,
        "error": "unknown",
    }
    cured = [INIT, error, {"do": "assistant", "text": "Cured."}, {"do": "result", "text": "Cured."}]

    answer = shared.post({"script": cured}, resume_session_id=session_id).json()

    assert (answer["response"], answer["session_id"], answer["metadata"]["attempts"]) == ("Cured.", session_id, 1)


def test_k9_a_session_that_the_cli_cannot_read_is_given_up(shared: Supervised) -> None:
    session_id = shared.post(OK).json()["session_id"]
    said = ["Failed to resume session: EISDIR: illegal operation on a directory, read"]
    frame = {"type": "result", "subtype": "error_during_execution", "is_error": True, "errors": said, "num_turns": 0}
    unread = [
        {"do": "frame", "frame": frame, "when": "resumed"},
        {"do": "exit", "code": 1, "when": "resumed"},
    ]

    answer = shared.post({"script": [*unread, *OK["script"]]}, resume_session_id=session_id).json()

    assert (answer["response"], answer["metadata"]["session_restarted"]) == ("Hello.", True)


# K9: one session is used by one execution at a time.


def test_k9_two_tasks_on_one_session_run_one_after_the_other_and_others_pass(small: Supervised) -> None:
    session_id, go = small.post(OK).json()["session_id"], small.home / "go-two"
    first = small.start(holding(go), execution_id="two-1", resume_session_id=session_id)
    eventually(lambda: is_running(small, "two-1"))
    second = small.start(OK, execution_id="two-2", resume_session_id=session_id.upper())
    eventually(lambda: is_waiting(small, "two-2"))

    assert is_passed(small, "two-2"), "there is a slot for those who need no session"
    assert small.record("two-2")["session_id"] == session_id
    go.touch()

    assert [one.answer().json()["response"] for one in (first, second)] == ["Done.", "Hello."]
    [ended, begun] = small.record("two-1")["ended_at"], small.record("two-2")["started_at"]
    assert ended <= begun


def test_k9_the_session_of_a_running_execution_is_waited_for(small: Supervised) -> None:
    go = small.home / "go-live"
    first = small.start(holding(go), execution_id="live-1")
    eventually(lambda: is_running(small, "live-1"))
    session_id = small.record("live-1")["session_id"]
    second = small.start(OK, execution_id="live-2", resume_session_id=session_id)
    eventually(lambda: is_waiting(small, "live-2"))
    assert is_passed(small, "live-2")
    go.touch()

    assert [one.answer().json()["session_id"] for one in (first, second)] == [session_id] * 2
    assert small.record("live-1")["ended_at"] <= small.record("live-2")["started_at"]


def test_k9_an_id_that_is_posted_again_waits_for_the_execution_that_uses_its_session(small: Supervised) -> None:
    task, go = working(*FAILURES["lost_result"]), small.home / "go-again"
    small.post(task, execution_id="again-1")
    session_id = small.record("again-1")["session_id"]
    other = small.start(holding(go), execution_id="again-2", resume_session_id=session_id)
    eventually(lambda: is_running(small, "again-2"))
    again = small.start(task, execution_id="again-1")
    eventually(lambda: is_waiting(small, "again-1"))
    assert is_passed(small, "again-1")
    go.touch()

    assert {other.answer().status_code, again.answer().status_code} == {200}
    assert small.record("again-2")["ended_at"] <= small.record("again-1")["attempts"][-1]["started_at"]


def test_k9_the_time_of_one_that_waits_for_a_session_runs_and_it_can_be_cancelled(small: Supervised) -> None:
    session_id, go = small.post(OK).json()["session_id"], small.home / "go-time"
    first = small.start(holding(go), execution_id="time-1", resume_session_id=session_id)
    eventually(lambda: is_running(small, "time-1"))
    cancelled = small.start(OK, execution_id="time-2", resume_session_id=session_id)
    eventually(lambda: is_waiting(small, "time-2"))
    assert is_passed(small, "time-2")

    assert of(small.post(OK, execution_id="time-3", resume_session_id=session_id, timeout_seconds=0.2)) == (
        504,
        "timeout",
    )
    assert small.client.post("/api/executions/time-2/terminate").json()["status"] == "terminated"
    assert cancelled.answer().json()["status"] == "cancelled"
    third = small.start(OK, execution_id="time-4", resume_session_id=session_id)
    eventually(lambda: is_waiting(small, "time-4"))
    go.touch()

    assert [one.answer().status_code for one in (first, third)] == [200, 200]
    assert [small.record(f"time-{n}")["attempts"] for n in (2, 3)] == [[], []]


def test_k9_those_that_wait_for_a_session_have_places_in_the_queue_and_take_no_slot(small: Supervised) -> None:
    session_id, go = small.post(OK).json()["session_id"], small.home / "go-queue"
    pending = [small.start(holding(go), execution_id="queue-1", resume_session_id=session_id)]
    eventually(lambda: is_running(small, "queue-1"))
    for name in ("queue-2", "queue-3"):
        pending.append(small.start(saying(name), execution_id=name, resume_session_id=session_id))
        eventually(lambda name=name: is_waiting(small, name))  # type: ignore[misc]
    assert small.get("/health")["queue"] == {"limit": 2, "length": 2}

    assert of(small.post(OK, resume_session_id=session_id)) == (409, "busy")
    assert small.post(OK).status_code == 200, "one slot is free"
    pending.append(small.start(holding(go), execution_id="queue-4"))
    eventually(lambda: is_running(small, "queue-4"))
    assert of(small.post(OK)) == (409, "busy")
    go.touch()

    assert [one.answer().status_code for one in pending] == [200] * 4


def test_k9_a_drain_ends_one_that_waits_for_a_session(tmp_path: Path) -> None:
    go = tmp_path / "go"
    with supervised(tmp_path, flags=("--drain-timeout", "0.5", "--stop-grace", "0.3")) as running:
        session_id = running.post(OK).json()["session_id"]
        pending = [running.start(holding(go), execution_id="one", resume_session_id=session_id)]
        eventually(lambda: is_running(running, "one"))
        pending.append(running.start(OK, execution_id="two", resume_session_id=session_id))
        eventually(lambda: is_waiting(running, "two"))
        assert is_passed(running, "two")
        running.process.terminate()

        assert [of(one.answer()) for one in pending] == [(500, "interrupted")] * 2


def test_k9_a_session_is_held_while_its_execution_is_parked(tmp_path: Path) -> None:
    go, dead = tmp_path / "go", [{"do": "api_error", "status": 401, "when": "first"}, {**HANG, "when": "first"}]
    ends = [{"do": "wait_file", "path": str(go)}, {"do": "result", "text": "Resumed."}]
    task = {"script": [INIT, {"do": "assistant", "text": "x"}, *dead, *ends]}
    flags = ("--token-delivery", "env", "--probe", "off", "--park", "30", "--slots", "2")
    with supervised(tmp_path, flags=flags) as running:
        parked = running.start(task, execution_id="parked")
        eventually(lambda: is_in(running, "parked", "parked"))
        session_id = running.record("parked")["session_id"]
        waiting = running.start(OK, execution_id="waiting", resume_session_id=session_id, park_seconds=30)
        eventually(lambda: is_waiting(running, "parked", "waiting"))
        running.write_token(NEW)
        eventually(lambda: is_running(running, "parked"))
        assert is_passed(running, "waiting")
        go.touch()

        assert [one.answer().json()["session_id"] for one in (parked, waiting)] == [session_id] * 2
        assert running.record("parked")["ended_at"] <= running.record("waiting")["started_at"]


# With the real CLI.


@pytest.mark.slow
@pytest.mark.real_cli
@pytest.mark.newest_cli
def test_k9_the_real_cli_knows_no_such_session(tmp_path: Path, claude: str) -> None:
    with serve(MessagesApi()) as url, supervised(tmp_path, api_url=url, claude=claude) as running:
        response = running.post("Say hello.", execution_id="named", resume_session_id=UNKNOWN)

        assert (*of(response), response.json()["code"]) == (409, "conflict", "session_unknown")
        assert (running.record("named")["session_id"], len(running.record("named")["attempts"])) == (UNKNOWN, 1)


@pytest.mark.slow
@pytest.mark.real_cli
@pytest.mark.newest_cli
@pytest.mark.parametrize(
    "fault",
    ["signature", "no result", "image"],
)
def test_k9_a_session_that_the_api_refuses_is_given_up_with_the_real_cli(
    tmp_path: Path, claude: str, api: PoisonedApi, fault: str
) -> None:
    with serve(api) as url, supervised(tmp_path, api_url=url, claude=claude) as running:
        session_id = running.post("Remember the word blue.").json()["session_id"]
        api.poison(FAULTS[fault])

        answer = running.post("Which word?", execution_id="next", resume_session_id=session_id).json()

        assert (answer["status"], answer["metadata"]["session_restarted"]) == ("success", True)
        assert answer["session_id"] != session_id


@pytest.mark.real_cli
def test_k2_finished_work_is_not_done_again_with_the_real_cli(tmp_path: Path, claude: str) -> None:
    api = MessagesApi()
    work = Tool(command="echo ran >>$AGENT_RUNTIME_EXECUTION_ID")
    api.script("work", work, Fail(400, "invalid_request_error", "Output blocked by content filtering policy"))
    task = "[[script:work]] Do it."
    with serve(api) as url, supervised(tmp_path, api_url=url, claude=claude) as running:
        assert of(running.post(task, execution_id="work")) == (400, "invalid_request")
        api.script("work", work, Text(text="finished"))

        answer = running.post(task, execution_id="work").json()

        assert (answer["response"], answer["metadata"]["attempts"], ran(running, "work")) == ("finished", 2, 1)
