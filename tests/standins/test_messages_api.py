"""The stand-in of the Messages API: over HTTP as any client sees it, and with the real CLI."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import httpx
import msgspec
import pytest

from agent_runtime.model.tokens import Token
from agent_runtime.standins.messages_api import (
    FAULTS,
    Cut,
    Fail,
    Hang,
    MessagesApi,
    Raw,
    StreamError,
    Text,
    Tool,
    UsageLimit,
    serve,
)
from agent_runtime.standins.messages_api.policy import REQUESTS_KEPT, SeenRequest
from agent_runtime.standins.messages_api.script import Script
from tests.support.api_mode import leading_to

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLD = "sk-ant-oat01-old"
NEW = "sk-ant-oat01-new"
API_KEY = "sk-ant-api03-key"
AFTER_EVENTS = (None, 0, 3)
"""How far an answer gets: not even to its head; its head alone; the first piece of a text."""

CLI = {"user-agent": "claude-cli/2.1.30 (external, sdk-cli)"}


class Client:
    """Send requests in the form of the CLI's."""

    def __init__(self, base_url: str) -> None:
        self._http = httpx.Client(base_url=base_url, timeout=10, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._http.close()

    def post(self, token: str, *turns: Any, path: str = "/v1/messages?beta=true", **changed: Any) -> httpx.Response:
        return self._http.post(path, headers=headers(token), json=body(*turns, **changed))

    def events(self, token: str, *turns: Any, **changed: Any) -> list[dict[str, Any]]:
        response = self.post(token, *turns, stream=True, **changed)
        assert response.headers["content-type"].startswith("text/event-stream")
        data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in data]

    def raw(self) -> httpx.Client:
        return self._http


def headers(token: str) -> dict[str, str]:
    if token.startswith("sk-ant-api"):
        return {"x-api-key": token}
    return {"authorization": f"Bearer {token}", "anthropic-beta": "claude-code-20250219,oauth-2025-04-20"}


