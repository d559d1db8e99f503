"""Which generation a refusal is about, by when the CLI in use takes a newer one."""

from __future__ import annotations

import pytest

from agent_runtime.delivery.delivery import Delivered, Reach
from agent_runtime.delivery.held_tokens import SETTLED_SECONDS, Holding
from agent_runtime.model.tokens import Token
from agent_runtime.secret.generations import Generation

FIRST, SECOND, THIRD = (
    Generation(number, Token(f"sk-ant-oat01-of-generation-{number}-000000000"), loaded_at=0.0) for number in (1, 2, 3)
)
API_KEY = Generation(4, Token("sk-ant-api03-of-generation-4-000000000"), loaded_at=0.0)


def holding(reach: Reach) -> Holding:
    return Holding(Delivered(FIRST, "file", {}, reach, lambda _newer: True), now=0.0)


def test_the_generation_of_the_spawn_is_charged_from_the_first_request_on() -> None:
    assert holding(Reach.ON_REQUEST).charged(0.0) == (FIRST, 0.0)


def test_a_newer_one_is_charged_only_when_the_child_has_had_it_for_a_while() -> None:
    child = holding(Reach.ON_REQUEST)

    assert child.loaded(SECOND, 10.0) is SECOND
    assert child.newest is SECOND
    assert child.charged(10.0 + SETTLED_SECONDS / 2) == (FIRST, 0.0)
    assert child.charged(10.0 + SETTLED_SECONDS) == (SECOND, 10.0)


def test_of_several_the_latest_settled_one_is_charged() -> None:
    child = holding(Reach.ON_REQUEST)
    child.loaded(SECOND, 10.0)
    child.loaded(THIRD, 11.5)

    assert child.charged(12.0) == (SECOND, 10.0)
    assert child.charged(12.5) == (THIRD, 11.5)


def test_what_looks_again_only_when_it_is_refused_holds_the_old_one_until_then() -> None:
    child = holding(Reach.ON_REFUSAL)

    assert child.loaded(SECOND, 10.0) is None
    assert child.charged(60.0) == (FIRST, 0.0)
    assert child.looked(60.0) is SECOND
    assert child.charged(60.0) == (FIRST, 0.0), "the refusal that made it look is about the old one"
    assert child.charged(60.0 + SETTLED_SECONDS) == (SECOND, 60.0)
    assert child.looked(70.0) is None


@pytest.mark.parametrize("reach", [Reach.ON_REQUEST, Reach.ON_REFUSAL])
def test_an_older_or_the_same_generation_changes_nothing(reach: Reach) -> None:
    child = holding(reach)
    child.loaded(THIRD, 1.0)
    child.looked(1.0)

    assert child.loaded(SECOND, 2.0) is None
    assert child.loaded(THIRD, 2.0) is None
    assert child.looked(2.0) is None
    assert child.newest is THIRD


@pytest.mark.parametrize("reach", Reach)
def test_an_api_key_never_reaches_a_running_child(reach: Reach) -> None:
    child = holding(reach)

    assert child.loaded(API_KEY, 1.0) is None
    assert child.looked(1.0) is None
    assert child.newest is FIRST


def test_what_never_looks_again_is_not_reached() -> None:
    child = holding(Reach.NEVER)

    assert not child.may_be_reached
    assert child.loaded(SECOND, 1.0) is None
    assert child.looked(1.0) is None
    assert child.charged(99.0) == (FIRST, 0.0)


def in_doubt(child: Holding) -> bool:
    return child.is_in_doubt  # asked anew each time, for mypy too


def test_as_long_as_nobody_knows_whether_it_looks_it_is_in_doubt_what_it_has() -> None:
    known: list[Reach | None] = [None]
    child = Holding(Delivered(FIRST, "file", {}, Reach.NEVER, lambda _newer: True, lambda: known[0]), now=0.0)
    assert not in_doubt(child)

    assert child.loaded(SECOND, 1.0) is None
    assert in_doubt(child)
    assert child.may_be_reached

    known[0] = Reach.ON_REQUEST
    assert not in_doubt(child)
    assert child.loaded(SECOND, 5.0) is SECOND, "told again, once it is known"
    assert child.charged(5.0 + SETTLED_SECONDS) == (SECOND, 5.0)


def test_a_child_that_never_looks_is_not_in_doubt() -> None:
    known: list[Reach | None] = [None]
    child = Holding(Delivered(FIRST, "file", {}, Reach.NEVER, lambda _newer: True, lambda: known[0]), now=0.0)
    child.loaded(SECOND, 1.0)
    known[0] = Reach.NEVER

    assert not in_doubt(child)
    assert not child.may_be_reached
    assert child.charged(9.0) == (FIRST, 0.0)
