"""The retry policy: what happens to an execution whose token was refused or limited, decided by one pure function."""

from __future__ import annotations

from itertools import product

import pytest
from msgspec.structs import replace

from agent_runtime.errors import ErrorClass
from agent_runtime.model.state import Verification
from agent_runtime.supervisor.retry_policy import (
    AUTO_PARK_SECONDS,
    GiveUp,
    GoOn,
    Situation,
    Wait,
    decide,
)

AUTH, BILLING, RATE_LIMIT, UPSTREAM = ErrorClass.AUTH, ErrorClass.BILLING, ErrorClass.RATE_LIMIT, ErrorClass.UPSTREAM
CONFIRMED, GOOD, OPEN = Verification.CONFIRMED, Verification.GOOD, Verification.OPEN

DEAD = Situation(
    error_class=AUTH,
    verification=CONFIRMED,
    newer_is_usable=False,
    is_first=True,
    park_seconds=None,
    resumes=0,
    max_resumes=3,
)
"""The first one to meet a confirmed refusal, in the middle of its work, with nothing but defaults."""


@pytest.mark.parametrize("verification", Verification)
@pytest.mark.parametrize("error_class", [AUTH, BILLING, RATE_LIMIT])
def test_a_newer_generation_is_gone_on_with_whatever_else_holds_and_never_counts(
    verification: Verification, error_class: ErrorClass
) -> None:
    for is_first, park_seconds, resumes in product([True, False], [None, 0.0, 5.0], [0, 3, 100]):
        situation = replace(
            DEAD,
            newer_is_usable=True,
            verification=verification,
            error_class=error_class,
            is_first=is_first,
            park_seconds=park_seconds,
            resumes=resumes,
        )

        assert decide(situation) == GoOn(counts=False), situation


@pytest.mark.parametrize("error_class", [AUTH, BILLING, RATE_LIMIT])
@pytest.mark.parametrize(
    ("park_seconds", "is_first", "expected"),
    [
        (None, True, None),
        (None, False, AUTO_PARK_SECONDS),
        (0.0, True, None),
        (0.0, False, None),
        (5.0, True, 5.0),
        (5.0, False, 5.0),
    ],
    ids=["auto, first", "auto, later", "none, first", "none, later", "a number, first", "a number, later"],
)
def test_what_is_confirmed_is_answered_or_waited_out(
    error_class: ErrorClass, park_seconds: float | None, is_first: bool, expected: float | None
) -> None:
    decision = decide(replace(DEAD, error_class=error_class, park_seconds=park_seconds, is_first=is_first))

    assert decision == (GiveUp(error_class) if expected is None else Wait(expected))


@pytest.mark.parametrize("verification", [GOOD, OPEN])
@pytest.mark.parametrize(
    ("resumes", "max_resumes", "goes_on"), [(0, 3, True), (2, 3, True), (3, 3, False), (0, 0, False), (4, 3, False)]
)
def test_what_is_not_confirmed_is_resumed_so_often_and_never_called_refused(
    verification: Verification, resumes: int, max_resumes: int, goes_on: bool
) -> None:
    decision = decide(replace(DEAD, verification=verification, resumes=resumes, max_resumes=max_resumes))

    assert decision == (GoOn(counts=True) if goes_on else GiveUp(UPSTREAM))


def test_resumes_do_not_bound_how_long_a_confirmed_refusal_may_be_waited_out() -> None:
    assert decide(replace(DEAD, is_first=False, resumes=3)) == Wait(AUTO_PARK_SECONDS)


# The end of a limit.

LIMITED = replace(DEAD, error_class=RATE_LIMIT, reset_in_seconds=100.0)
"""The first one to meet a usage limit, whose end is known; it has time without end."""


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(
    ("park_seconds", "wait", "waits"),
    [
        (None, 0.0, False),
        (None, 99.0, False),
        (None, 100.0, True),
        (0.0, 100.0, True),
        (100.0, 0.0, True),
        (99.0, 0.0, False),
        (5.0, 3600.0, True),
        (3600.0, 5.0, True),
    ],
)
def test_a_limit_s_end_is_waited_for_where_it_lies_within_the_longer_of_both_times_also_by_the_first(
    park_seconds: float | None, wait: float, waits: bool, is_first: bool
) -> None:
    situation = replace(LIMITED, park_seconds=park_seconds, wait_for_reset_seconds=wait, is_first=is_first)

    decision = decide(situation)

    without = decide(replace(situation, reset_in_seconds=None))
    assert decision == (Wait(100.0, is_for_reset=True) if waits else without), "otherwise PARK decides alone"


def test_an_end_within_the_automatic_park_time_is_waited_for_by_the_others() -> None:
    soon = replace(LIMITED, reset_in_seconds=50.0)

    assert decide(soon) == GiveUp(RATE_LIMIT)
    assert decide(replace(soon, is_first=False)) == Wait(50.0, is_for_reset=True)


@pytest.mark.parametrize(("left", "waits"), [(100.5, False), (101.0, False), (101.1, True)])
def test_an_end_that_leaves_no_time_is_not_waited_for(left: float, waits: bool) -> None:
    situation = replace(LIMITED, wait_for_reset_seconds=3600.0, seconds_left=left)

    assert decide(situation) == (Wait(100.0, is_for_reset=True) if waits else GiveUp(RATE_LIMIT))


@pytest.mark.parametrize(("resumes", "waits"), [(0, True), (2, True), (3, False)])
def test_a_limit_that_is_met_again_and_again_is_waited_out_only_so_often(resumes: int, waits: bool) -> None:
    situation = replace(LIMITED, wait_for_reset_seconds=3600.0, resumes=resumes)

    assert decide(situation) == (Wait(100.0, is_for_reset=True) if waits else GiveUp(RATE_LIMIT))


@pytest.mark.parametrize("verification", [GOOD, OPEN])
def test_a_limit_that_may_be_forged_is_gone_on_with_at_once_whatever_end_it_names(verification: Verification) -> None:
    situation = replace(LIMITED, wait_for_reset_seconds=3600.0, verification=verification)

    assert decide(situation) == GoOn(counts=True)
    assert decide(replace(situation, resumes=3)) == GiveUp(UPSTREAM), "nothing that makes a backend switch"
