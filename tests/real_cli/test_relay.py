"""The relay with the real Claude Code, against the stand-in API on loopback."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, UsageLimit, serve
from tests.support.supervised import API_KEY, NEW, OLD, eventually, supervised
from tests.support.tls_api import tls_api

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.supervised import Supervised

pytestmark = [pytest.mark.real_cli, pytest.mark.slow, pytest.mark.timeout(300)]

RELAY = {"AGENT_RUNTIME_TOKEN_DELIVERY": "relay"}
EXECUTIONS = 8
SWITCHES = 10


@pytest.fixture
def api() -> MessagesApi:
    return MessagesApi()


@pytest.fixture
def base_url(api: MessagesApi) -> Iterator[str]:
    with serve(api) as url:
        yield url


def token(number: int) -> str:
    return f"sk-ant-oat01-number-{number:02}-of-the-relay-with-the-real-cli"


def tools_of(number: int, log: Path) -> Tool:
    return Tool(command=f"echo {number} >>{log}-$AGENT_RUNTIME_EXECUTION_ID; sleep 0.5")


def in_their_first_attempt(running: Supervised, ids: list[str]) -> None:
    for execution_id in ids:
        record = running.record(execution_id)
        assert record["outcome"] == "success", record
        assert len(record["attempts"]) == 1, record
        assert record["attempts"][0]["stop_reason"] is None
        assert record["metadata"]["resumes"] == 0


def test_eight_executions_finish_over_ten_switches_in_their_first_attempt(
    tmp_path: Path, api: MessagesApi, base_url: str, claude: str
) -> None:
    ten_switches(tmp_path, api, base_url, claude, late_seconds=0.0)


@pytest.mark.newest_cli
def test_eight_executions_wait_for_each_of_ten_late_tokens_in_their_first_attempt(
    tmp_path: Path, api: MessagesApi, base_url: str, claude: str
) -> None:
    ten_switches(tmp_path, api, base_url, claude, late_seconds=5.0)


def ten_switches(tmp_path: Path, api: MessagesApi, base_url: str, claude: str, *, late_seconds: float) -> None:
    steps = 12
    *tools, last = (tools_of(number, tmp_path / "ran") for number in range(steps))
    api.script("work", *tools, replace(last, gate="the last switch"), Text(text="finished"))
    api.on_other_tokens("expired")
    api.accept(token(0))
    ids = [f"relay-{number}" for number in range(EXECUTIONS)]
    flags = ("--slots", str(EXECUTIONS), "--park", "60")
    with supervised(tmp_path, api_url=base_url, claude=claude, token=token(0), flags=flags, environment=RELAY) as run:
        for execution_id in ids:
            run.post("[[script:work]] Do it.", execution_id=execution_id, async_result=True)
        for switch in range(1, SWITCHES + 1):
            wanted = len(api.requests) + EXECUTIONS // 2
            api.wait_for(lambda api: len(api.requests) >= wanted or all_wait(api))  # noqa: B023 - it is called at once
            if late_seconds:
                api.on(token(switch - 1), "expired")
                threading.Event().wait(late_seconds)
            api.accept(token(switch))
            run.write_token(token(switch))
            api.on(token(switch - 1), "expired")
            # A token that is replaced before it was read makes no generation.
            eventually(lambda: run.get("/api/token")["generation"] == switch + 1)  # noqa: B023 - it is called at once
        api.open_gate("the last switch")
        eventually(lambda: all(run.record(execution_id)["outcome"] for execution_id in ids), 120)
        answers = [run.get(f"/api/executions/{execution_id}/result")["answer"] for execution_id in ids]

        assert [answer["response"] for answer in answers] == ["finished"] * EXECUTIONS
        in_their_first_attempt(run, ids)
        tokens = [run.record(execution_id)["attempts"][0]["tokens"] for execution_id in ids]
        assert [used[-1]["generation"] for used in tokens] == [SWITCHES + 1] * EXECUTIONS
        assert run.get("/api/token")["state"] == "ready"
        shown = [run.client.get(f"/api/executions/{execution_id}/stream").text for execution_id in ids]
    assert not any("authentication_failed" in text or "api_retry" in text for text in shown)
    for execution_id in ids:
        ran = (tmp_path / f"ran-{execution_id}").read_text().split()
        assert ran == [str(number) for number in range(steps)], "each tool ran once"


def all_wait(api: MessagesApi) -> bool:
    """Whether each execution has come to the gate: none makes a further request before it is open."""
    return sum(one.script == "work" and one.status is None for one in api.requests) == EXECUTIONS


@pytest.mark.parametrize("first", [pytest.param(OLD, id="oauth"), pytest.param(API_KEY, id="api_key")])
def test_neither_the_cli_nor_its_tools_have_the_token(
    tmp_path: Path, api: MessagesApi, base_url: str, claude: str, first: str
) -> None:
    command = (
        "for f in /proc/$PPID/environ /proc/self/environ /proc/$PPID/cmdline $CLAUDE_CONFIG_DIR/.credentials.json "
        f"$(tr '\\0' '\\n' </proc/$PPID/cmdline | grep settings.json) {tmp_path}/data/run/*/*; "
        f"do cat $f >>{tmp_path}/found 2>/dev/null; done; true"
    )
    api.script("hunt", Tool(command=command), Text(text="hunted"))
    with supervised(tmp_path, api_url=base_url, claude=claude, token=first, environment=RELAY) as run:
        answer = run.post("[[script:hunt]] Hunt.").json()

    found = (tmp_path / "found").read_bytes()
    assert answer["response"] == "hunted"
    assert b"ANTHROPIC_BASE_URL" in found
    assert b"relay-" in found
    assert first.encode() not in found
    assert api.seen(first).requests == 2


@pytest.mark.newest_cli
def test_a_newer_token_of_another_kind_is_taken_by_a_further_attempt(
    tmp_path: Path, api: MessagesApi, base_url: str, claude: str
) -> None:
    api.script("long", Tool(command="true", gate="switched"), Text(text="finished"))
    with supervised(tmp_path, api_url=base_url, claude=claude, environment=RELAY) as run:
        pending = run.start("[[script:long]] Do it.", execution_id="kinds")
        api.wait_for_requests(OLD)
        run.write_token(API_KEY)
        eventually(lambda: run.get("/api/token")["generation"] == 2)
        api.on(OLD, "expired")
        api.open_gate("switched")

        assert pending.answer().json()["response"] == "finished"
        attempts = run.record("kinds")["attempts"]
    assert [[each["generation"] for each in attempt["tokens"]] for attempt in attempts] == [[1], [2]]
    assert NEW not in str(attempts)


CHANGES_WITH_EVERY_RUN = {
    *("x-claude-code-session-id", "x-claude-code-prompt-id", "x-claude-code-prev-tool-durations"),
    *("x-client-request-id", "connection"),
}
"""Names of headers whose values are not compared; their presence is."""


@pytest.mark.every_cli
def test_before_the_api_itself_requests_equal_those_without_a_relay(
    tmp_path: Path, api: MessagesApi, claude: str
) -> None:
    command = f'printf %s "$ANTHROPIC_BASE_URL$ANTHROPIC_UNIX_SOCKET" >>{tmp_path}/seen-by-a-tool; echo ran'
    api.script("tool", Tool(command=command), Text(text="finished"))
    seen, way = {}, ""
    for delivery in ("relay", "env"):
        home = tmp_path / "home"
        with serve(api) as base_url, tls_api(tmp_path / delivery, base_url) as tls:
            environment = {"AGENT_RUNTIME_TOKEN_DELIVERY": delivery, "ANTHROPIC_BASE_URL": "", **tls.environ}
            with supervised(home, claude=claude, environment=environment) as run:
                if delivery == "relay":
                    way = _way_in(run)
                answer = run.post("[[script:tool]] Do it.", execution_id=delivery).json()
            assert answer.get("response") == "finished", answer
            if delivery == "relay":
                # 2.1.30 asks a proxy in clear for the account's settings; that shows an identity, and no token.
                assert not any(OLD.encode() in asked or b"/v1/" in asked for asked in tls.in_clear)
                if "relay's socket" not in way:
                    pytest.skip("this CLI takes no socket")
            seen[delivery] = [one for one in tls.messages if OLD in one[0].get("authorization", "")]

    assert (tmp_path / "seen-by-a-tool").read_text() == ""
    assert len(seen["relay"]) == len(seen["env"])
    for ours, control in zip(seen["relay"], seen["env"], strict=True):
        assert set(ours[0]) - {"connection"} == set(control[0]) - {"connection"}
        differing = {name for name in control[0] if ours[0].get(name) != control[0][name]} - CHANGES_WITH_EVERY_RUN
        assert differing <= {"accept-encoding", "content-length", "x-stainless-timeout"}, differing
        assert _shape(ours[1]) == _shape(control[1])


def _way_in(run: Supervised) -> str:
    """Return how children reach the relay, as soon as that has been proved."""
    eventually(lambda: "yet" not in run.get("/health")["delivery"]["reason"], 90)
    return str(run.get("/health")["delivery"]["reason"])


def _shape(body: bytes) -> object:
    """Return a body without what changes with every run: ids, dates and paths."""
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|cch=[0-9a-f]+|relay|env", "X", body.decode())
    return json.loads(text)


@pytest.mark.newest_cli
@pytest.mark.parametrize("fault", ["expired", "usage_limit"])
def test_all_slots_meet_a_refusal_or_a_limit_and_a_new_token_comes_later(
    tmp_path: Path, api: MessagesApi, base_url: str, claude: str, fault: str
) -> None:
    first, second, third = (tools_of(number, tmp_path / "ran") for number in range(3))
    api.script("work", first, replace(second, gate="all"), third, Text(text="finished"))
    ids = [f"held-{number}" for number in range(EXECUTIONS)]
    flags = ("--slots", str(EXECUTIONS), "--park", "60")
    with supervised(tmp_path, api_url=base_url, claude=claude, flags=flags, environment=RELAY) as run:
        pending = [run.start("[[script:work]] Do it.", execution_id=execution_id) for execution_id in ids]
        api.wait_for_requests(OLD, 2 * EXECUTIONS)
        api.on(OLD, fault)
        api.open_gate("all")
        eventually(lambda: all(run.record(execution_id)["held"] for execution_id in ids))
        state = "refused" if fault == "expired" else "limited"
        eventually(lambda: run.get("/api/token")["state"] == state)
        run.write_token(NEW)
        answers = [one.answer().json() for one in pending]

        assert [answer.get("response") for answer in answers] == ["finished"] * EXECUTIONS
        in_their_first_attempt(run, ids)
        shown = [run.client.get(f"/api/executions/{execution_id}/stream").text for execution_id in ids]
    assert not any("authentication_failed" in text or "api_retry" in text or "rejected" in text for text in shown)
    for execution_id in ids:
        assert (tmp_path / f"ran-{execution_id}").read_text().split() == ["0", "1", "2"], "each tool ran once"


@pytest.mark.newest_cli
def test_a_limit_that_ends_in_time_is_waited_for_by_all_slots(
    tmp_path: Path, api: MessagesApi, base_url: str, claude: str
) -> None:
    first, second, third = (tools_of(number, tmp_path / "ran") for number in range(3))
    api.script("work", first, replace(second, gate="all"), third, Text(text="finished"))
    ids = [f"limit-{number}" for number in range(EXECUTIONS)]
    flags = ("--slots", str(EXECUTIONS), "--park", "0", "--wait-for-reset", "120")
    with supervised(tmp_path, api_url=base_url, claude=claude, flags=flags, environment=RELAY) as run:
        for execution_id in ids:
            run.post("[[script:work]] Do it.", execution_id=execution_id, async_result=True)
        api.wait_for_requests(OLD, 2 * EXECUTIONS)
        resets_at = int(time.time()) + 20
        api.on(OLD, UsageLimit(resets_at=resets_at))
        api.open_gate("all")
        eventually(lambda: all(run.record(execution_id)["held"] for execution_id in ids), 15)
        threading.Event().wait(max(0.0, resets_at - time.time()))
        api.accept(OLD)
        eventually(lambda: all(run.record(execution_id)["outcome"] for execution_id in ids), 60)

        in_their_first_attempt(run, ids)
