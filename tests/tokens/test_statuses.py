"""What the API thinks of tokens: refusals and their pauses, doubts, limits; the times are passed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent_runtime.model.state import TokenTrouble
from agent_runtime.model.tokens import Token
from agent_runtime.secret.generations import Generation, GenerationLedger
from agent_runtime.tokens.status import (
    BILLING_RETRY_SECONDS,
    FIRST_RETRY_SECONDS,
    LONGEST_RETRY_SECONDS,
    Limit,
    TokenStatuses,
)

if TYPE_CHECKING:
    from pathlib import Path

A = Token("sk-ant-oat01-token-a-of-these-tests-0000000000000000")
B = Token("sk-ant-oat01-token-b-of-these-tests-0000000000000000")
REFUSED, BLOCKED, BILLING = TokenTrouble.REFUSED, TokenTrouble.BLOCKED, TokenTrouble.BILLING
FIRST, SECOND, THIRD = Generation(1, A, 0.0), Generation(2, B, 0.0), Generation(3, A, 0.0)
"""The third is the first one's token, which has come back."""


@pytest.fixture
def statuses() -> TokenStatuses:
    return TokenStatuses(GenerationLedger(None))


# Refused.


def test_a_refusal_is_news_once_and_belongs_to_the_token(statuses: TokenStatuses) -> None:
    assert statuses.mark(FIRST, REFUSED, now=0)
    assert not statuses.mark(FIRST, REFUSED, now=0)

    assert statuses.trouble_of(THIRD) is REFUSED, "a refused token that returns is still refused"
    assert statuses.trouble_of(SECOND) is None
    assert statuses.last_refused_generation == 1


def test_a_refusal_outlives_the_process_and_the_first_pause_begins_again(tmp_path: Path) -> None:
    TokenStatuses(GenerationLedger(tmp_path)).mark(FIRST, REFUSED, now=0)
    later = TokenStatuses(GenerationLedger(tmp_path))

    assert later.trouble_of(THIRD) is REFUSED
    assert later.retry_after_seconds(FIRST, now=1000) == FIRST_RETRY_SECONDS
    assert later.begin_try(FIRST, "one", now=1000 + FIRST_RETRY_SECONDS)


def test_a_good_token_has_no_pause(statuses: TokenStatuses) -> None:
    assert statuses.retry_after_seconds(FIRST, now=0) == 0


def test_a_refused_token_is_tried_again_after_60_s_and_the_pause_doubles_up_to_10_min(statuses: TokenStatuses) -> None:
    now, pauses = 0.0, []
    statuses.mark(FIRST, REFUSED, now)
    for _ in range(6):
        pause = statuses.retry_after_seconds(FIRST, now)
        pauses.append(pause)
        assert not statuses.begin_try(FIRST, "one", now + pause - 0.001)
        now += pause
        assert statuses.retry_after_seconds(FIRST, now) == 0
        assert statuses.begin_try(FIRST, "one", now)
        assert not statuses.mark(FIRST, REFUSED, now), "it was refused before: no news"

    assert pauses == [60, 120, 240, 480, 600, 600]
    assert LONGEST_RETRY_SECONDS == 600


def test_only_one_tries_at_a_time_and_gives_the_right_back_where_it_showed_nothing(statuses: TokenStatuses) -> None:
    statuses.mark(FIRST, REFUSED, now=0)
    assert statuses.begin_try(FIRST, "one", now=60)
    assert not statuses.begin_try(FIRST, "another", now=60)
    assert statuses.retry_after_seconds(FIRST, now=60) > 0, "who is admitted now would be turned away at the spawn"

    statuses.end_try("another")
    assert not statuses.begin_try(FIRST, "another", now=60)
    statuses.end_try("one")

    assert statuses.begin_try(FIRST, "another", now=60)


def test_refusals_that_come_before_the_pause_is_over_do_not_prolong_it(statuses: TokenStatuses) -> None:
    for now in (0, 1, 59):
        statuses.mark(FIRST, REFUSED, now)

    assert statuses.retry_after_seconds(FIRST, now=59) == 1


def test_a_reload_has_a_token_tried_at_once_and_a_refusal_closes_it_again(statuses: TokenStatuses) -> None:
    statuses.mark(FIRST, REFUSED, now=0)

    statuses.retry_now(FIRST)
    assert statuses.retry_after_seconds(FIRST, now=1) == 0
    assert statuses.begin_try(FIRST, "probe", now=1)
    statuses.mark(FIRST, REFUSED, now=1)

    assert statuses.retry_after_seconds(FIRST, now=1) == 120


def test_a_token_that_is_accepted_is_forgiven_all(statuses: TokenStatuses) -> None:
    statuses.mark(FIRST, REFUSED, now=0)

    assert statuses.accept(FIRST)

    assert statuses.trouble_of(FIRST) is None
    assert statuses.last_refused_generation is None
    assert statuses.mark(FIRST, REFUSED, now=500), "a later refusal is news"
    assert statuses.retry_after_seconds(FIRST, now=500) == 60


