"""What becomes of what the CLI prints: kinds K3, K6, K8 and N1 of what people report."""

from __future__ import annotations

import base64
import json
import shlex
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.standins.messages_api import MessagesApi, Text, Tool
from tests.claude.test_frame_repair import strictly
from tests.support.supervised import PROGRAMS, Supervised, eventually, marked_processes, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INIT = {"do": "init"}
RESULT = {"do": "result", "text": "Done."}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    """A supervisor with the scripted CLI, for all that need no settings of their own."""
    with supervised(tmp_path_factory.mktemp("running")) as it:
        yield it


def post(running: Supervised, *steps: dict[str, Any], **fields: Any) -> tuple[int, dict[str, Any]]:
    response = running.post({"script": list(steps)}, **fields)
    return response.status_code, strictly(response.content)


def printed(data: bytes) -> dict[str, Any]:
    """Print exact bytes and a newline."""
    return {"do": "write", "base64": base64.b64encode(data + b"\n").decode(), "newline": False}


# -- K3: results


def frame(**fields: Any) -> dict[str, Any]:
    return {"do": "frame", "frame": fields}


def result(**fields: Any) -> dict[str, Any]:
    """Print a ``result`` with these fields and no others but those that all have."""
    return frame(**{"type": "result", "subtype": "success", "is_error": False, "num_turns": 1, **fields})


def user(text: str) -> dict[str, Any]:
    return frame(type="user", message={"role": "user", "content": [{"type": "text", "text": text}]})


def streamed(kind: str, stop_reason: str | None = None, parent: str | None = None) -> dict[str, Any]:
    """Print a partial message that begins or ends a message."""
    event: dict[str, Any] = {"type": kind}
    if stop_reason is not None:
        event["delta"] = {"stop_reason": stop_reason, "stop_sequence": None}
    return frame(type="stream_event", event=event, session_id="s", parent_tool_use_id=parent)


TEXT = {"do": "assistant", "text": "The answer."}
TOOL = [{"do": "tool_use", "command": "true", "id": "t1"}, {"do": "tool_result", "content": "", "id": "t1"}]
DIAGNOSTIC = "[ede_diagnostic] result_type=user last_content_type=n/a stop_reason=null"
NOTIFIED = user("<task-notification>\n<task-id>b1</task-id>\n</task-notification>")
INTERRUPTED = user("[Request interrupted by user]")
INTERRUPTED_END = result(subtype="error_during_execution", is_error=True, errors=[DIAGNOSTIC])


@pytest.mark.parametrize(
    "steps",
    [
        [*TOOL, result(result="", stop_reason="tool_use")],
        [TEXT, *TOOL, result(result="", stop_reason="tool_use")],
        [TEXT, *TOOL, result(result=None)],
        [*TOOL, result()],
        [*TOOL, result(result=" \n ", stop_reason="end_turn")],
        [TEXT, result(result="", stop_reason="tool_use")],
        [streamed("message_start"), TEXT, streamed("message_delta", "tool_use"), result(result="")],
        [result(result="", stop_reason="end_turn")],
        [result(result="", stop_reason="end_turn", is_error=False, num_turns=0, duration_api_ms=0)],
        [result(subtype="error_during_execution", is_error=False, errors=[])],
        [TEXT, *TOOL, INTERRUPTED, INTERRUPTED_END],
        [TEXT, *TOOL, result(subtype="error_during_execution", is_error=False)],
    ],
    ids=[
        "after a tool call",
        "a text before the tool call",
        "null",
        "missing",
        "blanks",
        "a tool call that never came",
        "told by a partial message",
        "the model said nothing",
        "nobody asked the model",
        "2.1.30 when the model said nothing",
        "interrupted in a tool call",
        "a subtype that is an error",
    ],
)
def test_k3_an_empty_result_is_no_success__cc_40432(running: Supervised, steps: list[dict[str, Any]]) -> None:
    status, answer = post(running, INIT, *steps)

    assert (status, answer["error_class"]) == (502, "lost_result"), answer


