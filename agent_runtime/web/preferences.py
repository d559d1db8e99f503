"""The ``Prefer`` headers of a request (RFC 7240): an answer at once, or after some time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.request import parse_http_list

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

_SECONDS = re.compile(r'(?P<quote>"?)([0-9]{1,9})(?P=quote)')
"""A wait that is applied: a token or a quoted string, of at most 30 years."""


class Preferences(msgspec.Struct, frozen=True):
    """
    What is heeded of them.

    Attributes:
        responds_async: Answer 202 as soon as the wait is over; without a wait at once.
        wait_seconds: Answer 202 then, if there is no answer yet; None: wait for it.
    """

    responds_async: bool = False
    wait_seconds: int | None = None

    @property
    def is_at_once(self) -> bool:
        """Whether the answer is not waited for at all."""
        return self.responds_async and self.wait_seconds is None

    @property
    def applied(self) -> dict[str, str]:
        """The header that names the applied preferences."""
        words = ["respond-async"] if self.responds_async else []
        words += [] if self.wait_seconds is None else [f"wait={self.wait_seconds}"]
        return {"preference-applied": ", ".join(words)} if words else {}


def preferences(fields: Iterable[str]) -> Preferences:
    """Read the values of ``Prefer`` headers; of a preference that is named twice, the first counts."""
    found: dict[str, str] = {}
    for preference in parse_http_list(",".join(fields)):  # which leaves quoted strings whole
        name, _, value = preference.partition(";")[0].partition("=")
        found.setdefault(name.strip().lower(), value.strip())
    wait = _SECONDS.fullmatch(found.get("wait", ""))
    return Preferences("respond-async" in found, int(wait[2]) if wait else None)