def test_an_answer_that_was_on_its_way_before_the_refusal_forgives_nothing(statuses: TokenStatuses) -> None:
    statuses.mark(FIRST, REFUSED, now=10)

    assert not statuses.accept(FIRST, since=9)
    assert statuses.trouble_of(FIRST) is REFUSED
    assert statuses.accept(FIRST, since=11)
    assert statuses.trouble_of(FIRST) is None


def test_where_the_probe_could_not_tell_an_execution_may_try_until_the_next_refusal(statuses: TokenStatuses) -> None:
    statuses.leave_to_execution(FIRST)
    assert not statuses.is_left_to_execution(FIRST), "it is not refused"
    statuses.mark(FIRST, REFUSED, now=0)
    statuses.leave_to_execution(FIRST)
    assert statuses.is_left_to_execution(FIRST)

    statuses.mark(FIRST, REFUSED, now=60)

    assert not statuses.is_left_to_execution(FIRST)


# Blocked, and unable to pay.


def test_a_blocked_account_is_tried_by_the_probe_as_a_refused_token_is_and_a_200_clears_it(
    statuses: TokenStatuses,
) -> None:
    assert statuses.mark(FIRST, BLOCKED, now=0)
    assert statuses.trouble_of(THIRD) is BLOCKED
    assert statuses.last_refused_generation is None
    assert not statuses.is_due(FIRST, now=59)
    assert statuses.is_due(FIRST, now=60)

    assert not statuses.mark(FIRST, BLOCKED, now=60)
    assert statuses.retry_after_seconds(FIRST, now=60) == 120
    assert statuses.accept(FIRST)

    assert statuses.trouble_of(FIRST) is None


def test_an_account_that_cannot_pay_is_tried_by_one_execution_each_ten_minutes_and_never_by_the_probe(
    statuses: TokenStatuses,
) -> None:
    statuses.mark(FIRST, BILLING, now=0)
    for now in (0, 600, 1200):
        assert statuses.retry_after_seconds(FIRST, now) == BILLING_RETRY_SECONDS == 600
        assert not statuses.begin_try(FIRST, "one", now + 599)
        assert not statuses.is_due(FIRST, now + 600)
        assert statuses.begin_try(FIRST, "one", now + 600)
        assert not statuses.begin_try(FIRST, "another", now + 600)
        assert not statuses.mark(FIRST, BILLING, now + 600), "no news: it is met again"


def test_only_an_answer_of_the_model_shows_that_an_account_pays_again(statuses: TokenStatuses) -> None:
    statuses.mark(FIRST, BILLING, now=10)

    assert not statuses.accept(FIRST), "the probe's question costs nothing"
    assert not statuses.accept(FIRST, since=9, served=True), "it may have been asked for before"
    assert statuses.trouble_of(FIRST) is BILLING

    assert statuses.accept(FIRST, since=11, served=True)
    assert statuses.trouble_of(FIRST) is None


def test_a_pause_begins_anew_with_another_trouble_and_the_right_to_try_is_free_again(statuses: TokenStatuses) -> None:
    statuses.mark(FIRST, REFUSED, now=0)
    assert statuses.begin_try(FIRST, "one", now=60)

    assert statuses.mark(FIRST, BILLING, now=60), "another trouble is news"

    assert statuses.retry_after_seconds(FIRST, now=60) == BILLING_RETRY_SECONDS
    statuses.end_try("one")
    assert not statuses.begin_try(FIRST, "one", now=659)
    assert statuses.begin_try(FIRST, "another", now=660)


def test_an_unpaid_account_outlives_the_process(tmp_path: Path) -> None:
    TokenStatuses(GenerationLedger(tmp_path)).mark(FIRST, BILLING, now=0)
    later = TokenStatuses(GenerationLedger(tmp_path))

    assert later.trouble_of(THIRD) is BILLING
    assert later.retry_after_seconds(FIRST, now=5) == BILLING_RETRY_SECONDS


def test_reload_forgets_that_an_account_cannot_pay_and_lets_a_refused_or_blocked_token_be_tried(
    statuses: TokenStatuses,
) -> None:
    for trouble, left in ((REFUSED, REFUSED), (BLOCKED, BLOCKED), (BILLING, None)):
        statuses.mark(FIRST, trouble, now=0)
        statuses.forget_limits(FIRST)
        assert statuses.trouble_of(FIRST) is left
        statuses.retry_now(FIRST)
        assert statuses.retry_after_seconds(FIRST, now=1) == 0


# Suspect.


def test_a_token_is_suspect_until_the_last_verification_has_ended(statuses: TokenStatuses) -> None:
    statuses.mark_suspect(FIRST, "one", now=0)
    statuses.mark_suspect(FIRST, "another", now=0)
    statuses.clear_suspicion("one")
    statuses.clear_suspicion("nobody")
    assert statuses.is_suspect(THIRD), "doubt belongs to the token, too"
    assert not statuses.is_suspect(SECOND)

    statuses.clear_suspicion("another")

    assert not statuses.is_suspect(FIRST)