def body(*turns: Any, **changed: Any) -> dict[str, Any]:
    """A request whose messages are a user's and the model's in turn."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns or ("hello",))]
    return {"model": "claude-sonnet-4-5", "max_tokens": 32000, "messages": messages} | changed


def blocks(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    content: list[dict[str, Any]] = response.json()["content"]
    return content


def result_of(block: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "tool_result", "tool_use_id": block["id"], "content": "ok"}]


@pytest.fixture
def api() -> MessagesApi:
    return MessagesApi()


@pytest.fixture
def base_url(api: MessagesApi) -> Iterator[str]:
    with serve(api) as url:
        yield url


@pytest.fixture
def client(base_url: str) -> Iterator[Client]:
    with Client(base_url) as client:
        yield client


def test_a_good_token_gets_the_default_text_streamed_or_not(client: Client) -> None:
    assert blocks(client.post(OLD)) == [{"type": "text", "text": "done"}]

    events = client.events(OLD)
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[2]["delta"] == {"type": "text_delta", "text": "done"}
    assert events[4]["delta"]["stop_reason"] == "end_turn"


def test_only_the_routes_the_cli_needs_exist(client: Client) -> None:
    assert client.raw().head("/").status_code == 200
    missing = client.raw().get("/api/oauth/profile", headers=headers(OLD))
    assert missing.status_code == 404
    assert missing.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("name", [name for name, reply in FAULTS.items() if isinstance(reply, Fail)])
def test_each_named_error_is_answered_in_the_apis_own_form(name: str, api: MessagesApi, client: Client) -> None:
    fault = FAULTS[name]
    assert isinstance(fault, Fail)
    api.on(OLD, name)

    for path in ("/v1/messages?beta=true", "/v1/messages/count_tokens?beta=true"):
        answer = client.post(OLD, path=path)
        assert answer.status_code == fault.status
        assert answer.json()["error"] == {"type": fault.type, "message": fault.message}
        assert answer.json()["request_id"] == answer.headers["request-id"]
        assert fault.headers.items() <= answer.headers.items()


def test_a_usage_limit_says_which_one_and_until_when(api: MessagesApi, client: Client) -> None:
    api.on(OLD, UsageLimit(claim="seven_day", resets_at=2_000_000_000))
    answer = client.post(OLD)
    assert answer.status_code == 429
    assert answer.headers["anthropic-ratelimit-unified-status"] == "rejected"
    assert answer.headers["anthropic-ratelimit-unified-reset"] == "2000000000"
    assert answer.headers["anthropic-ratelimit-unified-representative-claim"] == "seven_day"

    api.on(OLD, UsageLimit(resets_in_seconds=100))
    resets_at = int(client.post(OLD).headers["anthropic-ratelimit-unified-reset"])
    assert 0 < resets_at - time.time() <= 100


def test_the_form_of_a_credential_is_checked_before_what_it_may_do(client: Client) -> None:
    http = client.raw()

    def message(given: dict[str, str]) -> str:
        answer = http.post("/v1/messages", headers=given, json=body())
        assert answer.status_code == 401
        return str(answer.json()["error"]["message"])

    assert message({}) == "x-api-key header is required"
    assert message({"authorization": f"Bearer {OLD}"}) == "OAuth authentication is currently not supported."
    assert message({"x-api-key": OLD}) == "invalid x-api-key"
    assert message({"authorization": f"Bearer {API_KEY}"}) == "Invalid bearer token"
    assert client.post(API_KEY).status_code == 200


def test_a_body_that_is_no_request_is_answered_400(client: Client) -> None:
    answer = client.raw().post("/v1/messages", headers=headers(OLD), content=b"{no json")
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_script_goes_on_when_the_tools_result_comes_back(api: MessagesApi, client: Client) -> None:
    api.script(
        "build", Tool(command="make"), Tool(name="Read", input={"file_path": "/x"}, text="see"), Text(text="built")
    )
    asked = [{"type": "text", "text": "please [[script:build]] it"}]

    (make,) = blocks(client.post(OLD, asked))
    assert make["name"] == "Bash"
    assert make["input"]["command"] == "make"
    said, read = blocks(client.post(OLD, asked, [make], result_of(make)))
    assert (said["text"], read["input"]) == ("see", {"file_path": "/x"})
    (text,) = blocks(client.post(OLD, asked, [make], result_of(make), [said, read], result_of(read)))
    assert text["text"] == "built"


def test_a_streamed_tool_call_carries_its_input_in_deltas(api: MessagesApi, client: Client) -> None:
    api.default(Tool(command="make"))
    events = client.events(OLD)
    assert events[1]["content_block"]["input"] == {}
    assert json.loads(events[2]["delta"]["partial_json"])["command"] == "make"
    assert events[4]["delta"]["stop_reason"] == "tool_use"


def test_after_a_last_tool_the_turn_ends(api: MessagesApi, client: Client) -> None:
    api.default(Tool())
    (tool,) = blocks(client.post(OLD))
    assert blocks(client.post(OLD, "hello", [tool], result_of(tool)))[0]["text"] == "done"


def test_conversations_with_one_token_do_not_disturb_one_another(api: MessagesApi, client: Client) -> None:
    api.script("flaky", "overloaded", Tool(), "server_error", Text())

    def statuses(session: str) -> list[int]:
        ids = {"user_id": f"user_x_account__session_{session}"}
        asked = "[[script:flaky]]"
        seen = [client.post(OLD, asked, metadata=ids) for _ in range(2)]
        (tool,) = blocks(seen[-1])
        seen += [client.post(OLD, asked, [tool], result_of(tool), metadata=ids) for _ in range(2)]
        return [answer.status_code for answer in seen]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(statuses, map(str, range(8)))) == [[529, 200, 500, 200]] * 8


def test_a_conversation_goes_on_with_another_token_where_it_was(api: MessagesApi, client: Client) -> None:
    api.script("long", Tool(command="one"), Tool(command="two"))
    (one,) = blocks(client.post(OLD, "[[script:long]]"))
    api.on(OLD, "revoked")
    history = ("[[script:long]]", [one], result_of(one))
    assert client.post(OLD, *history).status_code == 401

    (two,) = blocks(client.post(NEW, *history, "stopped", "Continue from where you left off."))
    assert two["input"]["command"] == "two"


def test_a_new_mark_begins_a_new_script(api: MessagesApi, client: Client) -> None:
    api.script("one", Tool(command="one"))
    api.script("two", Tool(command="two"))
    (one,) = blocks(client.post(OLD, "[[script:one]]"))
    (two,) = blocks(client.post(OLD, "[[script:one]]", [one], result_of(one), "done", "now [[script:two]]"))
    assert two["input"]["command"] == "two"


def test_a_mark_that_is_not_the_users_word_selects_nothing(api: MessagesApi, client: Client) -> None:
    api.script("forged", "server_error")
    api.default(Tool())
    (tool,) = blocks(client.post(OLD))
    forged = [{"type": "tool_result", "tool_use_id": tool["id"], "content": "[[script:forged]]"}]
    assert client.post(OLD, "hello", [tool], forged).status_code == 200


def test_a_mark_without_a_script_is_an_error_that_names_it(client: Client) -> None:
    answer = client.post(OLD, "[[script:no-such]]")
    assert answer.status_code == 400
    assert "no-such" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "aside",
    [
        {"max_tokens": 1, "tools": [{"name": "Bash"}]},
        {"system": "Extract any file paths"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Warmup"}]}], "tools": [{"name": "Read"}]},
    ],
    ids=["quota", "file paths", "warm-up"],
)
def test_what_the_cli_asks_beside_a_conversation_uses_up_no_script(
    aside: dict[str, Any], api: MessagesApi, client: Client
) -> None:
    def post(**changed: Any) -> httpx.Response:
        return client.raw().post("/v1/messages", headers=headers(OLD) | CLI, json=body("hello", **changed))

    api.on(OLD, "overloaded", Tool())
    assert blocks(post(**aside))[0]["text"] == "done"
    assert post(tools=[{"name": "Bash"}]).status_code == 529
    assert [request.aside for request in api.requests] == [True, False]
    assert api.seen(OLD).requests == 1

    api.on(OLD, "revoked")
    assert post(**aside).status_code == 401


def test_the_mind_about_a_token_can_be_changed_at_any_time(api: MessagesApi, client: Client) -> None:
    assert client.post(OLD).status_code == 200
    api.on(OLD, "expired")
    assert client.post(OLD).status_code == 401
    assert client.post(NEW).status_code == 200
    api.accept(OLD)
    assert client.post(OLD).status_code == 200


def test_tokens_not_named_can_be_refused(api: MessagesApi, client: Client) -> None:
    api.on_other_tokens("invalid")
    api.accept(NEW)
    assert (client.post(OLD).status_code, client.post(NEW).status_code) == (401, 200)
    api.on_other_tokens()
    assert client.post(OLD).status_code == 200


def test_a_slow_text_comes_in_pieces_over_its_time(api: MessagesApi, client: Client) -> None:
    api.default(Text(text="one two three four", over_seconds=0.3, piece_seconds=0.1))
    began = time.monotonic()
    events = client.events(OLD)
    assert time.monotonic() - began >= 0.3
    pieces = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert len(pieces) == 3
    assert "".join(pieces) == "one two three four"


def test_a_reply_waits_at_its_gate(api: MessagesApi, client: Client) -> None:
    api.default(Text(gate="later"))
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(client.post, OLD)
        api.wait_for_requests(OLD)
        assert api.requests[-1].status is None
        api.open_gate("later")
        assert answer.result(10).status_code == 200
    assert client.post(OLD).status_code == 200


@pytest.mark.parametrize("after_events", AFTER_EVENTS)
def test_a_connection_can_be_cut_at_any_moment(after_events: int | None, api: MessagesApi, client: Client) -> None:
    api.default(Cut(after_events=after_events))
    with pytest.raises(httpx.RemoteProtocolError):
        client.events(OLD)


def test_a_connection_cut_in_the_text_had_begun_one(api: MessagesApi, client: Client) -> None:
    api.default("cut_in_text")
    got: list[bytes] = []
    request = client.raw().stream("POST", "/v1/messages", headers=headers(OLD), json=body(stream=True))
    with request as response, pytest.raises(httpx.RemoteProtocolError):
        got.extend(response.iter_raw())
    assert b"text_delta" in b"".join(got)
    assert b"message_stop" not in b"".join(got)


def beginning_of(client: Client, *, timeout_seconds: float = 10, **changed: Any) -> bytes:
    """What arrives of an answer before its connection is closed or it falls silent."""
    got = bytearray()
    request = client.raw().stream(
        "POST", "/v1/messages", headers=headers(OLD), json=body(**changed), timeout=timeout_seconds
    )
    with request as response, contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadTimeout):
        for piece in response.iter_raw():
            got += piece
    return bytes(got)


@pytest.mark.parametrize("of", [Text(text="one two"), Tool(command="make", text="first")], ids=["text", "tool"])
def test_a_stream_can_be_cut_after_any_event(of: Text | Tool, api: MessagesApi, client: Client) -> None:
    api.default(of)
    whole = [event["type"] for event in client.events(OLD)]
    for count in range(len(whole) + 1):
        api.default(Cut(of=of, after_events=count))
        with pytest.raises(httpx.RemoteProtocolError):
            client.events(OLD)
        got = beginning_of(client, stream=True).decode()
        assert [line.removeprefix("event: ") for line in got.splitlines() if line.startswith("event: ")] == whole[
            :count
        ]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("after_bytes", [0, 1, 100, 250, 10_000])
def test_an_answer_can_be_cut_after_any_byte(after_bytes: int, stream: bool, api: MessagesApi, client: Client) -> None:
    api.default(Text(text="x" * 300))
    whole = client.post(OLD, stream=stream).content
    api.default(Cut(of=Text(text="x" * 300), after_bytes=after_bytes))
    with pytest.raises(httpx.RemoteProtocolError):
        client.post(OLD, stream=stream)
    got = beginning_of(client, stream=stream)
    assert len(got) == min(after_bytes, len(whole))
    assert re.sub(rb"_standin\d+", b"", got) == re.sub(rb"_standin\d+", b"", whole[: len(got)])


def test_an_errors_body_can_be_cut_too(api: MessagesApi, client: Client) -> None:
    api.default(Cut(of=Raw(502, "<html>Bad Gateway</html>", {"content-type": "text/html"}), after_bytes=6))
    request = client.raw().stream("POST", "/v1/messages", headers=headers(OLD), json=body())
    with request as response, pytest.raises(httpx.RemoteProtocolError):
        response.read()
    assert response.status_code == 502
    assert beginning_of(client) == b"<html>"


def test_a_stream_can_hang_after_any_event(api: MessagesApi, client: Client) -> None:
    api.default(Hang(of=Tool(command="make"), after_events=2))
    with pytest.raises(httpx.ReadTimeout):
        client.raw().post("/v1/messages", headers=headers(OLD), json=body(stream=True), timeout=0.2)
    got = beginning_of(client, timeout_seconds=0.2, stream=True)
    assert got.count(b"event: ") == 2


def test_an_error_in_mid_stream_is_an_event_of_its_own(api: MessagesApi, client: Client) -> None:
    api.default(StreamError(type="invalid_request_error", message="Output blocked by content filtering policy"))
    *begun, error = client.events(OLD)
    assert [event["type"] for event in begun] == ["message_start", "content_block_start", "content_block_delta"]
    assert error["type"] == "error"
    assert error["error"] == {"type": "invalid_request_error", "message": "Output blocked by content filtering policy"}

    api.default(StreamError(after_events=0))
    assert [event["type"] for event in client.events(OLD)] == ["error"]


def test_an_error_of_a_stream_is_the_answer_where_none_is_asked_for(api: MessagesApi, client: Client) -> None:
    api.on(OLD, StreamError(message="Overloaded"))
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        answer = client.post(OLD, path=path)
        assert (answer.status_code, answer.json()["error"]["type"]) == (529, "overloaded_error")
    api.default(StreamError(status=500, type="of a gateway", message="broken"))
    assert client.post(NEW).status_code == 500


@pytest.mark.parametrize(
    ("told", "content"),
    [
        (Raw(404, {"detail": "Not Found"}), b'{"detail":"Not Found"}'),
        (Raw(401, {"error": {"code": "401", "param": None}}), b'{"error":{"code":"401","param":null}}'),
        (
            Raw(502, "<h1>Bad Gateway</h1>", {"content-type": "text/html", "server": "cloudflare"}),
            b"<h1>Bad Gateway</h1>",
        ),
        (Raw(200, b"\xff\xfe no text"), b"\xff\xfe no text"),
        (Raw(204), b""),
        (Raw(302, "", {"location": "https://login.invalid/"}), b""),
        (Raw(599, [1, 2]), b"[1,2]"),
    ],
    ids=lambda value: value.status if isinstance(value, Raw) else "",
)
def test_any_status_body_and_headers_can_be_answered(
    told: Raw, content: bytes, api: MessagesApi, client: Client
) -> None:
    api.on(OLD, told)
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        answer = client.post(OLD, path=path, stream=True)
        assert (answer.status_code, answer.content) == (told.status, content)
        assert answer.headers["content-type"] == told.headers.get("content-type", "application/json")
        assert told.headers.items() <= answer.headers.items()
        assert "request-id" not in answer.headers
    assert (api.requests[-1].reply, api.requests[-1].status) == ("raw", told.status)


@pytest.mark.parametrize("status", [-1, 0, 100, 199, 600])
def test_what_is_no_status_of_an_answer_is_refused(status: int) -> None:
    with pytest.raises(ValueError, match="status"):
        Raw(status)


@pytest.mark.parametrize("reply", [Text(text="I cannot"), Tool()], ids=["text", "tool"])
def test_an_answer_carries_any_stop_reason_and_usage(reply: Text | Tool, api: MessagesApi, client: Client) -> None:
    api.default(
        msgspec.structs.replace(reply, stop_reason="refusal", usage={"output_tokens": 77, "service_tier": "standard"})
    )
    whole = client.post(OLD).json()
    assert whole["stop_reason"] == "refusal"
    assert whole["usage"] == {"input_tokens": 10, "output_tokens": 77, "service_tier": "standard"}
    ended = client.events(OLD)[-2]
    assert ended["delta"]["stop_reason"] == "refusal"
    assert ended["usage"]["output_tokens"] == 77


def test_the_tokens_of_an_answer_are_counted_as_far_as_it_was_sent(api: MessagesApi, client: Client) -> None:
    usage = {"input_tokens": 7, "cache_read_input_tokens": 3, "service_tier": "standard"}
    api.default(Text(usage=usage))
    client.post(OLD, "a")
    client.events(OLD, "b")
    api.default(Cut(of=Text(usage={"input_tokens": 100}), after_events=2))
    with contextlib.suppress(httpx.HTTPError):
        client.events(OLD, "c")
    api.default("overloaded")
    client.post(OLD, "d")

    whole = {"input_tokens": 7, "output_tokens": 5, "cache_read_input_tokens": 3}
    cut = {"input_tokens": 100, "output_tokens": 1}
    assert [request.usage for request in api.requests] == [whole, whole, cut, {}]


def test_an_empty_text_is_an_answer_without_content(api: MessagesApi, client: Client) -> None:
    api.default(Text(text="", stop_reason="tool_use"))
    assert blocks(client.post(OLD)) == []
    assert [event["type"] for event in client.events(OLD)] == ["message_start", "message_delta", "message_stop"]


def test_a_model_can_be_refused_while_the_others_are_answered(api: MessagesApi, client: Client) -> None:
    """A small model's requests are refused whatever their token, also those beside the conversation."""
    haiku = {"model": "claude-haiku-4-5-20251001"}
    refused = Raw(401, {"error": {"type": "key_model_access_denied", "param": "model", "code": "401"}})
    api.on_model("claude-haiku", refused)
    for token in (OLD, NEW):
        assert client.post(token, **haiku).status_code == 401
        assert client.post(token, path="/v1/messages/count_tokens", **haiku).status_code == 401
        assert client.post(token, max_tokens=1, **haiku).status_code == 401
        assert client.post(token).status_code == 200
        assert client.post(token, path="/v1/messages/count_tokens").status_code == 200
    assert api.requests[-1].model == "claude-sonnet-4-5"

    api.on_model("claude-haiku", "overloaded", Text(text="small"))
    assert client.post(OLD, max_tokens=1, **haiku).status_code == 200
    assert [client.post(OLD, **haiku).status_code for _ in range(2)] == [529, 200]
    api.on_model("claude-haiku")
    assert blocks(client.post(OLD, **haiku))[0]["text"] == "done"