@pytest.mark.parametrize(
    "steps",
    [
        [TEXT, result(result="", stop_reason="end_turn")],
        [TEXT, result(result=None, stop_reason="end_turn")],
        [TEXT, result(stop_reason="end_turn")],
        [TEXT, result(result="  ")],
        [{"do": "assistant", "text": "I will look."}, *TOOL, TEXT, result(result="")],
        [TEXT, frame(type="assistant", parent_tool_use_id="t9", message={"model": "m", "content": [
            {"type": "text", "text": "A sub-agent's."}]}), result(result="")],
        [streamed("message_start"), TEXT, streamed("message_delta", "end_turn"), result(result="")],
        [TEXT, NOTIFIED, INTERRUPTED, INTERRUPTED_END],
        [TEXT, INTERRUPTED, INTERRUPTED_END],
        [TEXT, INTERRUPTED, result(subtype="error_during_execution", is_error=False, errors=[])],
        [TEXT, NOTIFIED, result(subtype="error_during_execution", is_error=True, errors=["MCP: 401", DIAGNOSTIC])],
        [streamed("message_start"), TEXT, streamed("message_delta", "end_turn"), NOTIFIED, INTERRUPTED_END],
        [TEXT, result(result="The answer."), NOTIFIED, INTERRUPTED, INTERRUPTED_END],
        [result(result="The answer."), *TOOL, INTERRUPTED, INTERRUPTED_END],
        [result(result="The answer."), *TOOL, result(result="")],
        [result(result="The answer."), {"do": "exit", "code": 1}],
        [result(result="The answer."), {"do": "kill"}],
        [result(result="The answer.", stop_reason="max_tokens")],
    ],
)  # fmt: skip
def test_k3_an_answer_that_is_there_is_given__cc_39053_82235(running: Supervised, steps: list[dict[str, Any]]) -> None:
    status, answer = post(running, INIT, *steps)

    assert (status, answer.get("response")) == (200, "The answer."), answer


@pytest.mark.parametrize(
    ("steps", "error_class"),
    [
        ([streamed("message_start"), TEXT, INTERRUPTED, INTERRUPTED_END], "lost_result"),
        ([TEXT, INTERRUPTED, result(subtype="error_during_execution", is_error=True, errors=[DIAGNOSTIC],
                                    terminal_reason="aborted_streaming")], "lost_result"),
        ([TEXT, result(subtype="error_during_execution", is_error=True, errors=["Error: it broke"])], "error"),
        ([TEXT, result(subtype="error_during_execution", is_error=True, errors=[DIAGNOSTIC],
                       stop_reason="tool_use")], "lost_result"),
    ],
)  # fmt: skip
def test_k3_half_an_answer_is_none(running: Supervised, steps: list[dict[str, Any]], error_class: str) -> None:
    _, answer = post(running, INIT, *steps)

    assert answer.get("error_class") == error_class, answer


@pytest.mark.parametrize(
    ("subtype", "expected"),
    [
        ("error_max_turns", (422, "max_turns")),
        ("error_max_budget_usd", (422, "max_budget")),
        ("error_max_structured_output_retries", (422, "schema")),
        ("error_during_execution", (500, "error")),
        ("error_of_a_later_version", (500, "error")),
    ],
)
@pytest.mark.parametrize("is_error", [False, True])
def test_k3_a_subtype_that_is_an_error_is_a_failure(
    running: Supervised, subtype: str, expected: tuple[int, str], is_error: bool
) -> None:
    """2.1.30 prints ``error_max_turns`` with ``is_error`` false and leaves with 0."""
    errors = [] if "max" in subtype else ["It broke."]
    status, answer = post(running, INIT, TEXT, result(subtype=subtype, is_error=is_error, num_turns=3, errors=errors))

    assert (status, answer["error_class"]) == expected


TASK_BEGINS = {"do": "background", "tasks": ["b1"]}
TASK_ENDS = [
    frame(type="system", subtype="task_updated", task_id="b1", patch={"status": "completed"}),
    frame(type="system", subtype="task_notification", task_id="b1", status="completed"),
    {"do": "background", "tasks": []},
]
HANG = {"do": "hang", "seconds": 60}
WAITING = [INIT, TEXT, TASK_BEGINS, result(result="The answer."), HANG]
NOTIFICATION = {"origin": {"kind": "task-notification"}}
NOTHING_YET = result(result="", num_turns=0, duration_api_ms=0)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    """A supervisor with short times for everything that must not count where there is a result."""
    times = ("--background-timeout", "2", "--idle-timeout", "0.5", "--tool-timeout", "0.5")
    with supervised(tmp_path_factory.mktemp("short"), flags=times) as it:
        yield it


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps",
    [
        WAITING,
        [INIT, frame(type="system", subtype="task_started", task_id="b1"), TEXT, result(result="The answer."), HANG],
        [INIT, TASK_BEGINS, result(result="The answer."), *TASK_ENDS, HANG],
        [INIT, TASK_BEGINS, result(result="The answer."), *TASK_ENDS, INIT, {"do": "partial", "text": "x"}, HANG],
        [INIT, TASK_BEGINS, result(result="The answer."), *TASK_ENDS, INIT, *TOOL[:1], HANG],
        [INIT, {"do": "stubborn"}, TASK_BEGINS, result(result="The answer."), HANG],
    ],
    ids=[
        "told by the list of tasks",
        "told by the tasks' beginning",
        "no turn comes of its end",
        "the turn that comes of its end is silent",
        "a tool of that turn is silent",
        "the CLI does not leave",
    ],
)
def test_k3_work_in_the_background_has_a_time_of_its_own__cc_61416(
    short: Supervised, steps: list[dict[str, Any]]
) -> None:
    begun = time.monotonic()
    status, answer = post(short, *steps)
    took_seconds = time.monotonic() - begun

    assert (status, answer.get("response")) == (200, "The answer."), answer
    assert answer["metadata"]["background_ended"] is True
    assert took_seconds < 30


