"""The fleet of ``examples/fleet``, run as the README says; and its backend where an agent or a file is not there."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from agent_runtime.errors import ErrorClass
from agent_runtime.model.tokens import Token
from agent_runtime.standins.messages_api import MessagesApi, UsageLimit, serve
from agent_runtime.telemetry.events import TYPES
from examples.fleet.backend import Agent, Backend, Subscription
from tests.support.supervised import DEADLINE_SECONDS, NEW, OLD, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/switching-tokens-for-a-fleet.md").read_text()
WHOLE_SECONDS = 60
SCRIPTED_AGENTS, FEW_AGENTS = 20, 2


def played(*arguments: str) -> str:
    """Run the example and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "examples.fleet", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * WHOLE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def row(table: str, name: str) -> str:
    [line] = [line for line in table.splitlines() if line.startswith(name)]
    return line.removeprefix(name).strip()


@pytest.mark.slow
def test_twenty_agents_lose_nothing_when_their_subscription_hits_its_limit() -> None:
    begun = time.monotonic()
    table = played()

    assert row(table, "agents, executions").split(",") == [str(SCRIPTED_AGENTS), " 60"]
    assert row(table, "executions lost").split() == ["0", "0"]
    assert row(table, "switches per agent, fewest and most").startswith("1, 1 ")
    assert row(table, "executions that met the limit and were resumed") == "40"
    assert time.monotonic() - begun < WHOLE_SECONDS


@pytest.mark.slow
@pytest.mark.real_cli
@pytest.mark.newest_cli
def test_the_real_cli_in_the_fleet_loses_nothing_either(claude: str) -> None:
    table = played("--agents", str(FEW_AGENTS), "--claude", claude)

    assert row(table, "executions lost").split() == ["0", "0"]


def test_the_page_tells_every_event_and_every_error_class() -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    told = {word for row in rows for word in row.split("`")[1::2]}

    assert set(TYPES) | {str(error_class) for error_class in ErrorClass} <= told
    assert {word for word in told if "." in word} == set(TYPES)


def subscriptions() -> tuple[Subscription, Subscription]:
    return Subscription("first", Token(OLD)), Subscription("second", Token(NEW))


async def noted(notes: list[tuple[str, str]], wanted: Callable[[str], bool]) -> None:
    """Wait for a note of the backend."""
    until = time.monotonic() + DEADLINE_SECONDS
    while not any(wanted(what) for _, what in notes):
        assert time.monotonic() < until, notes
        await asyncio.sleep(0.01)


def backed(agents: list[Agent], given: tuple[Subscription, ...], *wanted: str) -> list[tuple[str, str]]:
    """Run a backend until it has told of all that is wanted, each by its beginning."""
    notes: list[tuple[str, str]] = []

    async def run() -> None:
        backend = Backend(agents, given, lambda agent, what: notes.append((agent, what)))
        serving = asyncio.create_task(backend.run())
        try:
            for one in wanted:
                await noted(notes, lambda what, one=one: what.startswith(one))  # type: ignore[misc] # bound at once
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(run())
    return notes


@pytest.mark.slow
def test_a_limit_that_was_met_while_no_backend_was_there_is_found_and_answered_by_one_file(tmp_path: Path) -> None:
    api = MessagesApi()
    api.on(OLD, UsageLimit())
    with serve(api) as api_url, supervised(tmp_path, api_url=api_url) as running:
        assert running.post("Hello.").status_code == httpx.codes.TOO_MANY_REQUESTS
        first, second = subscriptions()
        agent = Agent("one", running.url, running.token_file, subscription=first)

        notes = backed([agent], (first, second), "connected", "written second")

        assert [what for _, what in notes if what.startswith("written")] == ["written second"]
        eventually(lambda: running.get("/api/token")["subscription"] == "second")
        assert first.usable_at > time.time() + 3000
        assert agent.subscription is second


@pytest.mark.slow
def test_a_refusal_of_which_no_event_is_left_is_found_by_looking(tmp_path: Path) -> None:
    api = MessagesApi()
    api.on(OLD, "invalid")
    with serve(api) as api_url:
        with supervised(tmp_path, api_url=api_url) as before:
            assert before.post("Hello.").status_code == httpx.codes.SERVICE_UNAVAILABLE
        with supervised(tmp_path, api_url=api_url, token=None) as running:
            first, second = subscriptions()
            notes = backed([Agent("one", running.url, running.token_file, first)], (first, second), "written second")

    assert ("one", "token.refused") not in notes


@pytest.mark.slow
def test_a_refused_token_is_never_chosen_again(tmp_path: Path) -> None:
    api = MessagesApi()
    api.on(OLD, "invalid")
    with serve(api) as api_url, supervised(tmp_path, api_url=api_url) as running:
        assert running.post("Hello.").status_code == httpx.codes.SERVICE_UNAVAILABLE
        first, second = subscriptions()
        backed([Agent("one", running.url, running.token_file, first)], (first, second), "written second")

        assert first.usable_at == math.inf


@pytest.mark.slow
def test_an_agent_that_is_not_there_and_a_file_that_cannot_be_written_keep_nobody_from_being_served(
    tmp_path: Path,
) -> None:
    with supervised(tmp_path) as running:
        gone = Agent("gone", "http://127.0.0.1:9", tmp_path / "no-such-directory" / "token")
        there = Agent("there", running.url, running.token_file)

        notes = backed([gone, there], subscriptions(), "out of reach", "not written", "connected")

    assert ("there", "written second") in notes or ("there", "written first") in notes
    assert not any(OLD in what or NEW in what for _, what in notes)


@pytest.mark.slow
def test_with_no_subscription_left_nothing_is_written(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        first, second = subscriptions()
        first.usable_at = second.usable_at = math.inf
        notes = backed([Agent("one", running.url, running.token_file)], (first, second), "no subscription", "connected")

    assert not any(what.startswith("written") for _, what in notes)