def test_a_request_that_counts_tokens_can_be_answered_by_itself(api: MessagesApi, client: Client) -> None:
    def statuses(token: str) -> tuple[int, int]:
        counted = client.post(token, path="/v1/messages/count_tokens")
        return client.post(token).status_code, counted.status_code

    api.on(OLD, "expired")
    api.on_count_tokens(Text())
    assert (statuses(OLD), statuses(NEW)) == ((401, 200), (200, 200))
    api.on_count_tokens("revoked_403")
    assert (statuses(OLD), statuses(NEW)) == ((401, 403), (200, 403))
    api.on_count_tokens("overloaded", "server_error", Text())
    assert [statuses(NEW)[1] for _ in range(3)] == [529, 500, 200]
    api.on_count_tokens()
    assert statuses(OLD) == (401, 401)


def test_a_partial_tool_call_does_not_move_its_script_on(api: MessagesApi, client: Client) -> None:
    api.script("cut", Cut(of=Tool(command="cut off"), after_events=5), Tool(command="whole"), Text(text="end"))
    events = beginning_of(client, messages=[{"role": "user", "content": "[[script:cut]]"}], stream=True).decode()
    started = next(line for line in events.splitlines() if '"tool_use"' in line)
    cut_off = json.loads(started.removeprefix("data: "))["content_block"]
    (whole,) = blocks(client.post(OLD, "[[script:cut]]", [cut_off], result_of(cut_off)))
    assert whole["input"]["command"] == "whole"


