"""Which model a refusal speaks of: the run's own, or one that somebody else asked for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_LENGTH = 1000
_LIST = re.compile(r"\[[^\]]*\]")  # the models a key may use are not the one it was refused
_NAME = re.compile(r"[a-z0-9][a-z0-9._:/@-]*")
_AFTER = re.compile(r"(?:to access|models?|\u6a21\u578b|endpoints found for)[ :=]*[`'\"]?([a-z0-9][a-z0-9._:/@-]*)")
_FAMILIES = frozenset({"haiku", "sonnet", "opus", "fable", "mythos"})
_SUFFIX = re.compile(r"(?:-\d{8}|@\d{8}|-latest|-v\d+(?::\d+)?|:[a-z]+)+$")


def names_another_model(message: str, models: Collection[str]) -> bool | None:
    """
    Tell whether *message* refuses another model than *models*, the run's own; None: it names none that can be told.

    A date, a variant and a provider are no part of a name. Where none is named, the family that is spoken of decides.
    """
    if not models:
        return None
    said = _LIST.sub(" ", message[:_LENGTH].lower())
    words = _NAME.findall(said)
    named = {word for word in words if word.rpartition("/")[2].rpartition("anthropic.")[2].startswith("claude-")}
    named |= {name for name in _AFTER.findall(said) if any(character.isdigit() for character in name)}
    if named:
        return {_plain(name) for name in named}.isdisjoint(map(_plain, models))
    families = _FAMILIES.intersection(words)
    return not any(family in model for family in families for model in models) if families else None


def _plain(name: str) -> str:
    name = name.lower().partition("[")[0].rpartition("/")[2].rpartition("anthropic.")[2].rstrip(".:")
    return _SUFFIX.sub("", name)