def test_k3_a_result_that_is_an_error_waits_no_longer_for_the_background(short: Supervised) -> None:
    status, answer = post(short, INIT, TASK_BEGINS, result(subtype="error_max_turns", is_error=True), HANG)

    assert (status, answer["error_class"]) == (422, "max_turns")


@pytest.mark.slow
def test_k3_what_comes_of_the_background_in_time_is_the_answer(running: Supervised) -> None:
    """With no silence in it, and with one that is longer than a CLI may linger after its last word."""
    parts = [TASK_BEGINS, result(result="I wait."), *TASK_ENDS, {"do": "sleep", "seconds": 7}]
    turn = [TEXT, result(result="The answer.", **NOTIFICATION)]
    stories = [[INIT, *parts, INIT, *turn], [INIT, *parts, *turn], [INIT, *parts[:-1], INIT, *turn]]
    pending = [running.start({"script": story}) for story in stories]

    for one in pending:
        answer = one.answer().json()
        assert (answer["response"], answer["metadata"]["background_ended"]) == ("The answer.", False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "status"), [("terminate", "already_finished"), ("the total time", None), ("a drain", None)]
)
def test_k3_a_result_in_hand_is_the_outcome_however_the_run_ends(tmp_path: Path, way: str, status: str | None) -> None:
    flags = ("--drain-timeout", "1")
    with supervised(tmp_path, flags=flags) as running:
        limit = {"timeout_seconds": 3} if way == "the total time" else {}
        pending = running.start({"script": WAITING}, execution_id="waiting", **limit)
        eventually(lambda: has_result(running, "waiting"))
        if way == "terminate":
            told = running.client.post("/api/executions/waiting/terminate").json()
            assert told["status"] == status
        elif way == "a drain":
            running.stop()
        response = pending.answer()
    with supervised(tmp_path, flags=flags) as later:
        kept = later.get("/api/executions/waiting/result")

    answer = response.json()
    assert (response.status_code, answer["status"], answer["response"]) == (200, "success", "The answer.")
    assert answer["metadata"]["background_ended"] is True
    assert (kept["status_code"], kept["answer"]["response"]) == (200, "The answer.")


def has_result(running: Supervised, execution_id: str) -> bool:
    """Whether the transcript has a ``result`` already."""
    path = running.data_dir / "transcripts" / f"{execution_id}.jsonl"
    return path.exists() and b'"type":"result"' in path.read_bytes()


def test_k3_without_a_result_a_stop_is_a_stop(running: Supervised) -> None:
    """An answer that the CLI gives only because it was told to leave is none, whole as it looks."""
    pending = running.start({"script": [INIT, TEXT, HANG]}, execution_id="no-result")
    eventually(lambda: running.client.get("/api/executions/no-result").json().get("state") == "running")
    told = running.client.post("/api/executions/no-result/terminate").json()

    assert told["status"] == "terminated"
    assert (pending.answer().json()["status"], pending.answer().json()["response"]) == ("cancelled", None)


@pytest.mark.slow
def test_k3_a_result_that_answers_nothing_does_not_end_the_run__paperclip_13322(running: Supervised) -> None:
    """A resumed session may begin with a turn for tasks that were lost; a hook then keeps the prompt for seconds."""
    nothing = result(result="", num_turns=0, duration_api_ms=0, **NOTIFICATION)
    pause = {"do": "sleep", "seconds": 7}
    turn = [TEXT, result(result="The answer.")]
    told = result(result="The task was stopped.", num_turns=1, duration_api_ms=9, **NOTIFICATION)
    stories = [
        [INIT, nothing, pause, INIT, *turn],
        [INIT, nothing, pause, *turn],
        [INIT, NOTHING_YET, pause, *turn],
        [INIT, nothing, nothing, pause, INIT, *turn],
        [INIT, {"do": "assistant", "text": "The task was stopped."}, told, pause, INIT, *turn],
        [
            INIT,
            frame(type="system", subtype="task_notification", task_id="b0", status="stopped"),
            nothing,
            pause,
            *turn,
        ],
    ]
    pending = [running.start({"script": story}) for story in stories]

    for one in pending:
        response = one.answer()
        assert (response.status_code, response.json().get("response")) == (200, "The answer."), response.text


