"""What an attempt has used is split among its tokens, and costs are added so that the sum can be read."""

from __future__ import annotations

import random
from functools import reduce

import pytest

from agent_runtime.model.usage import NOTHING, ModelUsage, UsageByModel, added, split, total_of


def of(input_tokens: int = 0, output_tokens: int = 0, turns: int = 0, cost: float = 0.0) -> ModelUsage:
    return ModelUsage(input_tokens=input_tokens, output_tokens=output_tokens, num_turns=turns, cost_usd=cost)


def test_the_cost_follows_the_tokens_and_what_was_counted_stays() -> None:
    seen = [{"m": of(40, turns=4)}, {"m": of(30, turns=3)}]

    assert split({"m": of(70, turns=7, cost=0.0007)}, seen) == [
        {"m": of(40, turns=4, cost=0.0004)},
        {"m": of(30, turns=3, cost=0.0003)},
    ]


def test_tokens_weigh_as_they_are_priced() -> None:
    kinds = ("input_tokens", "output_tokens", "cache_creation_tokens", "cache_read_tokens")
    seen = [{"m": ModelUsage(**{kind: 100})} for kind in kinds]

    shares = split({"m": reduce(ModelUsage.plus, (one["m"] for one in seen)).plus(of(cost=7.35))}, seen)

    assert [share["m"].cost_usd for share in shares] == [1.0, 5.0, 1.25, 0.1]


def test_each_models_cost_goes_to_the_tokens_that_have_used_it() -> None:
    seen = [{"big": of(10, 10, 1)}, {"big": of(10, 10, 1), "small": of(5, 1)}]
    whole = {"big": of(20, 20, 2, 1.0), "small": of(5, 1, cost=0.25)}

    assert split(whole, seen) == [
        {"big": of(10, 10, 1, 0.5)},
        {"big": of(10, 10, 1, 0.5), "small": of(5, 1, cost=0.25)},
    ]


def test_turns_made_with_several_models_count_for_the_tokens_that_made_them() -> None:
    seen = [{"first": of(10, turns=3)}, {"then": of(10, turns=1)}]

    shares = split({"first": of(10, cost=1.0), "then": of(10, turns=4, cost=2.0)}, seen)

    assert [total_of(share).num_turns for share in shares] == [3, 1]
    assert [total_of(share).cost_usd for share in shares] == [1.0, 2.0]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_token_that_has_used_nothing_gets_nothing(place: int) -> None:
    seen = [{"m": of(10, 5, 1)}, {"m": of(20, 5, 1)}]
    seen.insert(place, {})

    shares = split({"m[1m]": of(33, 11, 3, 0.3), "side": of(7, cost=0.1)}, seen)

    assert shares.pop(place) == {}
    assert all(shares)


def test_where_the_frames_tell_nothing_the_last_token_gets_it_all() -> None:
    assert split({"m": of(turns=1, cost=0.5)}, [{}, {}]) == [{}, {"m": of(turns=1, cost=0.5)}]
    assert split({}, [{}, {}]) == [{}, {}]
    assert split({"m": of(3)}, [{}]) == [{"m": of(3)}]


def test_the_shares_add_up_to_the_whole() -> None:
    some = random.Random(16)

    def usage() -> ModelUsage:
        return of(some.choice((0, 1, some.randrange(10**6))), some.randrange(3), some.randrange(9))

    for _ in range(300):
        seen = [
            {model: usage() for model in some.sample("abc", some.randrange(4))} for _ in range(some.randrange(1, 6))
        ]
        whole = reduce(added, seen, {"d": of(5, cost=0.1)})
        whole = {name: one.plus(of(some.randrange(3), 1, cost=round(some.random(), 10))) for name, one in whole.items()}

        total: UsageByModel = {}
        for share in split(whole, seen):
            total = added(total, share)

        assert total == whole


def test_sums_and_differences_of_costs_can_be_read() -> None:
    one = of(cost=1e-05)

    assert repr(reduce(ModelUsage.plus, [one] * 7, NOTHING).cost_usd) == "7e-05"
    assert repr(of(cost=0.3).minus(of(cost=0.1)).cost_usd) == "0.2"
    assert type(one.plus(of(1)).input_tokens) is int