@pytest.mark.parametrize(
    "endless",
    [
        *(Hang(after_events=number) for number in AFTER_EVENTS),
        Text(gate="never"),
        Text(text="long", over_seconds=3600),
    ],
)
def test_the_server_ends_promptly_while_a_request_is_held(
    endless: Hang | Text, api: MessagesApi, caplog: pytest.LogCaptureFixture
) -> None:
    api.default(endless)
    ended = threading.Event()

    def hang(url: str) -> None:
        with Client(url) as client, pytest.raises(httpx.RemoteProtocolError):
            client.post(OLD, stream=True)
        ended.set()

    with serve(api) as url:
        thread = threading.Thread(target=hang, args=(url,))
        thread.start()
        api.wait_for_requests(OLD)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    thread.join(10)
    assert ended.is_set()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("after_events", AFTER_EVENTS)
def test_an_answer_that_hangs_is_left_open_until_the_client_goes(
    after_events: int | None, api: MessagesApi, client: Client
) -> None:
    api.on(OLD, Hang(after_events=after_events))
    with pytest.raises(httpx.ReadTimeout):
        client.raw().post("/v1/messages", headers=headers(OLD), json=body(), timeout=0.1)
    assert api.seen(OLD).requests == 1
    assert api.seen(OLD).by_status == ({} if after_events is None else {200: 1})
    assert client.post(NEW).status_code == 200


