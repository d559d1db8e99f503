"""What must hold on the real Claude Code, against the stand-in API on loopback."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, serve
from tests.support.supervised import API_KEY, NEW, OLD, eventually, marked_processes, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.real_cli, pytest.mark.every_cli, pytest.mark.timeout(300)]


ENV = ("--token-delivery", "env")
TOKENS = [pytest.param(OLD, id="oauth"), pytest.param(API_KEY, id="api_key", marks=pytest.mark.slow)]


@pytest.fixture
def api() -> MessagesApi:
    api = MessagesApi(keeps_bodies=True)
    api.accept(OLD)
    api.accept(NEW)
    api.accept(API_KEY)
    return api


@pytest.fixture
def base_url(api: MessagesApi) -> Iterator[str]:
    with serve(api) as url:
        yield url


@pytest.mark.parametrize("token", TOKENS)
def test_a_dead_token_ends_the_child_at_its_first_refused_request(
    tmp_path: Path, api: MessagesApi, base_url: str, claude: str, token: str
) -> None:
    api.on(token, "expired")
    with supervised(tmp_path, api_url=base_url, claude=claude, token=token) as running:
        begun = time.monotonic()
        response = running.post("Say hello.", execution_id="dead")
        took_seconds = time.monotonic() - begun

        assert (response.status_code, response.json()["error_class"]) == (503, "auth")
        [attempt] = running.record("dead")["attempts"]
        assert attempt["stop_reason"] == "refused"
        assert "401" in attempt["evidence"]["line"]
        assert attempt["evidence"]["seconds_to_signal"] < 0.5
        assert took_seconds < 50, "the CLI alone takes minutes with an API key"
        assert marked_processes("dead") == []
        assert running.get("/api/token")["state"] == "refused"


def test_four_executions_finish_over_a_switch_and_the_fifth_carries_the_new_token(
    tmp_path: Path, api: MessagesApi, base_url: str, claude: str
) -> None:
    go = tmp_path / "go"
    wait = f"for i in $(seq 600); do test -e {go} && exit 0; sleep 0.05; done; exit 1"
    api.script("long", Tool(command=f"echo began >>{tmp_path}/began; {wait}"), Text(text="finished"))
    with supervised(tmp_path, api_url=base_url, claude=claude, flags=ENV) as running:
        pending = [running.start("[[script:long]] Do it.", execution_id=f"long-{n}") for n in range(4)]
        began = tmp_path / "began"
        eventually(lambda: began.exists() and len(began.read_text().splitlines()) == 4)

        running.write_token(NEW)
        eventually(lambda: running.get("/api/token")["generation"] == 2)
        go.touch()
        answers = [one.answer().json() for one in pending]
        assert [answer["response"] for answer in answers] == ["finished"] * 4
        assert [answer["metadata"]["attempts"] for answer in answers] == [1] * 4
        assert api.seen(NEW).requests == 0

        assert running.post("Say hello.").json()["metadata"]["token_generation"] == 2
        assert api.seen(NEW).requests > 0


def test_a_token_that_a_tool_prints_is_found_nowhere(
    tmp_path: Path, api: MessagesApi, base_url: str, claude: str
) -> None:
    command = "cat /proc/$PPID/environ /proc/$PPID/cmdline"
    api.script("spill", Tool(command=command), Text(text="spilled"))
    argv: list[str] = []
    with supervised(tmp_path, api_url=base_url, claude=claude, flags=ENV) as running:
        pending = running.start("[[script:spill]] Do it.", execution_id="spill")
        for process in eventually(lambda: marked_processes("spill")):
            argv += process.cmdline()
        answer = pending.answer()
        fingerprint = running.get("/api/token")["fingerprint"]
        shown = answer.text + json.dumps(running.record("spill"))
        with running.client.stream("GET", "/api/executions/spill/stream") as response:
            streamed = response.read().decode()

    assert answer.json()["status"] == "success"
    assert f"[token:{fingerprint}]" in streamed, "the tool did print it"
    assert OLD not in shown + streamed + " ".join(argv)
    kept = subprocess.run(["grep", "-rlF", OLD, tmp_path / "data"], capture_output=True, text=True, check=False)
    assert kept.stdout == ""


def test_a_session_is_continued(tmp_path: Path, api: MessagesApi, base_url: str, claude: str) -> None:
    with supervised(tmp_path, api_url=base_url, claude=claude) as running:
        first = running.post("Remember the word blue.").json()
        second = running.post("Which word?", resume_session_id=first["session_id"]).json()

    assert second["status"] == "success"
    bodies = [request.body for request in api.requests if request.path == "/v1/messages" and not request.aside]
    assert b"Remember the word blue." in bodies[-1]


@pytest.mark.slow
def test_what_the_api_never_answers_is_ended_as_stalled(
    tmp_path: Path, api: MessagesApi, base_url: str, claude: str
) -> None:
    api.on(OLD, "hang")
    flags = ("--first-message-timeout", "3")
    with supervised(tmp_path, api_url=base_url, claude=claude, flags=flags) as running:
        response = running.post("Say hello.")

        assert (response.status_code, response.json()["error_class"]) == (504, "stalled")
        assert running.get("/api/token")["state"] == "ready"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("org_not_allowed", (503, "auth")),
        pytest.param("gateway_quota", (502, "upstream"), marks=pytest.mark.slow),
        pytest.param("credit_balance", (503, "billing"), marks=pytest.mark.slow),
        pytest.param("usage_limit", (429, "rate_limit"), marks=pytest.mark.slow),
        pytest.param("unknown_model", (400, "model"), marks=pytest.mark.slow),
    ],
)
def test_every_refusal_has_its_class(  # noqa: PLR0917 - fixtures and parameters
    tmp_path: Path,
    api: MessagesApi,
    base_url: str,
    claude: str,
    fault: str,
    expected: tuple[int, str],
) -> None:
    api.on(OLD, fault)
    with supervised(tmp_path, api_url=base_url, claude=claude) as running:
        response = running.post("Say hello.", timeout_seconds=60)

        assert (response.status_code, response.json()["error_class"]) == expected
        state = {"org_not_allowed": "refused", "credit_balance": "billing", "usage_limit": "limited"}.get(
            fault, "ready"
        )
        assert running.get("/api/token")["state"] == state


@pytest.mark.slow
def test_images_and_mcp_servers_of_a_task_reach_the_cli(
    tmp_path: Path, api: MessagesApi, base_url: str, claude: str
) -> None:
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    server = tmp_path / "server.sh"
    server.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")  # and ends: the CLI waits for no answer
    server.chmod(0o755)
    with supervised(tmp_path, api_url=base_url, claude=claude) as running:
        answer = running.post(
            "Look at it.",
            images=[{"media_type": "image/png", "data": pixel}],
            mcp_config={"mcpServers": {"test": {"command": str(server), "args": []}}},
        ).json()

    assert answer["status"] == "success", answer
    assert (tmp_path / "asked").exists()
    kept = [path.read_text() for path in (tmp_path / "config" / "projects").rglob("*.jsonl")]
    assert any(pixel in session for session in kept), "the CLI has it in its session"


@pytest.mark.slow
def test_summing_a_conversation_up_is_told_in_the_metadata(tmp_path: Path, base_url: str, claude: str) -> None:
    with supervised(tmp_path, api_url=base_url, claude=claude) as running:
        first = running.post("Say hello.", model="sonnet[1m]").json()
        session = {"resume_session_id": first["session_id"]}
        running.post("Say it again.", **session)  # 2.1.197 sums up no fewer messages
        second = running.post("/compact", execution_id="-summed-up", **session).json()

        assert first["metadata"]["compact_events"] == []
        assert first["metadata"]["context_window"] == 1_000_000
        [event] = second["metadata"]["compact_events"]
        assert event["trigger"] == "manual"
        assert event["pre_tokens"] > 0
