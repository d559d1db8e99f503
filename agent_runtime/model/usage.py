"""What was used of the models: tokens, cost and turns, by the model's name; pure."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

HIGHEST_COUNT = 2**53
"""Above this a JSON number is not exact everywhere (RFC 8259, 6)."""

MOST_NAMES = 64
"""How many models, or subscriptions, are told apart; the rest is :data:`OTHER`."""

OTHER = "other"


class ModelUsage(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """
    What was used of one model, or of several together.

    Attributes:
        cost_usd: As the CLI has computed it; nothing where an attempt ended without a ``result``.
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
        """The length of the prompt, if this is the usage of one request."""
        return self.input_tokens + self.cache_creation_tokens + self.cache_read_tokens

    def __bool__(self) -> bool:
        """Whether anything was used."""
        return self != NOTHING

    def plus(self, other: ModelUsage) -> ModelUsage:
        """Return the sum."""
        return self._with(other, lambda one, two: one + two)

    def minus(self, other: ModelUsage) -> ModelUsage:
        """Return the difference, none of it below 0."""
        return self._with(other, lambda one, two: max(0, one - two))

    def highest(self, other: ModelUsage) -> ModelUsage:
        """Return the higher of each."""
        return self._with(other, max)

    def covers(self, other: ModelUsage) -> bool:
        """Whether nothing of *other* is higher."""
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
        context_tokens: Length of the prompt of its last own request; 0: not known.
        duration_ms: As its ``result`` frames say; None: there is none.
        is_estimated: Counted from the frames, at least in part: no ``result`` has told it.
    """

    by_model: UsageByModel = msgspec.field(default_factory=dict)
    context_tokens: int = 0
    duration_ms: float | None = None
    is_estimated: bool = True


def added(first: UsageByModel, second: UsageByModel, most: int = MOST_NAMES) -> UsageByModel:
    """Return the sum by model; what has no place among *most* names is :data:`OTHER`."""
    total = dict(first)
    for name, usage in second.items():
        place = name if name in total or len(total) < most else OTHER
        total[place] = total.get(place, NOTHING).plus(usage)
    return total


def subtracted(whole: UsageByModel, part: UsageByModel) -> UsageByModel:
    """Return the difference by model, none of it below 0, without models of which nothing is left."""
    rest = {name: usage.minus(part.get(name, NOTHING)) for name, usage in whole.items()}
    return {name: usage for name, usage in rest.items() if usage}


def total_of(by_model: UsageByModel) -> ModelUsage:
    """Return the sum over all models."""
    return reduce(ModelUsage.plus, by_model.values(), NOTHING)


def count(number: object) -> int:
    """Return a number from a frame if it can be a count, else 0: any program can print a frame."""
    return int(amount(number))


def amount(number: object) -> float:
    """Return a number from a frame if it can be an amount, else 0."""
    if not isinstance(number, int | float) or isinstance(number, bool):
        return 0
    return number if 0 <= number <= HIGHEST_COUNT else 0  # not a number is neither
