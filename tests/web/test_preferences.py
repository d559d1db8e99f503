"""``Prefer: respond-async`` and ``wait=N`` (RFC 7240): what is read of it, and what a caller then gets."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from agent_runtime.web.preferences import Preferences, preferences
from tests.support.supervised import Supervised, eventually, supervised
from tests.system.test_executions import OK, holding

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], Preferences()),
        (["respond-async"], Preferences(responds_async=True)),
        (["wait=10"], Preferences(wait_seconds=10)),
        (["respond-async, wait=10"], Preferences(responds_async=True, wait_seconds=10)),
        (["respond-async", "wait=10"], Preferences(responds_async=True, wait_seconds=10)),
        (["wait = 10"], Preferences(wait_seconds=10)),
        (["WAIT=10 , Respond-Async"], Preferences(responds_async=True, wait_seconds=10)),
        (['wait="10"'], Preferences(wait_seconds=10)),
        (['wait="10'], Preferences()),
        (['wait=10"'], Preferences()),
        (['wait=""10""'], Preferences()),
        (["wait=007"], Preferences(wait_seconds=7)),
        (["wait=10\t;a=b;c, return=minimal"], Preferences(wait_seconds=10)),
        (["wait=x, wait=10"], Preferences()),
        (["wait 10"], Preferences()),
        (["respond-async;wait=3"], Preferences(responds_async=True)),
        (["wait=0"], Preferences(wait_seconds=0)),
        (["wait=10; foo=bar"], Preferences(wait_seconds=10)),
        (["wait=10, wait=20"], Preferences(wait_seconds=10)),
        (["handling=lenient, , wait=5"], Preferences(wait_seconds=5)),
        (['foo="a, wait=3", wait=4'], Preferences(wait_seconds=4)),
        (['foo="\\", wait=3", wait=4'], Preferences(wait_seconds=4)),
        (['foo="never ended, wait=3'], Preferences()),
        (["foo; wait=3"], Preferences()),
        (["respond-async=x"], Preferences(responds_async=True)),
        (["respond-asynchronously, waiting=3"], Preferences()),
        *(
            ([f"wait{value}"], Preferences())
            for value in ("", "=", "=-1", "=+1", "=1.5", "=1e3", "=x", "=\u0661", "=\u00b2", "=1 0", f"={'9' * 5000}")
        ),
    ],
    ids=repr,
)
def test_preferences_are_read_as_the_rfc_has_them_and_what_is_no_number_of_seconds_is_ignored(
    fields: list[str], expected: Preferences
) -> None:
    assert preferences(fields) == expected


@pytest.mark.parametrize("text", ['"' * 60_000, "," * 60_000, ";" * 60_000, "\\" * 60_000, '"\\' * 30_000])
def test_a_header_that_is_all_separators_costs_no_time(text: str) -> None:
    begun = time.process_time()

    assert preferences([text]) == Preferences()
    assert time.process_time() - begun < 1


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("shared")) as running:
        yield running


def test_k12_a_caller_that_waits_so_long_is_told_to_come_back_and_fetches_the_answer(shared: Supervised) -> None:
    go = shared.home / "go"
    body = {"message": json.dumps(holding(go)), "execution_id": "later"}

    begun = time.monotonic()
    accepted = shared.client.post("/api/task", json=body, headers={"Prefer": "wait=1"})

    assert 0.9 < time.monotonic() - begun < 20
    assert (accepted.status_code, accepted.json()) == (202, {"execution_id": "later", "status": "accepted"})
    assert accepted.headers["location"] == "/api/executions/later"
    assert accepted.headers["preference-applied"] == "wait=1"
    assert shared.client.get("/api/executions/later/result").status_code == 202
    again = shared.client.post("/api/task", json=body, headers={"Prefer": "respond-async, wait = 0"})
    assert (again.status_code, again.headers["preference-applied"]) == (202, "respond-async, wait=0")
    go.touch()
    joined = shared.client.post("/api/task", json=body, headers={"Prefer": "wait=50"})
    assert (joined.status_code, joined.json()["response"]) == (200, "Done.")


def test_k12_what_ends_in_time_is_answered(shared: Supervised) -> None:
    body = {"message": json.dumps(OK), "execution_id": "soon"}

    answer = shared.client.post("/api/task", json=body, headers={"Prefer": "wait=50"})

    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=50")
    kept = shared.client.post("/api/task", json=body, headers={"Prefer": "wait=0"})
    assert (kept.status_code, kept.json()) == (200, answer.json())
    failed = {"message": json.dumps({"script": [{"do": "init"}, {"do": "exit"}]})}
    assert shared.client.post("/api/task", json=failed, headers={"Prefer": "wait=50"}).status_code == 502
    refused = shared.client.post("/api/task", json={"message": ""}, headers={"Prefer": "wait=0"})
    assert refused.status_code == 400


@pytest.mark.parametrize("prefer", ["wait=soon", "wait=-1", "wait", "return=minimal"])
def test_k12_a_wait_that_is_none_is_waited_out(shared: Supervised, prefer: str) -> None:
    go = shared.home / prefer
    pending = shared.start(holding(go), execution_id=f"none-{prefer.replace('=', '-')}")
    eventually(lambda: shared.get("/api/executions/running")["executions"])
    go.touch()
    assert pending.answer().status_code == 200

    answer = shared.client.post("/api/task", json={"message": json.dumps(OK)}, headers={"Prefer": prefer})

    assert (answer.status_code, "preference-applied" in answer.headers) == (200, False)
