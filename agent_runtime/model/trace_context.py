"""
The trace that a caller's request belongs to, passed on to the CLI as it came: nothing is traced here.

Source: W3C Trace Context, https://www.w3.org/TR/trace-context/. Claude Code reads ``TRACEPARENT`` and ``TRACESTATE``
when it runs with ``-p``, and its own telemetry joins (measured on 2.1.330; 2.1.30 does not know the names).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

TRACEPARENT_VARIABLE = "TRACEPARENT"
TRACESTATE_VARIABLE = "TRACESTATE"

_TRACEPARENT = r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.{0,200})?"
# The standard demands that 512 characters are passed on, and allows to leave out a longer state.
_TRACESTATE = r"[\x20-\x7e\t]{1,512}"


class TraceContext(msgspec.Struct, frozen=True):
    """A valid trace context, as it is passed on."""

    traceparent: str
    tracestate: str | None

    @property
    def trace_id(self) -> str:
        """The id of the trace: 32 hex digits, the same in all its requests."""
        return self.traceparent[3:35]

    @property
    def variables(self) -> dict[str, str]:
        """The child's variables; without a state ``TRACESTATE`` is empty, so that the child inherits no other."""
        return {TRACEPARENT_VARIABLE: self.traceparent, TRACESTATE_VARIABLE: self.tracestate or ""}


def trace_context(traceparents: Sequence[str], tracestates: Sequence[str] = ()) -> TraceContext | None:
    """
    Read the headers of a request, each given as often as it came; an invalid parent counts as not sent.

    A state is passed on if it is printable and short enough; the form of its members is not checked. A state that is
    left out does not make its parent invalid.
    """
    if len(traceparents) != 1:
        return None
    found = re.fullmatch(_TRACEPARENT, traceparents[0].strip(" \t"))
    if found is None or (found[1] == "00" and found[5]):
        return None
    # Of a later version only these fields are known, and only the first of its flags.
    flags = found[4] if found[1] == "00" else f"{int(found[4], 16) & 1:02x}"
    state = ",".join(tracestates).strip(" \t")
    return TraceContext(f"00-{found[2]}-{found[3]}-{flags}", state if re.fullmatch(_TRACESTATE, state) else None)
