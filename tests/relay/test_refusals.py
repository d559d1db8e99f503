"""How the relay classifies error answers."""

from __future__ import annotations

import pytest

from agent_runtime.model.state import TokenTrouble
from agent_runtime.relay.exchange import detection_in


@pytest.mark.parametrize(
    ("claim", "limit_type", "limit_model"),
    [
        (b"five_hour", "five_hour", None),
        (b"seven_day_opus", "seven_day_opus", "opus"),
        (b"", None, None),
        (b"two words", "other", None),
        (b"\xff", "other", None),
        (b"a" * 41, "other", None),
    ],
)
def test_a_limit_in_the_headers_has_a_plain_name_and_is_the_apis_own_word(
    claim: bytes, limit_type: str | None, limit_model: str | None
) -> None:
    unified = b"anthropic-ratelimit-unified-"
    headers = {unified + b"status": [b"rejected"], unified + b"representative-claim": [claim]}

    detection = detection_in(429, headers, b"")

    assert detection is not None
    assert (detection.limit_type, detection.limit_model, detection.rule.trouble) == (
        limit_type,
        limit_model,
        TokenTrouble.LIMITED,
    )
    assert detection.condemns
    assert detection.is_final
