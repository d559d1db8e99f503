"""The gate: which token may be used now, for whom; a real file, and what is known of its token."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from agent_runtime.errors import AgentRuntimeError, NoToken, TokenLimited, TokenUnpaid, TokenUnusable
from agent_runtime.model.state import TokenState, TokenTrouble
from agent_runtime.secret.file import SecretFile
from agent_runtime.secret.generations import Generation, GenerationLedger
from agent_runtime.secret.writer import put
from agent_runtime.telemetry.events import EventLog
from agent_runtime.tokens.gate import TokenGate
from agent_runtime.tokens.status import BILLING_RETRY_SECONDS, Limit, TokenStatuses

if TYPE_CHECKING:
    from pathlib import Path

A = "sk-ant-oat01-token-a-of-these-tests-0000000000000000"
B = "sk-ant-oat01-token-b-of-these-tests-0000000000000000"
REFUSED, BLOCKED, BILLING = TokenTrouble.REFUSED, TokenTrouble.BLOCKED, TokenTrouble.BILLING


class Gate:
    """A gate, its file and its events."""

    def __init__(self, directory: Path, *, probes: bool = False) -> None:
        ledger = GenerationLedger(None)
        self.path = directory / "token"
        self.events = EventLog()
        self.secret = SecretFile(self.path, ledger=ledger, withdraw_after_seconds=0.01)
        self.statuses = TokenStatuses(ledger)
        self.gate = TokenGate(self.secret, self.statuses, self.events, probes=probes)

    def write(self, token: str, **fields: object) -> Generation:
        put(self.path, json.dumps({"token": token, **fields}).encode())
        self.secret.poll()
        current = self.gate.current
        assert current is not None
        return current

    @property
    def told(self) -> list[str]:
        return [event.type for event in self.events.after(0)[0]]


@pytest.fixture
def at(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def usable(at: Gate, generation: Generation, model: str | None = None) -> bool:
    """Ask at admission and at the spawn; they agree."""
    verdicts = []
    for ask in (lambda: at.gate.require(model), lambda: at.gate.require_for_spawn(generation, model, "one")):
        try:
            ask()
            verdicts.append(True)
        except AgentRuntimeError:
            verdicts.append(False)
    assert verdicts[0] is verdicts[1]
    return verdicts[0]


def test_a_good_token_may_be_used(at: Gate) -> None:
    generation = at.write(A)

    assert usable(at, generation)
    assert (at.gate.state, at.gate.require()) == ("ready", generation)


def test_without_a_file_there_is_no_token(at: Gate) -> None:
    at.secret.poll()

    with pytest.raises(NoToken):
        at.gate.require()
    assert at.gate.state == "missing"


def test_an_expired_token_may_not_be_used(at: Gate) -> None:
    generation = at.write(A, expires_at=time.time() - 1)

    assert not usable(at, generation)
    with pytest.raises(TokenUnusable, match="expired"):
        at.gate.require()
    assert at.gate.state == "expired"


def test_a_refused_token_may_not_be_used_until_its_pause_is_over_and_then_by_one(at: Gate) -> None:
    generation = at.write(A)
    at.statuses.mark(generation, REFUSED, time.monotonic())
    assert not usable(at, generation)
    assert at.gate.state == "refused"

    at.statuses.retry_now(generation)
    at.gate.require_for_spawn(generation, None, "one")

    with pytest.raises(TokenUnusable):
        at.gate.require_for_spawn(generation, None, "another")
    with pytest.raises(TokenUnusable):
        at.gate.require()


def test_where_the_probe_asks_no_execution_tries_a_refused_token_unless_the_probe_could_not_tell(
    tmp_path: Path,
) -> None:
    at = Gate(tmp_path, probes=True)
    generation = at.write(A)
    at.statuses.mark(generation, REFUSED, time.monotonic())
    at.statuses.retry_now(generation)
    assert not usable(at, generation)

    at.statuses.leave_to_execution(generation)

    assert usable(at, generation)


@pytest.mark.parametrize(
    ("trouble", "kind", "says"),
    [(REFUSED, TokenUnusable, "refused"), (BLOCKED, TokenUnusable, "blocked"), (BILLING, TokenUnpaid, "cannot pay")],
)
def test_a_token_in_trouble_is_turned_away_as_what_it_is_with_what_to_do(
    at: Gate, trouble: TokenTrouble, kind: type[AgentRuntimeError], says: str
) -> None:
    generation = at.write(A)
    at.statuses.mark(generation, trouble, time.monotonic())

    assert not usable(at, generation)
    assert at.gate.state == TokenState(trouble)
    with pytest.raises(kind, match=says) as refused:
        at.gate.require()
    assert refused.value.status == 503
    assert "secret file" in str(refused.value)


def test_where_the_probe_asks_one_execution_tries_an_account_that_could_not_pay(tmp_path: Path) -> None:
    at = Gate(tmp_path, probes=True)
    generation = at.write(A)
    at.statuses.mark(generation, BILLING, time.monotonic() - BILLING_RETRY_SECONDS)

    assert usable(at, generation)
    with pytest.raises(TokenUnpaid):
        at.gate.require_for_spawn(generation, None, "another")


def test_of_several_states_the_one_is_shown_that_says_most(at: Gate) -> None:
    generation = at.write(A)
    shown = [at.gate.state]
    at.gate.note_limit(generation, Limit("five_hour", None, time.time() + 60))
    shown.append(at.gate.state)
    at.statuses.mark_suspect(generation, "one", time.monotonic())
    shown.append(at.gate.state)
    at.statuses.mark(generation, BILLING, time.monotonic())
    at.statuses.mark_suspect(generation, "one", time.monotonic())
    shown.append(at.gate.state)
    at.write(A, expires_at=time.time() - 1)
    shown.append(at.gate.state)

    assert shown == ["ready", "limited", "suspect", "billing", "expired"]


def test_a_limit_closes_for_those_it_concerns_and_says_until_when(at: Gate) -> None:
    generation = at.write(A)
    at.gate.note_limit(generation, Limit("seven_day_opus", "opus", time.time() + 100))
    assert usable(at, generation)
    assert not usable(at, generation, "claude-opus-4-1")
    assert at.gate.state == "limited"

    until = time.time() + 50
    at.gate.note_limit(generation, Limit("five_hour", None, until))

    with pytest.raises(TokenLimited) as limited:
        at.gate.require()
    assert 45 <= (limited.value.retry_after_seconds or 0) <= 50
    assert limited.value.resets_at == until


def test_a_limit_of_which_the_end_is_unknown_is_shown_without_one(at: Gate) -> None:
    generation = at.write(A)
    at.gate.note_limit(generation, Limit(None, None, time.time() + 60, has_known_end=False))

    with pytest.raises(TokenLimited) as limited:
        at.gate.require()
    assert limited.value.resets_at is None
    assert limited.value.retry_after_seconds is not None


def test_a_limit_has_known_end_once(at: Gate) -> None:
    generation = at.write(A)
    for _ in range(3):
        at.gate.note_limit(generation, Limit("five_hour", None, time.time() + 60))

    assert at.told == ["token.limited"]


def test_while_a_token_is_suspect_new_executions_wait_and_are_not_turned_away(at: Gate) -> None:
    generation = at.write(A)
    at.statuses.mark_suspect(generation, "one", time.monotonic())
    assert at.gate.is_verifying
    assert at.gate.state == "suspect"
    assert usable(at, generation)

    at.write(B)

    assert not at.gate.is_verifying, "an older token that is suspect makes no execution wait"


def test_a_newer_generation_counts_only_where_it_can_be_used(at: Gate) -> None:
    assert not at.gate.is_newer_usable(None, None)
    first = at.write(A)
    assert at.gate.is_newer_usable(None, None)
    assert not at.gate.is_newer_usable(first, None)

    second = at.write(B)
    assert at.gate.is_newer_usable(first, None)
    assert not at.gate.is_newer_usable(second, None)
    at.gate.note_limit(second, Limit("seven_day_opus", "opus", time.time() + 60))
    assert at.gate.is_newer_usable(first, "claude-sonnet-4-5")
    assert not at.gate.is_newer_usable(first, "claude-opus-4-1")
    at.statuses.mark(second, REFUSED, time.monotonic())
    assert not at.gate.is_newer_usable(first, None)

    at.write("sk-ant-oat01-token-c-of-these-tests-0000000000000000", expires_at=time.time() - 1)
    assert not at.gate.is_newer_usable(first, None)


def test_a_refused_token_that_returns_under_a_new_number_is_no_newer_one(at: Gate) -> None:
    first = at.write(A)
    at.statuses.mark(first, REFUSED, time.monotonic())
    at.write(B)
    third = at.write(A)

    assert third.number == 3
    assert not at.gate.is_newer_usable(first, None)
    assert at.gate.state == "refused"


def test_a_token_that_is_accepted_after_all_is_good_again(at: Gate) -> None:
    first = at.write(A)
    at.statuses.mark(first, REFUSED, time.monotonic())
    assert not at.gate.is_good_again(first, None)

    at.statuses.accept(first)

    assert at.gate.is_good_again(first, None)
    at.write(B)
    assert not at.gate.is_good_again(first, None)
