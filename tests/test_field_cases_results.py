"""What becomes of what the CLI prints: kinds K3, K6, K8 and N1 of what people report."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, serve
from tests.supervised import OLD, Supervised, supervised
from tests.test_frame_repair import strictly

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


@pytest.fixture
def api() -> MessagesApi:
    api = MessagesApi()
    api.accept(OLD)
    return api


@pytest.fixture
def base_url(api: MessagesApi) -> Iterator[str]:
    with serve(api) as url:
        yield url


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


@pytest.mark.real_cli
def test_n1_a_tool_that_writes_between_the_real_clis_frames_spoils_no_answer(
    tmp_path: Path, api: MessagesApi, base_url: str, claude: str
) -> None:
    command = r"printf '\033[2K' > /proc/$PPID/fd/1; printf '\000\377{\"type\":\"x\"}' > /proc/$PPID/fd/1"
    api.script("write", Tool(command=command), Text(text="written"))
    with supervised(tmp_path, api_url=base_url, claude=claude) as running:
        response = running.post("[[script:write]] Do it.", execution_id="written")
        answer = strictly(response.content)
        documents = everything_that_leaves(running, "written")

    assert (response.status_code, answer["response"]) == (200, "written")
    assert {"type": "x"} in answer["execution_log"], "the tool did write there"
    for document in documents:
        strictly(document)
    parsed_by_node(documents)
