"""What was used of the models: tokens, cost and turns, by the model's name; pure."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from itertools import accumulate
from typing import Any, TypeAlias

import msgspec

HIGHEST_COUNT = 2**53
"""Above this a JSON number is not exact everywhere (RFC 8259, 6)."""

MOST_NAMES = 64
"""How many models, or subscriptions, are distinguished; the rest is :data:`OTHER`."""

OTHER = "other"

COST_DIGITS = 10
"""Digits of a cost after the point, so that sums do not show how floating-point numbers are added."""


class ModelUsage(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """
    What was used of one model, or of several together.

    Attributes:
        cost_usd: As the CLI has computed it; an attempt that ended without a ``result`` adds 0.
        num_turns: As the CLI counts them; all of an attempt count for the model of its own conversation.
        input_tokens: Without those that were written to, or read from, the prompt cache.
    """

    cost_usd: float = 0.0
    num_turns: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_tokens: int = 0
    cache_read_tokens: int = 0

    @property
    def context_tokens(self) -> int:
        """The length of the prompt in tokens, if this is the usage of one request."""
        return self.input_tokens + self.cache_creation_tokens + self.cache_read_tokens

    @property
    def price(self) -> int:
        """
        The price of these tokens, in twentieths of the price of an input token.

        Source: Anthropic's price list; the ratios are those of every model, with the cache of five minutes.
        """
        return (
            20 * self.input_tokens
            + 100 * self.output_tokens
            + 25 * self.cache_creation_tokens
            + 2 * self.cache_read_tokens
        )

    def __bool__(self) -> bool:
        """Whether anything was used."""
        return self != NOTHING

    def plus(self, other: ModelUsage) -> ModelUsage:
        """Return the sum."""
        return ModelUsage(  # written out, because it is needed for nearly every message of a model
            cost_usd=round(self.cost_usd + other.cost_usd, COST_DIGITS),
            num_turns=self.num_turns + other.num_turns,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_creation_tokens=self.cache_creation_tokens + other.cache_creation_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
        )

    def minus(self, other: ModelUsage) -> ModelUsage:
        """Return the difference, with 0 for each field that would be negative."""
        return self._with(other, lambda one, two: round(max(0, one - two), COST_DIGITS))

    def highest(self, other: ModelUsage) -> ModelUsage:
        """Return the higher value of each field."""
        return self._with(other, max)

    def covers(self, other: ModelUsage) -> bool:
        """Whether no field of *other* is higher."""
        return self.highest(other) == self

    def _with(self, other: ModelUsage, combine: Callable[[Any, Any], Any]) -> ModelUsage:
        return ModelUsage(
            **{name: combine(getattr(self, name), getattr(other, name)) for name in self.__struct_fields__}
        )


NOTHING = ModelUsage()

UsageByModel: TypeAlias = dict[str, ModelUsage]


class AttemptUsage(msgspec.Struct, frozen=True):
    """
    What one attempt has used up to now.

    Attributes:
        context_tokens: Length of the prompt of the last request of its own conversation; 0: not known.
        duration_ms: The duration by its ``result`` frames; None: there was none.
        is_estimated: At least a part was counted from other frames, because no ``result`` covers it.
        seen: What the frames other than ``result`` show, by the number of the generation that each message used.
        model_name: The model of its own conversation; None: not known yet.
        context_window: That model's, in tokens; None: not known yet.
    """

    by_model: UsageByModel = msgspec.field(default_factory=dict)
    context_tokens: int = 0
    duration_ms: float | None = None
    is_estimated: bool = True
    seen: dict[int, UsageByModel] = msgspec.field(default_factory=dict)
    model_name: str | None = None
    context_window: int | None = None


def added(first: UsageByModel, second: UsageByModel, most: int = MOST_NAMES) -> UsageByModel:
    """Return the sum by model; models beyond *most* names are added up as :data:`OTHER`."""
    total = dict(first)
    for name, usage in second.items():
        place = name if name in total or len(total) < most else OTHER
        total[place] = total.get(place, NOTHING).plus(usage)
    return total


def subtracted(whole: UsageByModel, part: UsageByModel) -> UsageByModel:
    """Return the difference by model, never negative, without models of which nothing is left."""
    rest = {name: usage.minus(part.get(name, NOTHING)) for name, usage in whole.items()}
    return {name: usage for name, usage in rest.items() if usage}


def split(whole: UsageByModel, seen: list[UsageByModel]) -> list[UsageByModel]:
    """
    Split what an attempt has used among its tokens; the shares add up to the whole.

    Only ``result`` frames name the cost, for the whole attempt, and they count more than the other frames show. So each
    count is split in the proportion that the other frames show. The cost, and counts of which they show nothing, are
    split by the price of the model tokens that they show. A token that has used nothing gets nothing.

    Args:
        seen: What the frames other than ``result`` show of each token; if that is nothing, the last token gets all.
    """
    if len(seen) == 1:
        return [whole]
    totals, shares = [total_of(one) for one in seen], [UsageByModel() for _ in seen]
    for model, usage in whole.items():
        own = [one.get(model, NOTHING) for one in seen]
        parts: list[dict[str, Any]] = [{} for _ in seen]
        for name in ModelUsage.__struct_fields__:
            # All turns count for one model, but may have been made with several.
            same = [getattr(one, name) for one in (totals if name == "num_turns" else own)]
            choices = (same, [one.price for one in own], [one.price for one in totals])
            weights = next(filter(any, choices), [*([0] * (len(seen) - 1)), 1])
            digits = COST_DIGITS if name == "cost_usd" else None
            # The sums up to each part are rounded, not the parts: so the parts add up to the whole.
            ends = [round(getattr(usage, name) * used / sum(weights), digits) for used in accumulate(weights)]
            for part, begin, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
                part[name] = round(end - begin, digits)
        for share, part in zip(shares, parts, strict=True):
            if one := ModelUsage(**part):
                share[model] = one
    return shares


def total_of(by_model: UsageByModel) -> ModelUsage:
    """Return the sum over all models."""
    return reduce(ModelUsage.plus, by_model.values(), NOTHING)


def count(number: object) -> int:
    """Return a number from a frame as a count; 0 if it cannot be one, as a tool can print a frame with anything."""
    return int(amount(number))


def amount(number: object) -> float:
    """Return a number from a frame if it is between 0 and :data:`HIGHEST_COUNT`, else 0."""
    if not isinstance(number, int | float) or isinstance(number, bool):
        return 0
    return number if 0 <= number <= HIGHEST_COUNT else 0  # NaN is not in the range