def test_k3_a_result_that_answers_nothing_is_no_answer_where_nothing_follows(tmp_path: Path) -> None:
    nothing = result(result="", num_turns=0, duration_api_ms=0, **NOTIFICATION)
    with supervised(tmp_path, flags=("--first-message-timeout", "1")) as running:
        lost, stalled = post(running, INIT, nothing), post(running, INIT, nothing, HANG)

    assert (lost[0], lost[1]["error_class"]) == (502, "lost_result")
    assert (stalled[0], stalled[1]["error_class"]) == (504, "stalled")


@pytest.mark.parametrize(
    ("steps", "stop_reason"),
    [
        ([TEXT, result(result="x", stop_reason="end_turn")], "end_turn"),
        ([TEXT, result(result="x", stop_reason="max_tokens")], "max_tokens"),
        ([TEXT, streamed("message_delta", "max_tokens"), result(result="x")], "max_tokens"),
        ([streamed("message_delta", "max_tokens"), streamed("message_delta", "end_turn"), result(result="x")],
         "end_turn"),
        ([streamed("message_delta", "end_turn"), streamed("message_delta", "max_tokens", "t9"), result(result="x")],
         "end_turn"),
        ([TEXT, result(result="x")], None),
    ],
)  # fmt: skip
def test_k3_the_models_stop_reason_tells_a_cut_answer_from_a_whole_one(
    running: Supervised, steps: list[dict[str, Any]], stop_reason: str | None
) -> None:
    status, answer = post(running, INIT, *steps)

    assert (status, answer["metadata"]["stop_reason"]) == (200, stop_reason)


REFUSED = "API Error: the model's safeguards flagged this message"


@pytest.mark.parametrize(
    "steps",
    [
        [TEXT, result(result="The answer.", stop_reason="refusal")],
        [result(result="", stop_reason="refusal")],
        [TEXT, streamed("message_delta", "refusal"), result(result="The answer.")],
        [result(result=REFUSED, is_error=True, stop_reason="refusal")],
        [streamed("message_start"), streamed("message_delta", "refusal"), result(result=REFUSED, is_error=True)],
        [streamed("message_start"), {"do": "give_up", "text": REFUSED, "error": "invalid_request"},
         streamed("message_delta", "refusal"), streamed("message_stop")],
        [streamed("message_start"), {"do": "give_up", "text": REFUSED, "error": "invalid_request"},
         streamed("message_stop"), {"do": "exit", "code": 1}],
    ],
)  # fmt: skip
def test_k11_a_refusal_is_always_the_requests_fault(running: Supervised, steps: list[dict[str, Any]]) -> None:
    status, answer = post(running, INIT, *steps)

    assert (status, answer["error_class"]) == (400, "invalid_request"), answer
    assert running.get("/api/token")["state"] == "ready"


def test_k11_what_the_cli_gave_up_is_not_wiped_by_the_end_of_its_message(running: Supervised) -> None:
    """Only a further message of the model shows that the failure is over."""
    gave_up = {"do": "frame", "frame": {
        "type": "assistant", "error": "invalid_request", "message": {"model": "<synthetic>", "content": [
            {"type": "text", "text": REFUSED}]}}}  # fmt: skip
    ends = [streamed("content_block_stop"), streamed("message_delta", "end_turn"), streamed("message_stop")]
    leaves = {"do": "exit", "code": 1}

    _, over = post(running, INIT, streamed("message_start"), gave_up, *ends, leaves)
    _, goes_on = post(running, INIT, streamed("message_start"), gave_up, *ends, streamed("message_start"), leaves)

    assert (over["error_class"], goes_on["error_class"]) == ("invalid_request", "lost_result")


@pytest.mark.slow
@pytest.mark.real_cli
def test_k3_real_work_in_the_background_is_ended_and_its_session_goes_on_behind_a_slow_hook__paperclip_13322(
    tmp_path: Path, api: MessagesApi, url: str, claude: str
) -> None:
    command = {"command": "sleep 300", "description": "Wait", "run_in_background": True}
    api.script("wait", Tool(input=command), Text(text="I wait."))
    api.script("then", Text(text="The answer."))
    with supervised(tmp_path, api_url=url, claude=claude, flags=("--background-timeout", "1")) as running:
        first = running.post("[[script:wait]] Begin.", execution_id="first")
        assert marked_processes("first") == []
        hook = {"hooks": [{"type": "command", "command": "sleep 7"}]}
        (tmp_path / "config" / "settings.json").write_text(json.dumps({"hooks": {"UserPromptSubmit": [hook]}}))
        session_id = first.json()["session_id"]
        second = running.post("[[script:then]] And now?", resume_session_id=session_id)

    assert (first.status_code, first.json()["response"]) == (200, "I wait.")
    known = any(frame.get("subtype") == "task_started" for frame in first.json()["execution_log"])
    assert first.json()["metadata"]["background_ended"] is known, (
        "2.1.30 does not tell of such work, and ends it itself"
    )
    assert (second.status_code, second.json()["response"]) == (200, "The answer."), second.text