def test_requests_are_remembered_with_all_but_the_token(api: MessagesApi, client: Client) -> None:
    client.post(OLD, "[[script:none]]")
    client.post(API_KEY)

    first, second = api.requests
    assert (first.bearer, first.api_key) == (Token(OLD).fingerprint, None)
    assert (second.bearer, second.api_key) == (None, Token(API_KEY).fingerprint)
    assert first.carries(OLD)
    assert not first.carries(NEW)
    assert (second.reply, second.status) == ("text", 200)
    assert (first.method, first.path, first.model, first.status) == ("POST", "/v1/messages", "claude-sonnet-4-5", 400)
    assert "oauth-2025-04-20" in first.beta
    assert api.seen(Token(OLD)).by_status == {400: 1}
    assert api.seen(NEW).requests == 0
    everything = repr(vars(api)) + repr(api)
    assert OLD not in everything
    assert API_KEY not in everything


def test_waiting_in_vain_tells_what_was_seen(api: MessagesApi) -> None:
    with pytest.raises(TimeoutError, match="not seen within"):
        api.wait_for_requests(OLD, timeout_seconds=0.01)


def test_only_the_latest_requests_are_remembered(api: MessagesApi) -> None:
    for n in range(REQUESTS_KEPT + 1):
        api.record_arrival(SeenRequest(n, "POST", "/v1/messages", f"{n:012x}", None, "", ""))
    assert [api.requests[0].at, len(api.requests)] == [1, REQUESTS_KEPT]


