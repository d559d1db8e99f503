"""
Waiting for the end of a usage limit: with ``AGENT_RUNTIME_WAIT_FOR_RESET`` or enough ``park_seconds``.

Reported wishes: anthropics/claude-code #62788, #26775, #36320.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.standins.messages_api import MessagesApi, UsageLimit
from tests.support.supervised import OLD, SUPERVISOR_WITH, Supervised, eventually
from tests.system.test_switching import PLAIN, PROMPT, Work, state, states, switching, token, told

if TYPE_CHECKING:
    from pathlib import Path


SOON = (*SUPERVISOR_WITH, "agent_runtime.supervisor.retry_policy:AFTER_RESET_SECONDS=(0.2, 0.6)")
"""Goes on a moment after the end; that it is 1 to 15 s otherwise is shown by the slow test below."""

WAITING = ("--wait-for-reset", "60")


def limited_for(seconds: float) -> UsageLimit:
    """A limit that ends at one moment, whenever it is met; far enough away for a busy machine to start a CLI."""
    return UsageLimit(resets_at=int(time.time() + seconds) + 1)


def ended(reply: UsageLimit) -> bool:
    assert reply.resets_at is not None
    return time.time() >= reply.resets_at


@pytest.mark.slow
def test_work_goes_on_in_its_session_after_the_end_of_its_limit_without_a_newer_token(
    tmp_path: Path, api: MessagesApi, url: str
) -> None:
    work = Work(api, tmp_path)
    with switching(tmp_path, api_url=url, flags=WAITING, program=SOON) as running:
        pending = running.start(PROMPT, execution_id="work")
        work.wait_until_under_way()
        limit = limited_for(15)
        api.on(OLD, limit)
        work.let_go()
        eventually(lambda: state(running, "work") == "parked")
        status, health = token(running), running.get("/health")
        turned_away = running.post(PLAIN)
        assert running.get("/api/executions/running")["pending_ids"] == ["work"]
        eventually(lambda: ended(limit))
        api.accept(OLD)
        response = pending.answer()
        record, events = running.record("work"), told(running, finished=1)

    assert (response.status_code, response.json()["response"]) == (200, "finished")
    assert work.done == 1
    assert generations_of(record) == [[1], [1], [1]], "met, met again and believed, gone on after its end"
    assert record["attempts"][2]["started_at"] > status["limited_until"]
    assert len({frame["session_id"] for frame in response.json()["execution_log"] if "session_id" in frame}) == 1
    assert (health["slots"]["busy"], status["state"]) == (0, "limited")
    assert (turned_away.status_code, turned_away.json()["error_class"]) == (429, "rate_limit"), "not at admission"
    kinds = [event["type"] for event in events]
    course = ["execution.resumed", "token.limited", "execution.parked", "execution.resumed", "execution.finished"]
    assert [kind for kind in kinds if kind in course] == course, "token.limited is the backend's signal"


def generations_of(record: dict[str, Any]) -> list[list[int]]:
    return [[given["generation"] for given in attempt["tokens"]] for attempt in record["attempts"]]


@pytest.mark.slow
def test_many_that_wait_for_one_end_go_on_spread_over_fifteen_seconds(
    tmp_path: Path, api: MessagesApi, url: str
) -> None:
    ids = [f"waits-{n}" for n in range(8)]
    with switching(tmp_path, api_url=url, flags=("--slots", "8", *WAITING)) as running:
        limit = limited_for(20)
        api.on(OLD, limit)
        pending = [running.start(PLAIN, execution_id=name) for name in ids]
        eventually(lambda: states(running, ids) == ["parked"] * 8)
        eventually(lambda: ended(limit))
        api.accept(OLD)
        # What wakes them before their time is no reason to go on: a task of another model, say.
        assert running.post(PLAIN).status_code == 200
        assert [one.answer().status_code for one in pending] == [200] * 8
        starts = sorted(seconds_after(limit, running, name) for name in ids)

    assert starts[0] >= 1.0
    assert starts[-1] <= 15.0 + 5.0, "and what a start takes here"
    assert starts[-1] - starts[0] > 2.0, "by chance less once in 100 000 runs"


def seconds_after(limit: UsageLimit, running: Supervised, execution_id: str) -> float:
    assert limit.resets_at is not None
    began = running.record(execution_id)["attempts"][-1]["started_at"]
    return datetime.fromisoformat(began).timestamp() - limit.resets_at


@pytest.mark.slow
@pytest.mark.real_cli
@pytest.mark.newest_cli
def test_on_the_real_cli_work_goes_on_in_its_session_after_the_end_of_its_limit(
    tmp_path: Path, api: MessagesApi, url: str, claude: str
) -> None:
    """Up to 2.1.30 the CLI tells the end only in a sentence, to the minute."""
    work = Work(api, tmp_path)
    flags = ("--wait-for-reset", "300")
    with switching(tmp_path, api_url=url, claude=claude, flags=flags, program=SOON) as running:
        pending = running.start(PROMPT, execution_id="work")
        work.wait_until_under_way()
        limit = limited_for(15)
        api.on(OLD, limit)
        work.let_go()
        eventually(lambda: state(running, "work") == "parked")
        limited = token(running)
        eventually(lambda: ended(limit))
        api.accept(OLD)
        response = pending.answer()

    assert limited["state"] == "limited"
    assert (response.status_code, response.json().get("response")) == (200, "finished")
    assert work.done == 1
    log = response.json()["execution_log"]
    assert len({frame["session_id"] for frame in log if frame.get("subtype") == "init"}) == 1
