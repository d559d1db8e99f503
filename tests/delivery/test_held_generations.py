"""Which generation a refusal is about, by when the CLI in use takes a newer one."""

from __future__ import annotations

import pytest

from agent_runtime.delivery.delivery import Delivered
from agent_runtime.delivery.held_tokens import SETTLED_SECONDS, HeldGenerations
from agent_runtime.delivery.reload_check import ReloadBehaviour
from agent_runtime.model.tokens import Token
from agent_runtime.secret.generations import Generation

FIRST, SECOND, THIRD = (
    Generation(number, Token(f"sk-ant-oat01-of-generation-{number}-000000000"), loaded_at=0.0) for number in (1, 2, 3)
)
API_KEY = Generation(4, Token("sk-ant-api03-of-generation-4-000000000"), loaded_at=0.0)


def held_generations(reload_behaviour: ReloadBehaviour) -> HeldGenerations:
    return HeldGenerations(Delivered(FIRST, "file", {}, lambda: reload_behaviour, lambda _newer: True), now=0.0)


def test_the_generation_of_the_spawn_is_charged_from_the_first_request_on() -> None:
    assert held_generations(ReloadBehaviour.ON_REQUEST).carried_at(0.0) == (FIRST, 0.0)


def test_a_newer_one_is_charged_only_when_the_child_has_had_it_for_a_while() -> None:
    child = held_generations(ReloadBehaviour.ON_REQUEST)

    assert child.record_loaded(SECOND, 10.0) is SECOND
    assert child.newest is SECOND
    assert child.carried_at(10.0 + SETTLED_SECONDS / 2) == (FIRST, 0.0)
    assert child.carried_at(10.0 + SETTLED_SECONDS) == (SECOND, 10.0)


def test_of_several_the_latest_settled_one_is_charged() -> None:
    child = held_generations(ReloadBehaviour.ON_REQUEST)
    child.record_loaded(SECOND, 10.0)
    child.record_loaded(THIRD, 11.5)

    assert child.carried_at(12.0) == (SECOND, 10.0)
    assert child.carried_at(12.5) == (THIRD, 11.5)


def test_what_looks_again_only_when_it_is_refused_holds_the_old_one_until_then() -> None:
    child = held_generations(ReloadBehaviour.ON_REFUSAL)

    assert child.record_loaded(SECOND, 10.0) is None
    assert child.carried_at(60.0) == (FIRST, 0.0)
    assert child.record_reread(60.0) is SECOND
    assert child.carried_at(60.0) == (FIRST, 0.0), "the refusal that made it look is about the old one"
    assert child.carried_at(60.0 + SETTLED_SECONDS) == (SECOND, 60.0)
    assert child.record_reread(70.0) is None


def test_what_repeats_a_refused_request_has_a_newer_one_as_soon_as_it_is_loaded_until_the_model_answers() -> None:
    child = held_generations(ReloadBehaviour.ON_REFUSAL)

    assert child.record_refusal(10.0) is None
    assert child.record_loaded(SECOND, 15.0) is SECOND
    assert child.carried_at(15.0 + SETTLED_SECONDS) == (SECOND, 15.0)
    child.record_answer()
    assert child.record_loaded(THIRD, 20.0) is None


@pytest.mark.parametrize("reload_behaviour", [ReloadBehaviour.ON_REQUEST, ReloadBehaviour.ON_REFUSAL])
def test_an_older_or_the_same_generation_changes_nothing(reload_behaviour: ReloadBehaviour) -> None:
    child = held_generations(reload_behaviour)
    child.record_loaded(THIRD, 1.0)
    child.record_reread(1.0)

    assert child.record_loaded(SECOND, 2.0) is None
    assert child.record_loaded(THIRD, 2.0) is None
    assert child.record_reread(2.0) is None
    assert child.newest is THIRD


@pytest.mark.parametrize("reload_behaviour", ReloadBehaviour)
def test_an_api_key_never_reaches_a_running_child(reload_behaviour: ReloadBehaviour) -> None:
    child = held_generations(reload_behaviour)

    assert child.record_loaded(API_KEY, 1.0) is None
    assert child.record_reread(1.0) is None
    assert child.newest is FIRST


def test_what_never_looks_again_is_not_reached() -> None:
    child = held_generations(ReloadBehaviour.NEVER)

    assert not child.can_be_reached
    assert child.record_loaded(SECOND, 1.0) is None
    assert child.record_reread(1.0) is None
    assert child.carried_at(99.0) == (FIRST, 0.0)


def in_doubt(child: HeldGenerations) -> bool:
    return child.is_suspect  # asked anew each time, for mypy too


def test_as_long_as_nobody_knows_whether_it_looks_it_is_suspect_what_it_has() -> None:
    known: list[ReloadBehaviour | None] = [None]
    child = HeldGenerations(Delivered(FIRST, "file", {}, lambda: known[0], lambda _newer: True), now=0.0)
    assert not in_doubt(child)

    assert child.record_loaded(SECOND, 1.0) is None
    assert in_doubt(child)
    assert child.can_be_reached

    known[0] = ReloadBehaviour.ON_REQUEST
    assert not in_doubt(child)
    assert child.record_loaded(SECOND, 5.0) is SECOND, "told again, once it is known"
    assert child.carried_at(5.0 + SETTLED_SECONDS) == (SECOND, 5.0)


def test_a_child_that_never_looks_is_not_in_doubt() -> None:
    known: list[ReloadBehaviour | None] = [None]
    child = HeldGenerations(Delivered(FIRST, "file", {}, lambda: known[0], lambda _newer: True), now=0.0)
    child.record_loaded(SECOND, 1.0)
    known[0] = ReloadBehaviour.NEVER

    assert not in_doubt(child)
    assert not child.can_be_reached
    assert child.carried_at(9.0) == (FIRST, 0.0)
