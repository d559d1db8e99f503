"""Title, labels and the beginning of the message of a task: where they are shown, and what never is."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.errors import InvalidRequest
from agent_runtime.model.task_reading import parse
from agent_runtime.model.tokens import Token
from agent_runtime.store.tasks import PROMPT_LENGTH, TaskStore
from agent_runtime.telemetry.redaction import Redactor
from tests.support.supervised import NEW, OLD, Supervised, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OK = {"script": [{"do": "init"}, {"do": "result", "text": "Done."}]}
HANG = {"script": [{"do": "init"}, {"do": "hang"}]}
ODD = "<img src=x onerror=alert(1)> & = % + \n \0 \u202e \u00e9 \U0001f600"


def task(redact: Any = str, **fields: Any) -> Any:
    return parse(json.dumps({"message": "x", **fields}).encode(), strict=True, redact=redact)[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"title": "x" * 120},
        {"title": "\U0001f600" * 120},
        {"title": None, "labels": None},
        {"labels": {}},
        {"labels": {"a" * 63: "v" * 256, "a_b.c-9": "", "...": ODD}},
        {"labels": {f"n{n}": "v" for n in range(16)}},
    ],
)
def test_a_name_may_be(fields: dict[str, Any]) -> None:
    given = task(**fields)

    assert (given.title, given.labels) == (fields.get("title"), fields.get("labels"))
    assert given.digest == task().digest, "names are no work"


@pytest.mark.parametrize("title", ["", " ", "\u00a0\u3000", "a\nb", "a\tb", "a\x00", "\x9b31m", "x" * 121, 1, ["x"]])
def test_a_title_may_not_be(title: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^title: "):
        task(title=title)


@pytest.mark.parametrize(
    "labels",
    [
        *({name: "v"} for name in ("", "A", "a b", "a/b", "\u00e9", "a\n", "a=b", "x" * 64)),
        *({"a": value} for value in (1, None, True, ["v"], {"b": "c"}, "v" * 257)),
        {f"n{n}": "v" for n in range(17)},
        *(["a"], "a=b", 1),
    ],
)
def test_labels_may_not_be(labels: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^labels: "):
        task(labels=labels)


def test_tokens_are_taken_out_of_names_and_the_rest_can_be_read_again() -> None:
    redact = Redactor([Token(OLD), Token("shorty-1")]).redact_text
    given = task(redact, title=f"with {OLD}"[:120], labels={"a": f"{NEW} too", "b": "shorty-1" * 32})

    text = json.dumps([given.title, given.labels])
    assert not any(secret in text for secret in (OLD, NEW, "shorty-1"))
    assert task(title=given.title, labels=given.labels).labels == given.labels
    assert task(redact, title="shorty-1" * 15).title.startswith("[token:")
    with pytest.raises(InvalidRequest, match="token"):
        task(redact, labels={OLD[:63]: "v"})


@pytest.mark.parametrize("secret", [OLD, NEW, "opaque/token+of=a~gateway.0001"])
def test_a_token_at_the_end_of_what_is_shown_of_a_message_is_never_seen_in_part(tmp_path: Path, secret: str) -> None:
    store = TaskStore(tmp_path, Redactor([Token(OLD), Token("opaque/token+of=a~gateway.0001")]))
    for before in range(PROMPT_LENGTH - len(secret) - 5, PROMPT_LENGTH + 5):
        text = "\U0001f600" * before + secret + "\u00e9" * 300
        prompt = store.prepare(task(message=text), []).prompt
        assert len(prompt) == PROMPT_LENGTH
        assert set(prompt.lstrip("\U0001f600").rstrip("\u00e9").partition("]")[0]) <= set("[token:0123456789abcdef")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("names")) as running:
        yield running


def listed(running: Supervised, **query: str) -> list[str]:
    response = running.client.get("/api/executions", params=query)
    assert response.status_code == 200, response.text
    return [one["execution_id"] for one in response.json()["executions"]]


def test_names_are_shown_wherever_an_execution_is_and_change_with_a_retry(running: Supervised) -> None:
    names = {"title": f"A <b>title</b> with {OLD}", "labels": {"team": "search", "odd": ODD}}
    shown = {"title": "A <b>title</b> with [token:", "labels": names["labels"]}
    one = running.start(HANG, execution_id="named", **names)
    eventually(lambda: running.get("/api/executions/running")["executions"])

    (held,) = running.get("/api/executions/running")["executions"]
    for found in (held, running.record("named"), running.get("/api/executions/named/status")):
        assert found["title"].startswith(shown["title"])
        assert found["labels"] == shown["labels"]
    assert running.record("named")["prompt"] == json.dumps(HANG)
    assert listed(running, **{"label.odd": ODD, "label.team": "search", "state": "running"}) == ["named"]
    running.client.post("/api/executions/named/terminate")
    one.answer()

    assert running.post(HANG, execution_id="named", title="Another", async_result=True).status_code == 202
    record = running.record("named")
    assert (record["title"], record["labels"]) == ("Another", names["labels"])
    eventually(lambda: running.record("named")["state"] == "running")
    running.client.post("/api/executions/named/terminate")
    with running.client.stream("GET", "/api/events?last_event_id=1") as stream:
        told = (json.loads(line[6:]) for line in stream.iter_lines() if '"execution_id":"named"' in line)
        events = list(itertools.islice(told, 6))
    assert [event["type"] for event in events] == [
        f"execution.{name}" for name in ("admitted", "started", "finished")
    ] * 2
    assert all(event["data"]["labels"] == names["labels"] for event in events)
    assert [event["data"]["title"] for event in events] == [held["title"]] * 3 + ["Another"] * 3


def test_a_list_by_labels_goes_on_with_its_cursor(running: Supervised) -> None:
    for n in range(5):
        running.post(OK, execution_id=f"page-{n}", labels={"kind": "page", "n": str(n)})

    seen, query = [], {"label.kind": "page", "limit": "2", "outcome": "success", "state": "finished"}
    while True:
        page = running.client.get("/api/executions", params=query).json()
        seen += [one["execution_id"] for one in page["executions"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert seen == [f"page-{n}" for n in reversed(range(5))]
    assert listed(running, **{"label.kind": "page", "label.n": "3"}) == ["page-3"]
    assert listed(running, **{"label.kind": "Page"}) == listed(running, **{"label.n": ""}) == []


@pytest.mark.parametrize(
    "query",
    [
        *(
            "labels=x",
            "label=x",
            "label.NAME=x",
            "label.=x",
            "label.A=x",
            "label.a%20b=x",
            "label.%C3%A9=x",
            f"label.{'a' * 64}=x",
            "label.a%0A=x",
        ),
        *(f"label.a={'v' * 257}", "label.a=1&label.a=1", "label.a=1&label.%61=2", "state=queued&state=queued"),
        "&".join(f"label.n{n}=x" for n in range(17)),
    ],
)
def test_a_query_that_cannot_be_meant_is_refused(running: Supervised, query: str) -> None:
    response = running.client.get(f"/api/executions?{query}")

    assert (response.status_code, response.json()["error_class"]) == (400, "invalid_request")


def test_turned_off_prompts_are_neither_kept_nor_shown(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        running.post(OK, execution_id="before")
        assert running.record("before")["prompt"]
    with supervised(tmp_path, environment={"AGENT_RUNTIME_SHOW_PROMPTS": "false"}) as running:
        running.post(OK, execution_id="after")
        assert {running.record(one)["prompt"] for one in ("before", "after")} == {None}
        assert {one["prompt"] for one in running.get("/api/executions")["executions"]} == {None}
    with supervised(tmp_path) as running:
        assert running.record("after")["prompt"] is None
