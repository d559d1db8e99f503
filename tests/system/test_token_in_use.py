"""Who holds which token: ``held_by`` of ``GET /api/token``, and ``agent-runtime token wait``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.api.schema.bodies import TokenReport
from agent_runtime.cli.waiting import obstacle_to
from agent_runtime.client.answers import read
from agent_runtime.model.tokens import Token
from tests.cli.test_commands import command, outcome
from tests.support.supervised import NEW, OLD, Supervised, eventually
from tests.system.test_executions import holding
from tests.system.test_switching import state, switching, token

if TYPE_CHECKING:
    from pathlib import Path

FIRST, SECOND = Token(OLD).fingerprint, Token(NEW).fingerprint


def wait_for(running: Supervised, fingerprint: str, *words: str) -> tuple[int, str, str]:
    return outcome(command(running, "token", "wait", "--fingerprint", fingerprint, *words))


@pytest.mark.slow
def test_a_running_execution_holds_the_token_it_was_spawned_with_and_those_that_wait_take_the_new_one(
    tmp_path: Path,
) -> None:
    goes = [tmp_path / "go-0", tmp_path / "go-1"]
    with switching(tmp_path, flags=("--slots", "1")) as running:
        assert token(running)["held_by"] == {}
        pending = [running.start(holding(goes[0]), execution_id="one-0")]
        eventually(lambda: state(running, "one-0") == "running")
        pending.append(running.start(holding(goes[1]), execution_id="one-1"))
        eventually(lambda: state(running, "one-1") == "queued")
        assert token(running)["held_by"] == {"1": 1}
        code, said, _ = wait_for(running, FIRST)
        assert (code, said) == (0, f"{FIRST} is in use, and no running execution holds an older token\n")

        running.write_token(NEW)
        eventually(lambda: token(running)["generation"] == 2)
        assert token(running)["held_by"] == {"1": 1}
        code, said, _ = wait_for(running, SECOND, "--timeout", "0.3")
        assert (code, said) == (
            1,
            f"not in time: {SECOND} is loaded (generation 2), but of the running executions 1 holds generation 1\n",
        )
        code, said, _ = wait_for(running, FIRST, "--timeout", "0")
        assert (code, said) == (1, f"not in time: {FIRST} is not loaded, {SECOND} (generation 2) is\n")

        waiting = command(running, "token", "wait", "--fingerprint", SECOND)
        goes[0].touch()
        assert outcome(waiting)[0] == 0
        eventually(lambda: token(running)["held_by"] == {"2": 1})
        assert state(running, "one-1") == "running", "it was not waited for: it began with the new one"
        goes[1].touch()
        assert [one.answer().status_code for one in pending] == [200, 200]
        assert token(running)["held_by"] == {}


@pytest.mark.slow
def test_where_the_new_token_reaches_running_executions_the_old_one_is_out_of_use_before_they_end(
    tmp_path: Path,
) -> None:
    go = tmp_path / "go"
    with switching(tmp_path, delivery="file") as running:
        pending = [running.start(holding(go), execution_id=f"one-{n}") for n in range(2)]
        eventually(lambda: token(running)["held_by"] == {"1": 2})
        running.write_token(NEW)
        assert wait_for(running, SECOND)[0] == 0
        assert token(running)["held_by"] == {"2": 2}
        assert [state(running, f"one-{n}") for n in range(2)] == ["running"] * 2
        go.touch()
        assert [one.answer().status_code for one in pending] == [200, 200]


@pytest.mark.slow
def test_a_token_that_is_given_by_mistake_is_not_repeated(tmp_path: Path) -> None:
    with switching(tmp_path) as running:
        for wrong in (OLD, FIRST.upper(), FIRST[:-1]):
            code, out, err = wait_for(running, wrong)
            assert (code, out) == (2, "")
            assert wrong not in err
            assert "12 hex digits" in err


@pytest.mark.slow
def test_a_supervisor_that_is_out_of_reach_is_told_in_time(tmp_path: Path) -> None:
    with switching(tmp_path) as running:
        pass
    code, out, err = wait_for(running, FIRST, "--timeout", "0.2")
    assert (code, out) == (75, "")
    assert "--url" in err


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"generation": None, "fingerprint": None, "held_by": {"1": 1}}, "no token is"),
        (
            {"generation": 3, "fingerprint": FIRST, "held_by": {"1": 1, "2": 3}},
            "1 holds generation 1, 3 hold",
        ),
        ({"generation": 10, "fingerprint": FIRST, "held_by": {"9": 1, "10": 1}}, "1 holds generation 9"),
        ({"generation": 3, "fingerprint": FIRST, "held_by": {"3": 1, "4": 1}}, None),
        ({"generation": 3, "fingerprint": FIRST}, None),
    ],
)
def test_what_still_holds_an_older_token_is_named(told: dict[str, Any], says: str | None) -> None:
    obstacle = obstacle_to(FIRST, read(TokenReport, {"state": "ready", **told}) or pytest.fail("it cannot be read"))

    assert (obstacle is None) if says is None else (obstacle is not None and says in obstacle)