def test_others_know_of_a_trouble_from_the_first_doubt_on(statuses: TokenStatuses) -> None:
    assert not statuses.is_known_by_others(FIRST, "one")

    statuses.mark_suspect(FIRST, "one", now=0)
    assert not statuses.is_known_by_others(FIRST, "one"), "it is the first itself"
    assert statuses.is_known_by_others(FIRST, "another")
    assert not statuses.is_known_by_others(SECOND, "another")

    statuses.mark(FIRST, REFUSED, now=1)
    assert statuses.is_known_by_others(FIRST, "one")


def test_a_verdict_ends_the_doubt_of_all(statuses: TokenStatuses) -> None:
    for generation, verdict in ((FIRST, statuses.accept), (SECOND, lambda token: statuses.mark(token, REFUSED, now=1))):
        statuses.mark_suspect(generation, "one", now=0)
        statuses.mark_suspect(generation, "another", now=0)

        verdict(generation)

        assert not statuses.is_suspect(generation)


def test_an_answer_that_was_on_its_way_before_the_doubt_does_not_end_it(statuses: TokenStatuses) -> None:
    statuses.mark_suspect(FIRST, "one", now=10)

    statuses.accept(FIRST, since=9)

    assert statuses.is_suspect(FIRST)


# Limited.


def five_hour(until: float = 100, *, has_known_end: bool = True) -> Limit:
    return Limit("five_hour", None, until, has_known_end)


@pytest.mark.parametrize(
    ("limited", "asked", "concerned"),
    [
        (None, None, True),
        (None, "claude-opus-4-1", True),
        ("opus", None, False),
        ("opus", "claude-opus-4-1", True),
        ("opus", "claude-sonnet-4-5", False),
    ],
)
def test_a_limit_concerns_its_model_or_everybody(limited: str | None, asked: str | None, concerned: bool) -> None:
    assert Limit("seven_day", limited, 1.0).concerns(asked) is concerned


def test_a_limit_lasts_until_its_time_and_belongs_to_the_token(statuses: TokenStatuses) -> None:
    statuses.note_limit(FIRST, five_hour(), epoch=0)

    assert statuses.limit_for(THIRD, None, epoch=99.9) == five_hour()
    assert statuses.limit_for(SECOND, None, epoch=0) is None
    assert statuses.limit_for(FIRST, None, epoch=100) is None


def test_a_limit_is_news_once_and_again_when_the_earlier_one_has_ended(statuses: TokenStatuses) -> None:
    assert statuses.note_limit(FIRST, five_hour(), epoch=0)
    assert not statuses.note_limit(FIRST, five_hour(), epoch=1)
    assert not statuses.note_limit(FIRST, Limit(None, None, 61, has_known_end=False), epoch=1), (
        "the same, told with less"
    )
    assert statuses.note_limit(FIRST, Limit("seven_day", None, 900), epoch=2), "another one"
    assert statuses.note_limit(FIRST, Limit("seven_day_opus", "opus", 900), epoch=2)

    assert statuses.note_limit(FIRST, five_hour(300), epoch=200)


def test_a_guess_does_not_replace_what_the_api_said(statuses: TokenStatuses) -> None:
    statuses.note_limit(FIRST, five_hour(1000), epoch=0)
    statuses.note_limit(FIRST, five_hour(60, has_known_end=False), epoch=0)
    assert statuses.limit_for(FIRST, None, epoch=0) == five_hour(1000)

    statuses.note_limit(FIRST, five_hour(500), epoch=0)

    assert statuses.limit_for(FIRST, None, epoch=0) == five_hour(500)


def test_the_longest_limit_has_known_end_and_the_one_of_the_account_before_that_of_a_model(
    statuses: TokenStatuses,
) -> None:
    opus = Limit("seven_day_opus", "opus", 900)
    statuses.note_limit(FIRST, opus, epoch=0)
    assert statuses.longest_limit(FIRST, epoch=0) == opus
    assert statuses.limit_for(FIRST, None, epoch=0) is None

    statuses.note_limit(FIRST, five_hour(), epoch=0)

    assert statuses.longest_limit(FIRST, epoch=0) == five_hour()
    assert statuses.limit_for(FIRST, "claude-opus-4-1", epoch=0) == opus


def test_limits_can_be_forgotten(statuses: TokenStatuses) -> None:
    statuses.note_limit(FIRST, five_hour(), epoch=0)

    statuses.forget_limits(FIRST)

    assert statuses.longest_limit(FIRST, epoch=0) is None


# Who has been told.


def test_one_caller_has_known_end_of_each_refusal_and_each_limit(statuses: TokenStatuses) -> None:
    assert statuses.is_unreported(None)
    assert statuses.is_unreported(FIRST)
    statuses.note_limit(FIRST, five_hour(), epoch=0)
    statuses.note_reported(FIRST)
    assert not statuses.is_unreported(FIRST)
    assert statuses.is_unreported(SECOND)
    statuses.note_limit(FIRST, five_hour(), epoch=1)
    assert not statuses.is_unreported(FIRST)

    statuses.note_limit(FIRST, five_hour(300), epoch=200)
    assert statuses.is_unreported(FIRST), "the limit of later is another one"
    statuses.note_reported(FIRST)
    statuses.mark(FIRST, REFUSED, now=0)

    assert statuses.is_unreported(FIRST)
