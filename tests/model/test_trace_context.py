"""The trace of a caller's request: taken in where it is valid, kept with the task, given to every child."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.model.task import Task
from agent_runtime.model.trace_context import TraceContext, trace_context
from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, serve
from tests.support.supervised import NEW, OLD, Supervised, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
STATE = "rojo=00f067aa0ba902b7,congo@tenant=t61rcWkgMzE"
OWN = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-00"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        PARENT[:-1],
        PARENT + "-more",
        PARENT + "\n",
        PARENT.upper(),
        PARENT.replace("-", "_"),
        PARENT.replace("4bf9", "4bg9"),
        f"ff-{TRACE_ID}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-00f067aa0ba902b7-0x",
        f"01-{TRACE_ID}-00f067aa0ba902b7-01x",
        f"01-{TRACE_ID}-00f067aa0ba902b7-01-" + "x" * 1000,
        "\u0661" + PARENT[1:],
    ],
)
def test_a_traceparent_that_is_not_valid_to_the_letter_is_none(text: str) -> None:
    assert trace_context([text], [STATE]) is None
    assert Task(message="x", traceparent=text, tracestate=STATE).trace is None


def test_a_valid_one_is_passed_on_as_it_is() -> None:
    found = trace_context([f" {PARENT}\t"], [STATE])

    assert found is not None
    assert found.trace_id == TRACE_ID
    assert found.variables == {"TRACEPARENT": PARENT, "TRACESTATE": STATE}


def test_of_two_parents_none_is_right() -> None:
    assert trace_context([PARENT, PARENT]) is None
    assert trace_context([]) is None


@pytest.mark.parametrize("rest", ["", "-what-comes-later"])
def test_of_a_later_version_what_is_known_of_it_is_passed_on(rest: str) -> None:
    found = trace_context([f"cc-{TRACE_ID}-00f067aa0ba902b7-ff{rest}"])

    assert found is not None
    assert found.traceparent == PARENT


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        ([STATE], STATE),
        (["a=1", "b=2,c=3"], "a=1,b=2,c=3"),
        ([], None),
        ([" "], None),
        (["a=\u00e9"], None),
        (["a=1\nTOKEN=2"], None),
        (["a=" + "x" * 256, "b=" + "x" * 256], None),
    ],
)
def test_a_state_that_is_not_valid_is_left_out_and_its_parent_stays(headers: list[str], kept: str | None) -> None:
    found = trace_context([PARENT], headers)

    assert found is not None
    assert found == TraceContext(PARENT, kept)


def test_it_is_no_part_of_what_makes_two_tasks_the_same() -> None:
    assert Task(message="x").digest == Task(message="x").with_trace(trace_context([PARENT])).digest


def run(running: Supervised, path: Path, headers: dict[str, str], **fields: Any) -> list[tuple[str | None, str | None]]:
    """Run a task and tell what its child was given."""
    script = {"script": [{"do": "report", "path": str(path)}, {"do": "init"}, {"do": "result"}]}
    answer = running.client.post("/api/task", json={"message": json.dumps(script), **fields}, headers=headers)
    assert answer.status_code == 200
    [environment] = [json.loads(path.read_text())["environment"]]
    return [(environment.get("TRACEPARENT"), environment.get("TRACESTATE"))]


@pytest.mark.slow
def test_a_child_gets_the_trace_of_its_task_else_that_of_the_supervisor(tmp_path: Path) -> None:
    own = {"TRACEPARENT": OWN, "TRACESTATE": "own=1"}
    with supervised(tmp_path, environment=own) as running:
        both = {"traceparent": PARENT, "tracestate": STATE}
        assert run(running, tmp_path / "1", both) == [(PARENT, STATE)]
        assert run(running, tmp_path / "2", {"traceparent": PARENT}) == [(PARENT, "")], "not the state of another trace"
        assert run(running, tmp_path / "3", {"traceparent": PARENT[:-1], "tracestate": STATE}) == [(OWN, "own=1")]
        assert run(running, tmp_path / "4", {}) == [(OWN, "own=1")]
        assert run(running, tmp_path / "5", {}, **both) == [(PARENT, STATE)], "also where it stands in the body"
        assert run(running, tmp_path / "6", {"traceparent": OWN}, **both) == [(OWN, "")], "the header wins"


@pytest.mark.slow
def test_a_resumed_attempt_and_one_after_a_restart_belong_to_the_same_trace(tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    api = MessagesApi()
    api.accept(OLD)
    go = tmp_path / "go"
    say = f'echo "$TRACEPARENT $PPID" >>{traces}'
    api.script(
        "work",
        Tool(command=f"{say}; until test -e {go}; do sleep 0.02; done"),
        Tool(command=say),
        Tool(command=f"touch {tmp_path}/again; until test -e {go}2; do sleep 0.02; done"),
        Tool(command=say),
        Text(text="finished"),
    )
    flags = ("--token-delivery", "env", "--resume-interrupted", "--drain-timeout", "0.1", "--stop-grace", "2")
    with serve(api) as url:
        with supervised(tmp_path, api_url=url, flags=flags) as running:
            body = {
                "message": "[[script:work]] Do it.",
                "execution_id": "one",
                "async_result": True,
                "park_seconds": 60,
            }
            running.client.post("/api/task", json=body, headers={"traceparent": PARENT})
            eventually(traces.exists)
            api.on(OLD, "expired")
            go.touch()
            eventually(lambda: running.record("one")["state"] == "parked")
            api.accept(NEW)
            running.write_token(NEW)
            eventually((tmp_path / "again").exists)
        with supervised(tmp_path, api_url=url, flags=flags, token=None) as running:
            (tmp_path / "go2").touch()
            eventually(lambda: running.record("one")["outcome"])
            record = running.record("one")

    assert record["outcome"] == "success"
    given = [line.split() for line in traces.read_text().splitlines()]
    assert {parent for parent, _ in given} == {PARENT}
    assert len({pid for _, pid in given}) == len(record["attempts"]) == 3


@pytest.mark.slow
@pytest.mark.real_cli
def test_the_telemetry_of_the_real_cli_joins_the_trace(
    tmp_path: Path, claude: str, clean_environment: dict[str, str]
) -> None:
    version = subprocess.run([claude, "--version"], env=clean_environment, capture_output=True, check=True)
    if tuple(map(int, version.stdout.split()[0].split(b"."))) < READS_TRACEPARENT:
        pytest.skip("this version does not look at TRACEPARENT")
    api = MessagesApi()
    api.accept(OLD)
    with serve(api) as url, collector() as (collector_url, received):
        environment = {
            # Before the API itself 2.1.332 sends one span for its request alone, in a trace of its own.
            "ANTHROPIC_BASE_URL": url,
            "CLAUDE_CODE_ENABLE_TELEMETRY": "1",
            "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA": "1",
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector_url,
        }
        flags = ("--token-delivery", "env")
        with supervised(tmp_path, api_url=url, claude=claude, environment=environment, flags=flags) as running:
            body = {"message": "Say hello."}
            assert running.client.post("/api/task", json=body, headers={"traceparent": PARENT}).status_code == 200
            eventually(lambda: received)

    spans = [span for body in received for span in spans_of(body)]
    assert {span["traceId"] for span in spans} == {TRACE_ID}
    assert any("llm_request" in span["name"] for span in spans)


READS_TRACEPARENT = (2, 1, 330)
"""The first version it was found in, of those tried; the one before, 2.1.30, does not know the name."""


def spans_of(body: bytes) -> Iterator[dict[str, Any]]:
    for resource in json.loads(body)["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            yield from scope["spans"]


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Take what an exporter of OpenTelemetry sends."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                received.append(body)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
