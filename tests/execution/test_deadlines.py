"""How long an attempt may be silent, by the signs of life that it has given."""

from __future__ import annotations

import pytest

from agent_runtime.claude.run_answer import RunStage
from agent_runtime.execution.deadlines import LINGER_SECONDS, MOST_INIT_SECONDS, Deadlines, Sign
from agent_runtime.model.state import StopReason
from agent_runtime.settings import Settings

INIT, FIRST, IDLE, TOOL = 10.0, 20.0, 30.0, 40.0
LIMITS = Settings(init_timeout=INIT, first_message_timeout=FIRST, idle_timeout=IDLE, tool_timeout=TOOL)


@pytest.mark.parametrize(
    ("signs", "limit"),
    [
        ([], (INIT, StopReason.INIT_TIMEOUT)),
        ([Sign.OTHER, Sign.LOG], (2 + INIT, StopReason.INIT_TIMEOUT)),
        ([Sign.INIT], (1 + FIRST, StopReason.FIRST_MESSAGE_TIMEOUT)),
        ([Sign.INIT, Sign.OTHER, Sign.LOG], (1 + FIRST, StopReason.FIRST_MESSAGE_TIMEOUT)),
        ([Sign.TASK], (1 + IDLE, StopReason.IDLE_TIMEOUT)),
        ([Sign.INIT, Sign.MODEL], (2 + IDLE, StopReason.IDLE_TIMEOUT)),
        ([Sign.INIT, Sign.MODEL, Sign.LOG], (2 + IDLE, StopReason.IDLE_TIMEOUT)),
        ([Sign.INIT, Sign.MODEL, Sign.OTHER], (3 + IDLE, StopReason.IDLE_TIMEOUT)),
    ],
)
def test_each_sign_of_life_extends_the_wait_that_it_is_a_sign_for(
    signs: list[Sign], limit: tuple[float, StopReason]
) -> None:
    deadlines = Deadlines(LIMITS, spawned_at=0.0, total_at=1000.0)
    for at, sign in enumerate(signs, 1):
        deadlines.seen(sign, at)
    assert deadlines.next == limit


def test_a_start_that_gives_signs_for_ever_has_an_end() -> None:
    deadlines = Deadlines(LIMITS, spawned_at=0.0, total_at=1000.0)
    deadlines.seen(Sign.LOG, MOST_INIT_SECONDS - 1)
    assert deadlines.next == (MOST_INIT_SECONDS, StopReason.INIT_TIMEOUT)


def test_tools_and_the_end_have_limits_of_their_own_and_time_away_does_not_count() -> None:
    deadlines = Deadlines(LIMITS, spawned_at=0.0, total_at=1000.0)
    deadlines.seen(Sign.MODEL, 5.0)
    deadlines.stage_seen(RunStage.RUNNING, 1, 5.0)
    assert deadlines.next == (5.0 + TOOL, StopReason.TOOL_TIMEOUT)
    deadlines.postpone(100.0)
    assert deadlines.next == (105.0 + TOOL, StopReason.TOOL_TIMEOUT)
    deadlines.stage_seen(RunStage.OVER, 0, 110.0)
    deadlines.seen(Sign.LOG, 111.0)
    assert deadlines.next == (105.0 + LINGER_SECONDS, StopReason.LINGERED)
    deadlines.seen(Sign.OTHER, 112.0)
    assert deadlines.next == (112.0 + LINGER_SECONDS, StopReason.LINGERED)
