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
