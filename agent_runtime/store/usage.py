"""The usage of the stored executions, added up by subscription or by model."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from agent_runtime.model.usage import MOST_NAMES, NOTHING, OTHER, ModelUsage

if TYPE_CHECKING:
    from agent_runtime.store.records import RecordStore

MOST_COUNTED = 10_000
"""How many names are distinguished while usage is added up."""


class UsedBy(StrEnum):
    """How usage is grouped while it is added up: by the token's subscription, or by model."""

    SUBSCRIPTION = "subscription"
    MODEL = "model"


def usage_since(records: RecordStore, since: float, by: UsedBy) -> dict[str | None, ModelUsage]:
    """
    Add up the usage of all attempts that ended at *since* (epoch seconds) or later, or have not ended.

    Records of versions that did not store usage by attempt add nothing.

    Returns:
        The usage by name, the highest cost first, of at most 64 names; the rest is ``other``, at the end. None is the
        name of a subscription that the secret file did not name.

    Raises:
        StoreUnavailable: The disk cannot be read.
    """
    used = (
        (model if by is UsedBy.MODEL else token.subscription, usage)
        for record in records.ended_since(since)
        for attempt in record.attempts
        if attempt.ended_at is None or attempt.ended_at >= since
        for token in attempt.tokens
        for model, usage in token.usage_by_model.items()
    )
    found: dict[str | None, ModelUsage] = {}
    for name, usage in used:
        place = name if name in found or len(found) < MOST_COUNTED else OTHER
        found[place] = found.get(place, NOTHING).plus(usage)
    rest = found.pop(OTHER, NOTHING)
    ranked = sorted(found, key=lambda name: (-found[name].cost_usd, -found[name].context_tokens, name or ""))
    for name in ranked[MOST_NAMES:]:
        rest = rest.plus(found[name])
    shown: dict[str | None, ModelUsage] = {name: found[name] for name in ranked[:MOST_NAMES]}
    return shown | ({OTHER: rest} if rest else {})
