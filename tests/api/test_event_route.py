"""What a backend hears over ``GET /api/events`` and by the webhook while executions run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.support.supervised import NEW, eventually, supervised
from tests.system.test_executions import DEAD, OK, events

if TYPE_CHECKING:
    from pathlib import Path


def test_a_backend_hears_of_executions_and_tokens_in_order_and_goes_on_where_it_was(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        running.post(OK, execution_id="good")
        running.post(DEAD, execution_id="dead")
        running.write_token(NEW)
        eventually(lambda: running.get("/api/token")["generation"] == 2)
        fingerprint = running.get("/api/token")["fingerprint"]
        with running.client.stream("GET", "/api/events") as response:
            heard = []
            for event in events(response):
                heard.append(event)
                if event["event"] == "token.loaded" and json.loads(event["data"])["data"]["generation"] == 2:
                    break
        with running.client.stream("GET", "/api/events", headers={"Last-Event-ID": heard[-2]["id"]}) as response:
            again = next(events(response))

    assert [event["event"] for event in heard] == [
        "token.loaded",
        *("execution.admitted", "execution.started", "execution.finished"),
        *("execution.admitted", "execution.started", "token.refused", "execution.finished"),
        "token.loaded",
    ]
    assert again == heard[-1]
    assert json.loads(again["data"])["data"]["fingerprint"] == fingerprint
    assert [int(event["id"]) for event in heard] == sorted(int(event["id"]) for event in heard)


def test_an_open_stream_of_events_ends_with_the_supervisor_and_does_not_delay_it(tmp_path: Path) -> None:
    with supervised(tmp_path) as running, running.client.stream("GET", "/api/events") as response:
        heard = events(response)
        assert next(heard)["event"] == "token.loaded"
        running.process.terminate()
        assert [event["event"] for event in heard] == ["end"]
        assert running.process.wait(30) == 0
