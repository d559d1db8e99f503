"""
The trace a caller's request belongs to, taken in and passed on as it is: nothing is traced here.

Source: W3C Trace Context, https://www.w3.org/TR/trace-context/. Claude Code reads ``TRACEPARENT`` and ``TRACESTATE``
when it runs with ``-p``, and its own telemetry joins (measured on 2.1.330; 2.1.30 does not know the names).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

TRACEPARENT_VARIABLE = "TRACEPARENT"
TRACESTATE_VARIABLE = "TRACESTATE"

VERSION_0_LENGTH = 55
LONGEST_TRACEPARENT = 256
LONGEST_TRACESTATE = 512
"""What must be passed on at least; a longer one is left out, as the standard allows."""

MEMBERS_LIMIT = 32
_INVALID_VERSION = "ff"

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_KEY = re.compile(r"[a-z0-9][a-z0-9_*/-]{0,240}(?:@[a-z][a-z0-9_*/-]{0,13})?|[a-z][a-z0-9_*/-]{0,255}")
_VALUE = re.compile(r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")


class TraceContext(NamedTuple):
    """A valid trace context, as it is passed on."""

    traceparent: str
    tracestate: str | None

    @property
    def trace_id(self) -> str:
        """32 hex digits; the same for all that belongs together."""
        return self.traceparent[3:35]

    @property
    def variables(self) -> dict[str, str]:
        """What a child is given; without a state an empty one, so that no other's is taken for it."""
        return {TRACEPARENT_VARIABLE: self.traceparent, TRACESTATE_VARIABLE: self.tracestate or ""}


def trace_context(traceparents: Sequence[str], tracestates: Sequence[str] = ()) -> TraceContext | None:
    """
    Read the headers of a request, each as often as it came; what is not valid to the letter counts as not sent.

    A state that is not valid does not make its parent invalid; the other way round it does.
    """
    if len(traceparents) != 1 or (traceparent := _traceparent(traceparents[0].strip(" \t"))) is None:
        return None
    return TraceContext(traceparent, _tracestate(tracestates))


def _traceparent(text: str) -> str | None:
    """Check one, and write it as the highest version known here does."""
    if len(text) > LONGEST_TRACEPARENT or (found := _TRACEPARENT.match(text)) is None:
        return None
    version, trace_id, parent_id, flags = found.groups()
    rest = text[VERSION_0_LENGTH:]
    if version == _INVALID_VERSION or not trace_id.strip("0") or not parent_id.strip("0"):
        return None
    if version == "00":
        return None if rest else text
    if rest and not rest.startswith("-"):
        return None
    # Of a later version nothing is known but these fields, and of the flags only the first.
    return f"00-{trace_id}-{parent_id}-{int(flags, 16) & 1:02x}"


def _tracestate(headers: Sequence[str]) -> str | None:
    members = [member.strip(" \t") for header in headers for member in header.split(",")]
    members = [member for member in members if member]
    if not members or len(members) > MEMBERS_LIMIT:
        return None
    keys = set()
    for member in members:
        key, equals, value = member.partition("=")
        if not equals or _KEY.fullmatch(key) is None or _VALUE.fullmatch(value) is None or key in keys:
            return None
        keys.add(key)
    text = ",".join(members)
    return text if len(text) <= LONGEST_TRACESTATE else None
