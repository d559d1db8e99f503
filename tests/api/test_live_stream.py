"""``GET …/stream?partial=true``: the model's text while it is written, to those who are there."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from agent_runtime.client import SyncAgentClient
from agent_runtime.standins.messages_api import MessagesApi, Text, serve
from tests.support.supervised import NEW, OLD, Supervised, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent_runtime.client import StreamEvent


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("live")) as running:
        yield running


@pytest.fixture
def agent(running: Supervised) -> Iterator[SyncAgentClient]:
    with SyncAgentClient(running.url) as agent:
        yield agent


def written(text: str, path: Path, *before: dict[str, Any]) -> dict[str, Any]:
    """Write *text* in pieces as soon as *path* exists, then the whole."""
    pieces = [{"do": "partial", "text": text[at : at + 7]} for at in range(0, len(text), 7)]
    steps = [{"do": "init"}, *before, {"do": "wait_file", "path": str(path)}, *pieces]
    return {"script": [*steps, {"do": "assistant", "text": text}, {"do": "result", "text": text}]}


def text_of(events: list[StreamEvent]) -> str:
    return "".join(event.data["text"] for event in events if event.name == "partial")


def test_text_comes_while_it_is_written_without_tokens_and_is_not_kept(
    running: Supervised, agent: SyncAgentClient, tmp_path: Path
) -> None:
    text = f"It says {NEW} and {OLD}, then more \u00e9."
    agent.submit(json.dumps(written(text, tmp_path / "go")), execution_id="live")
    with contextlib.ExitStack() as held:
        readers = [held.enter_context(contextlib.closing(agent.stream("live", partial=True))) for _ in range(2)]
        plain = held.enter_context(contextlib.closing(agent.stream("live")))
        seen: list[list[StreamEvent]] = [[next(reader)] for reader in (*readers, plain)]
        (tmp_path / "go").touch()
        for events, reader in zip(seen, (*readers, plain), strict=True):
            events.extend(reader)

    *partial, without = seen
    whole = next(e.data["message"]["content"][0]["text"] for e in without if e.data.get("type") == "assistant")
    for events in partial:
        assert text_of(events) == whole
        assert not any(secret in str(event.data) for event in events for secret in (OLD, NEW))
        assert {event.id for event in events if event.name == "partial"} == {None}
        names = [event.name if event.name == "partial" else event.data.get("type") for event in events]
        assert names.index("assistant") > max(at for at, name in enumerate(names) if name == "partial")
        assert [event for event in events if event.name == "message"] == [e for e in without if e.name == "message"]
    assert "partial" not in {event.name for event in without}
    assert text_of(list(agent.stream("live", partial=True))) == ""


@pytest.mark.slow
def test_a_reader_that_takes_nothing_delays_nothing_and_hears_what_it_lost(
    running: Supervised, agent: SyncAgentClient, tmp_path: Path
) -> None:
    flood = {"do": "partial", "text": "x" * 2000, "times": 3000}
    script = written("Hi.", tmp_path / "go")
    script["script"].insert(-2, flood)
    agent.submit(json.dumps(script), execution_id="slow")
    address = urlsplit(running.url)
    with socket.create_connection((address.hostname, address.port)) as stalled:
        stalled.sendall(b"GET /api/executions/slow/stream?partial=true HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert stalled.recv(12) == b"HTTP/1.1 200"
        with contextlib.closing(agent.stream("slow", partial=True)) as events:
            next(events)
            (tmp_path / "go").touch()
            lengths = [(len(e.data["text"]), e.data["dropped"]) for e in events if e.name == "partial"]
        assert eventually(lambda: running.record("slow")["outcome"]) == "success"
        assert sum(length + dropped for length, dropped in lengths) == 6_000_003
        stalled.settimeout(30)
        rest = b""
        while b"event: end" not in rest:
            rest += stalled.recv(1 << 20)
        pieces = [json.loads(line[6:]) for line in rest.splitlines() if line.startswith(b'data: {"text"')]
        assert sum(len(piece["text"]) + piece["dropped"] for piece in pieces) == 6_000_003
        assert sum(piece["dropped"] for piece in pieces) > 500_000


@pytest.mark.parametrize("value", ["", "1", "yes", "True", "true,false", "true&partial=true", "\u00e9"])
def test_another_value_is_refused(running: Supervised, value: str) -> None:
    response = running.client.get(f"/api/executions/live/stream?partial={value}")

    assert (response.status_code, response.json()["error_class"]) == (400, "invalid_request")


@pytest.mark.slow
@pytest.mark.real_cli
@pytest.mark.newest_cli
def test_the_real_cli_is_followed_while_it_writes(tmp_path: Path, claude: str) -> None:
    api = MessagesApi()
    api.accept(OLD)
    text = f"A few words about {NEW} and {OLD}, and some more of them: {'more, ' * 20}over."
    api.script("live", Text(text=text, over_seconds=2.0, piece_seconds=0.05, gate="write"))
    with (
        serve(api) as url,
        supervised(tmp_path, api_url=url, claude=claude) as running,
        SyncAgentClient(running.url) as agent,
    ):
        agent.submit("[[script:live]] Write.", execution_id="real")
        with contextlib.closing(agent.stream("real", partial=True)) as events:
            seen = [next(events)]
            api.open_gate("write")
            seen += events
        answer = agent.result("real")
    assert text_of(seen) == answer.response
    assert len([event for event in seen if event.name == "partial"]) > 5
    assert not any(secret in str(event.data) for event in seen for secret in (OLD, NEW))