@pytest.mark.slow
@pytest.mark.real_cli
@pytest.mark.newest_cli
@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Text(text="cut", stop_reason="stop_sequence"), (200, "stop_sequence")),
        (Text(text="cut", stop_reason="refusal"), (400, "refusal")),
        (Text(text="", stop_reason="end_turn"), (502, "end_turn")),
        (Text(text="cut", stop_reason="max_tokens"), (422, "max_tokens")),
    ],
    ids=["a stop sequence", "a refusal", "nothing said", "more than it may write"],
)
def test_k3_the_real_clis_stop_reasons_are_told(  # noqa: PLR0917 - fixtures and parameters
    tmp_path: Path, api: MessagesApi, url: str, claude: str, reply: Text, expected: tuple[int, str]
) -> None:
    api.script("ends", reply)
    with supervised(tmp_path, api_url=url, claude=claude) as running:
        response = running.post("[[script:ends]] Do it.", timeout_seconds=60)

    assert (response.status_code, response.json()["metadata"]["stop_reason"]) == expected, response.text


# -- K6: messages that the CLI takes for its own commands


COMMANDED_CLI = PROGRAMS / "commanded_cli.py"
"""A CLI with commands of its own, which notes beside itself what it was told; so each test has a copy."""


class Commanded:
    """A supervisor with that CLI."""

    def __init__(self, running: Supervised, home: Path) -> None:
        self.running = running
        self.seen_file = home / "seen.jsonl"
        self.seen_before = 0

    def post(self, message: str, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the answer and what the CLI was told for it."""
        answer: dict[str, Any] = self.running.post(message, **fields).json()
        seen = [json.loads(line) for line in self.seen_file.read_text().splitlines()][self.seen_before :]
        self.seen_before += len(seen)
        return answer, seen


@pytest.fixture(scope="module")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commanded]:
    home = tmp_path_factory.mktemp("commanded")
    program = home / "claude.py"
    shutil.copy(COMMANDED_CLI, program)
    with supervised(home, claude=shlex.join([sys.executable, str(program)])) as running:
        yield Commanded(running, home)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("/login returns 500", ["/login returns 500", " /login returns 500"]),
        ("/login\nreturns 500", ["/login\nreturns 500", " /login\nreturns 500"]),
        ("/nobody knows this one", ["/nobody knows this one", " /nobody knows this one"]),
        ("/cost of living is too high", ["/cost of living is too high", " /cost of living is too high"]),
        ("/old\tthings", ["/old\tthings", " /old\tthings"]),
        ("/compact the code of this module", [" /compact the code of this module"]),
        ("/clear\nthe cache", [" /clear\nthe cache"]),
        ("/model should be a field", [" /model should be a field"]),
        ("/config has no example", [" /config has no example"]),
    ],
)  # fmt: skip
def test_k6_a_message_that_the_cli_swallowed_reaches_the_model_as_text(
    commanded: Commanded, message: str, told: list[str]
) -> None:
    answer, seen = commanded.post(message)

    assert [one["message"] for one in seen] == told
    assert answer["response"] == f"Heard:  {message}"
    assert (answer["metadata"]["sent_as_text"], answer["metadata"]["resumes"]) == (True, 0)


@pytest.mark.parametrize(
    ("message", "response"),
    [
        ("/cost", "It cost nothing."),
        ("/cost \n", "It cost nothing."),
        ("/clear", ""),
        ("/compact", ""),
        ("/old", "It was."),
        ("/nobody", "Unknown command: /nobody"),
        ("/fork of a skill", "Forked."),
        ("/custom command", "Heard: /custom command"),
        ("/path/to/file is broken", "Heard: /path/to/file is broken"),
        (" /login fails", "Heard:  /login fails"),
        ("\n/compact it", "Heard: \n/compact it"),
        ("no /compact here", "Heard: no /compact here"),
    ],
)
def test_k6_what_is_a_command_or_reaches_the_model_is_sent_once(
    commanded: Commanded, message: str, response: str
) -> None:
    answer, seen = commanded.post(message)

    assert [one["message"] for one in seen] == [message]
    assert (answer["status"], answer["response"] or "", answer["metadata"]["sent_as_text"]) == (
        "success",
        response,
        False,
    )


def test_k6_a_failure_without_a_word_of_the_model_is_not_sent_again(commanded: Commanded) -> None:
    answer, seen = commanded.post("/fails at once")

    assert (answer["error_class"], len(seen)) == ("error", 1)


@pytest.mark.parametrize("place", ["workspace/.claude/commands/compact.md", "config/skills/compact/SKILL.md"])
def test_k6_a_custom_command_comes_before_the_clis_own_of_that_name(tmp_path: Path, place: str) -> None:
    """It does on 2.1.30, 2.1.114, 2.1.197 and 2.1.332; here the CLI answers it itself and is asked again."""
    program = tmp_path / "claude.py"
    shutil.copy(COMMANDED_CLI, program)
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text("Make it shorter: $ARGUMENTS")
    with supervised(tmp_path, claude=shlex.join([sys.executable, str(program)])) as running:
        _, seen = Commanded(running, tmp_path).post("/compact this text")

    assert [one["message"] for one in seen] == ["/compact this text", " /compact this text"]


def test_k6_images_keep_a_message_from_being_a_command(commanded: Commanded) -> None:
    image = {"media_type": "image/png", "data": "iVBORw0KGgo="}
    answer, seen = commanded.post("/compact what it shows", images=[image])

    [told] = seen
    assert json.loads(told["message"])["message"]["content"][0]["text"] == "/compact what it shows"
    assert answer["metadata"]["sent_as_text"] is False


def test_k6_in_a_session_of_its_own_or_a_named_one_the_text_is_what_is_sent(commanded: Commanded) -> None:
    session = "0d2f1d0a-5a55-4d31-9f0e-5d8a0ed4a111"
    _, fresh = commanded.post("/login fails")
    _, named = commanded.post("/login fails", resume_session_id=session)

    first, second = (next(word for word in one["argv"] if "session-id=" in word) for one in fresh)
    assert first != second, "what the CLI noted of its own command is not in the model's conversation"
    assert all(f"--resume={session}" in one["argv"] for one in named)


def test_k6_the_same_message_again_is_not_swallowed_again(commanded: Commanded) -> None:
    """After a failure without progress it begins anew, as text at once."""
    commanded.post("/login again", execution_id="again", max_turns=1)
    kept, seen = commanded.post("/login again", execution_id="again", max_turns=1)

    assert (kept["response"], seen) == ("Heard:  /login again", [])


@pytest.mark.slow
@pytest.mark.real_cli
@pytest.mark.newest_cli
def test_k6_the_real_cli_asks_the_model(tmp_path: Path, api: MessagesApi, url: str, claude: str) -> None:
    messages = {
        "/login returns 500 since the last deploy, please fix it [[script:heard]]": True,
        "/cost of this is too high [[script:heard]]": True,
        "/help me [[script:heard]]": True,
        "/compact this [[script:heard]]": True,
        "/clear the cache [[script:heard]]": True,
        "/path/to/file is broken [[script:heard]]": False,
        " /login fails [[script:heard]]": False,
        "/mine [[script:heard]]": False,
    }
    api.script("heard", Text(text="Heard."))
    command = tmp_path / "workspace" / ".claude" / "commands" / "mine.md"
    command.parent.mkdir(parents=True)
    command.write_text("Do this: $ARGUMENTS")
    with supervised(tmp_path, api_url=url, claude=claude) as running:
        pending = {message: running.start(message) for message in messages}
        answers = {message: one.answer().json() for message, one in pending.items()}

    assert {
        message: (answer["response"], answer["metadata"]["sent_as_text"]) for message, answer in answers.items()
    } == {message: ("Heard.", is_as_text) for message, is_as_text in messages.items()}
    asked = [request.script for request in api.requests if request.path == "/v1/messages" and not request.aside]
    assert asked == ["heard"] * len(messages)


@pytest.mark.slow
@pytest.mark.real_cli
@pytest.mark.newest_cli
def test_k6_a_bare_command_keeps_the_real_clis_own_answer(
    tmp_path: Path, api: MessagesApi, url: str, claude: str
) -> None:
    with supervised(tmp_path, api_url=url, claude=claude) as running:
        answers = [running.post(message).json() for message in ("/cost", "/help", "/compact", "/context")]

    assert [(one["status"], one["metadata"]["sent_as_text"]) for one in answers] == [("success", False)] * 4
    assert answers[0]["response"]
    asked = [request for request in api.requests if request.path == "/v1/messages" and not request.aside]
    assert asked == [], "/context has its tokens counted, no more"


# -- K8: the start


STARTED = frame(type="system", subtype="hook_started", hook_id="h1", hook_name="SessionStart:startup")
PROGRESS = frame(type="system", subtype="hook_progress", hook_id="h1", hook_name="SessionStart:startup", output="x")
RESPONSE = frame(type="system", subtype="hook_response", hook_id="h1", hook_name="SessionStart:startup")
LOGGED = {"do": "write", "stream": "stderr", "text": "2026-11-29T19:57:20.822Z [DEBUG] [STARTUP] Loading"}
A_MOMENT = {"do": "sleep", "seconds": 1.1}
"""Three of them are longer than the time for a start, and one is short enough for a busy machine."""


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    flags = ("--init-timeout", "3", "--first-message-timeout", "30")
    with supervised(tmp_path_factory.mktemp("impatient"), flags=flags) as it:
        yield it


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps",
    [
        [STARTED, *[A_MOMENT, PROGRESS] * 3, RESPONSE],
        [*[A_MOMENT, LOGGED] * 3],
        [STARTED, A_MOMENT, LOGGED, A_MOMENT, RESPONSE, A_MOMENT],
        [frame(type="system", subtype="task_started", task_id="t1"), *[A_MOMENT] * 3],
    ],
    ids=["a hook's progress", "debug lines", "both", "a sub-agent before init"],
)
def test_k8_signs_of_life_count_before_init__cc_50160(impatient: Supervised, steps: list[dict[str, Any]]) -> None:
    status, answer = post(impatient, *steps, INIT, TEXT, result(result="The answer."))

    assert (status, answer.get("response")) == (200, "The answer."), answer


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        ([STARTED], "while the hook SessionStart:startup ran"),
        ([STARTED, PROGRESS], "while the hook SessionStart:startup ran"),
        ([{"do": "frame", "frame": {**STARTED["frame"], "hook_id": "h0", "hook_name": "SessionStart:resume"}}, STARTED,
          RESPONSE], "while the hook SessionStart:resume ran"),
        ([STARTED, RESPONSE], "within AGENT_RUNTIME_INIT_TIMEOUT"),
        ([frame(type="system", subtype="hook_started", hook_name="\x1b[2K" + "x" * 5000)], "within AGENT_RUNTIME"),
        ([], "within AGENT_RUNTIME_INIT_TIMEOUT"),
    ],
)  # fmt: skip
def test_k8_a_start_that_is_silent_for_too_long_names_the_hook_and_the_setting(
    impatient: Supervised, steps: list[dict[str, Any]], named: str
) -> None:
    status, answer = post(impatient, *steps, HANG)

    assert (status, answer["error_class"]) == (504, "stalled")
    assert named in answer["detail"]
    assert len(answer["detail"]) < 1000


@pytest.mark.slow
@pytest.mark.real_cli
@pytest.mark.newest_cli
def test_k8_a_real_hook_that_says_nothing_is_named(tmp_path: Path, api: MessagesApi, url: str, claude: str) -> None:
    hook = {"hooks": [{"type": "command", "command": "sleep 100"}]}
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "settings.json").write_text(json.dumps({"hooks": {"SessionStart": [hook]}}))
    with supervised(tmp_path, api_url=url, claude=claude, flags=("--init-timeout", "15")) as running:
        response = running.post("Say hello.", execution_id="hooked")

    assert (response.status_code, response.json()["error_class"]) == (504, "stalled")
    assert "AGENT_RUNTIME_INIT_TIMEOUT" in response.json()["detail"]
    assert "SessionStart:startup" in response.json()["detail"] or "2.1.197" in claude, "2.1.197 tells of it too late"
    assert [request for request in api.requests if request.path == "/v1/messages" and not request.aside] == []


# -- N1: answers that are not JSON


def everything_that_leaves(running: Supervised, execution_id: str) -> list[bytes]:
    """Take all that callers can get of an execution, each document alone."""
    paths = ("", "/status", "/result")
    documents = [running.client.get(f"/api/executions/{execution_id}{path}").content for path in paths]
    with running.client.stream("GET", f"/api/executions/{execution_id}/stream") as response:
        streamed = response.read()
    return documents + [line.removeprefix(b"data: ") for line in streamed.splitlines() if line.startswith(b"data: ")]


def parsed_by_node(documents: list[bytes]) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no second parser: node is not here")
    program = (
        "const read = new TextDecoder('utf-8', {fatal: true});"
        "for (const one of JSON.parse(require('fs').readFileSync(0)))"
        "  JSON.parse(read.decode(Buffer.from(one, 'base64')))"
    )
    told = json.dumps([base64.b64encode(one).decode() for one in documents])
    subprocess.run([node, "-e", program], input=told, text=True, check=True, timeout=60)


DAMAGED = {
    "a control sequence before it": b"\x1b[2K" + b'{"type":"user","a":1}',
    "control sequences in it": b'{"type":"user",\x1b[0m"a":"\x1b[31mred\x1b[0m"}',
    "a byte order mark": b"\xef\xbb\xbf" + b'{"type":"user","a":1}',
    "a raw tab": b'{"type":"user","a":"\t"}',
    "NUL": b'{"type":"user","a":"\x00"}\x00',
    "no numbers": b'{"type":"user","a":[NaN,Infinity,-Infinity]}',
    "half a character": b'{"type":"user","a":"\\ud83d"}',
    "no UTF-8 in a field nobody reads": b'{"type":"user","a":{"b":["\xff\xc0\xaf\xed\xa0\x80\xe2\x82"]}}',
    "no UTF-8 in a name": b'{"type":"user","\xff":1}',
    "Latin-1": '{"type":"user","a":"süß"}'.encode("latin-1"),
    "text before it": b'Loading...{"type":"user","a":1}',
    "text after it": b'{"type":"user","a":1}Loading...',
    "two objects": b'{"type":"user","a":1}{"type":"user","a":2}',
    "three objects and blanks": b'{"type":"user","a":1} {"type":"user","a":2}\t\r{"type":"user","a":3}',
    "the beginning of another": b'{"type":"user","a":"{"type":"user","a":1}',
    "a name twice": b'{"type":"user","a":1,"a":2}',
    "a long number": b'{"type":"user","a":' + b"7" * 6000 + b"}",
    "many levels": b'{"type":"user","a":' + b"[" * 950 + b"]" * 950 + b"}",
    "too many levels": b'{"type":"user","a":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "no JSON at all": b"\x1b]0;title\x07\xff\x00 it says",
    "nearly JSON": b"{'type': 'user', a: 1,}",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_n1_what_leaves_is_json_whatever_was_printed(running: Supervised, name: str) -> None:
    execution_id = f"damaged-{list(DAMAGED).index(name)}"
    status, answer = post(running, INIT, printed(DAMAGED[name]), RESULT, execution_id=execution_id)

    assert (status, answer["response"]) == (200, "Done.")
    assert [frame["type"] for frame in answer["execution_log"]][:: len(answer["execution_log"]) - 1] == [
        "system",
        "result",
    ]
    for document in everything_that_leaves(running, execution_id):
        strictly(document)


def test_n1_what_leaves_is_json_for_another_parser_too(running: Supervised) -> None:
    steps = [printed(data) for data in DAMAGED.values()]
    status, _ = post(running, INIT, *steps, RESULT, execution_id="another-parser")

    documents = everything_that_leaves(running, "another-parser")
    assert status == 200
    assert len(documents) > len(DAMAGED)
    parsed_by_node(documents)


@pytest.mark.parametrize(
    "line",
    [
        b'\x1b[2K{"type":"result","subtype":"success","is_error":false,"result":"Found."}',
        b'half a line{"type":"result","subtype":"success","is_error":false,"result":"Found."}',
        b'{"type":"user","a":1}{"type":"result","subtype":"success","is_error":false,"result":"Found."}',
        b'{"type":"stream_event","event":{}}{"type":"result","subtype":"success","is_error":false,"result":"Found."}',
        b'{"type":"result","subtype":"success","is_error":false,"result":"Found.","cost":NaN} and more',
    ],
    ids=["a control sequence", "half a line", "another frame", "a partial message", "no number, and text"],
)
def test_n1_a_result_is_found_in_a_damaged_line(running: Supervised, line: bytes) -> None:
    status, answer = post(running, INIT, {"do": "assistant", "text": "Looking."}, printed(line))

    assert (status, answer["response"]) == (200, "Found.")
    assert answer["execution_log"][-1]["type"] in {"result", "agent_runtime"}
    assert any(frame["type"] == "result" for frame in answer["execution_log"])


def test_n1_a_refusal_that_something_else_quotes_stops_nothing(running: Supervised) -> None:
    refusal = b'{"type":"system","subtype":"api_retry","attempt":1,"error_status":401,"error":"authentication_failed"}'
    status, answer = post(running, INIT, printed(b"the log says " + refusal), RESULT)

    assert (status, answer["response"]) == (200, "Done.")
    assert running.get("/api/token")["state"] == "ready"


@pytest.mark.slow
@pytest.mark.real_cli
@pytest.mark.newest_cli
def test_n1_a_tool_that_writes_between_the_real_clis_frames_spoils_no_answer(
    tmp_path: Path, api: MessagesApi, url: str, claude: str
) -> None:
    command = r"printf '\033[2K' > /proc/$PPID/fd/1; printf '\000\377{\"type\":\"x\"}' > /proc/$PPID/fd/1"
    api.script("write", Tool(command=command), Text(text="written"))
    with supervised(tmp_path, api_url=url, claude=claude) as running:
        response = running.post("[[script:write]] Do it.", execution_id="written")
        answer = strictly(response.content)
        documents = everything_that_leaves(running, "written")

    assert (response.status_code, answer["response"]) == (200, "written")
    assert {"type": "x"} in answer["execution_log"], "the tool did write there"
    for document in documents:
        strictly(document)
    parsed_by_node(documents)
