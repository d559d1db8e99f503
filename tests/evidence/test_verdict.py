"""The verdict on endings that no recorded run shows."""

from __future__ import annotations

import pytest

from agent_runtime.errors import ErrorClass
from agent_runtime.evidence.detector import Channel, Detection
from agent_runtime.evidence.matching import Rule
from agent_runtime.evidence.verdict import Ending, verdict
from agent_runtime.model.state import StopReason

CUT = Detection(Rule("a_rule", ErrorClass.NETWORK), Channel.STDERR)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [(StopReason.RELAY_TIMEOUT, ErrorClass.STALLED), (StopReason.IDLE_TIMEOUT, ErrorClass.NETWORK)],
)
def test_the_cut_of_the_relay_is_no_error_of_the_api(reason: StopReason, expected: ErrorClass) -> None:
    assert verdict(Ending(exit_code=1, stop_reason=reason, last_error=CUT)).error_class is expected