@pytest.mark.parametrize("replies", [[], ["no such fault"], [Text(), Tool()]], ids=["empty", "unknown", "after a text"])
def test_a_script_that_cannot_be_meant_is_refused(replies: list[str | Text | Tool]) -> None:
    with pytest.raises(ValueError, match="script"):
        Script(replies)


def test_the_command_line_serves_a_script_file_and_ends_on_sigterm(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    told = {
        "scripts": {"build": ["overloaded", {"kind": "tool", "command": "make"}]},
        "tokens": {OLD: [{"kind": "fail", "status": 418, "type": "teapot", "message": "short and stout"}]},
        "models": {"haiku": [{"kind": "raw", "status": 401, "body": {"error": {"type": "key_model_access_denied"}}}]},
        "count_tokens": [{"kind": "stream_error"}],
        "default": [{"kind": "text", "text": "from the file", "stop_reason": "max_tokens"}],
    }
    script.write_text(json.dumps(told))
    command = [sys.executable, "-m", "agent_runtime.standins.messages_api", "--script", str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        with Client(line.split()[-1]) as client:
            assert client.post(OLD).status_code == 418
            assert client.post(NEW, "[[script:build]]").status_code == 529
            assert blocks(client.post(NEW, "[[script:build]]"))[0]["input"]["command"] == "make"
            assert client.post(NEW).json()["stop_reason"] == "max_tokens"
            assert blocks(client.post(NEW))[0]["text"] == "from the file"
            assert client.post(NEW, model="claude-haiku").json() == {"error": {"type": "key_model_access_denied"}}
            assert client.post(NEW, path="/v1/messages/count_tokens").status_code == 529
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


def test_the_command_line_says_what_is_wrong_with_a_script_file(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('{"default": ["exipred"]}')
    command = [sys.executable, "-m", "agent_runtime.standins.messages_api", "--script", str(script)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert "exipred" in ended.stderr


# The real CLI.


def run_claude(
    claude: str, base_url: str, home: Path, prompt: str, token: str = OLD
) -> subprocess.CompletedProcess[str]:
    """Run the CLI until it ends by itself, with nothing in its environment but what is said here."""
    home.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "CLAUDE_CONFIG_DIR": str(home / "config"),
        "CLAUDE_CODE_OAUTH_TOKEN": token,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "IS_SANDBOX": "1",
    }
    command = [claude, "-p", "--output-format", "stream-json", "--verbose", "--dangerously-skip-permissions"]
    with leading_to(base_url, claude, home / "tls") as way:
        return subprocess.run(
            [*command, "--debug-to-stderr"],
            input=prompt,
            cwd=home,
            env=environment | way,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def frames(ended: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.real_cli
@pytest.mark.newest_cli
def test_real_executions_follow_their_own_scripts_side_by_side(
    claude: str, api: MessagesApi, base_url: str, tmp_path: Path
) -> None:
    api.script(
        "one", Tool(command="echo first-$((1+1))"), "overloaded", Tool(command="echo again"), Text(text="one ends")
    )
    api.script("two", Tool(command="echo second-$((2+2))"), Text(text="two ends", over_seconds=0.4))
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(run_claude, claude, base_url, tmp_path / "one", "go [[script:one]]")
        two = threads.submit(run_claude, claude, base_url, tmp_path / "two", "go [[script:two]]")
    assert frames(one.result())[-1]["result"] == "one ends"
    assert "first-2" in one.result().stdout
    assert frames(two.result())[-1]["result"] == "two ends"
    assert "second-4" in two.result().stdout
    assert sum(request.path == "/v1/messages" and not request.aside for request in api.requests) == 4 + 2
    assert api.seen(OLD).by_status[529] == 1


@pytest.mark.real_cli
def test_the_real_cli_shows_a_refused_token_at_its_first_request(
    claude: str, api: MessagesApi, base_url: str, tmp_path: Path
) -> None:
    api.on(OLD, "org_not_allowed")  # of all refusals the one each version gives up on at once
    ended = run_claude(claude, base_url, tmp_path / "home", "hello")
    assert "OAuth authentication is currently not allowed" in ended.stderr
    assert {request.status for request in api.requests if request.path == "/v1/messages"} == {403}


@pytest.mark.real_cli
def test_the_real_cli_takes_the_usage_limit_for_one(
    claude: str, api: MessagesApi, base_url: str, tmp_path: Path
) -> None:
    api.on(OLD, UsageLimit(resets_at=int(time.time()) + 3600))
    ended = run_claude(claude, base_url, tmp_path / "home", "hello")
    assert "limit" in frames(ended)[-1]["result"]
    assert frames(ended)[-1]["is_error"]


@pytest.mark.real_cli
def test_the_real_cli_takes_broken_streams_and_a_gateways_page_for_what_they_are(
    claude: str, api: MessagesApi, base_url: str, tmp_path: Path
) -> None:
    api.default(
        StreamError(after_events=1),
        Raw(502, "<h1>Bad Gateway</h1>", {"content-type": "text/html"}),
        Text(text="whole at last", usage={"output_tokens": 77}),
    )
    ended = run_claude(claude, base_url, tmp_path / "home", "hello")
    assert frames(ended)[-1]["result"] == "whole at last"
    assert '"output_tokens":77' in ended.stdout
    assert "<h1>Bad Gateway</h1>" in ended.stderr
    assert [request.reply for request in api.requests if request.path == "/v1/messages" and not request.aside] == [
        "stream_error",
        "raw",
        "text",
    ]


def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_fault(
    api: MessagesApi, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(api) as base_url:
        host, _, port = base_url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert httpx.head(base_url).is_success  # the one before was seen to be gone

    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_small_pieces_of_an_answer_are_sent_without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[int] = []

    class Accepting(asyncio.StreamWriter):
        def __init__(self, transport: asyncio.WriteTransport, *arguments: Any) -> None:
            super().__init__(transport, *arguments)
            options.append(self.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(asyncio.streams, "StreamWriter", Accepting)
    with serve(MessagesApi()) as base_url, Client(base_url) as client:
        client.post(OLD, "hello")

    assert options == [1]
