"""The ``Prefer`` headers of a request (RFC 7240): ``respond-async`` and ``wait``."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

_PREFERENCE = r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+'
"""One preference of a list; a comma in a quoted string separates nothing."""
_SECONDS = r'(?P<quote>"?)([0-9]{1,9})(?P=quote)'
"""The value of a ``wait`` that is applied: seconds, as a token or a quoted string, of at most 30 years."""


class Preferences(msgspec.Struct, frozen=True):
    """
    The preferences of a request that are applied.

    Attributes:
        responds_async: Answer 202 at once, or after *wait_seconds* if these are given.
        wait_seconds: Answer 202 after so long, if the execution has not ended; None: there is no such limit.
    """

    responds_async: bool = False
    wait_seconds: int | None = None

    @property
    def is_at_once(self) -> bool:
        """Whether the request is answered at once, without waiting for the execution."""
        return self.responds_async and self.wait_seconds is None

    @property
    def applied(self) -> dict[str, str]:
        """The header ``Preference-Applied``; empty if no preference is applied."""
        words = ["respond-async"] if self.responds_async else []
        words += [] if self.wait_seconds is None else [f"wait={self.wait_seconds}"]
        return {"preference-applied": ", ".join(words)} if words else {}


def preferences(fields: Iterable[str]) -> Preferences:
    """Parse the values of ``Prefer`` headers; if a preference occurs twice, the first one counts."""
    found: dict[str, str] = {}
    for preference in re.findall(_PREFERENCE, ",".join(fields)):
        name, _, value = preference.partition(";")[0].partition("=")
        found.setdefault(name.strip().lower(), value.strip())
    wait = re.fullmatch(_SECONDS, found.get("wait", ""))
    return Preferences("respond-async" in found, int(wait[2]) if wait else None)
