from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from agent_runtime.evidence.reset_times import HORIZON, end_of_limit

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2026, 9, 30, 10, 0, 30, tzinfo=UTC)


def end(text: str, now: datetime = NOW) -> str | None:
    found = end_of_limit(text, now.timestamp())
    return None if found is None else f"{datetime.fromtimestamp(found, UTC):%m-%d %H:%M:%S}"


@pytest.fixture(autouse=True)
def _somewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # the CLI, 2.0.76 to 2.1.332
        ("You've hit your limit · resets 8pm (Asia/Tokyo)", "09-30 11:00:00"),
        ("You've hit your session limit · resets 7:56am (Asia/Tokyo)", "09-30 22:56:00"),
        ("You've hit your weekly limit · resets Oct 3, 5:11am (Asia/Tokyo)", "10-02 20:11:00"),
        ("You've hit your weekly limit · resets Oct 3 at 5pm (UTC)", "10-03 17:00:00"),
        ("You've hit your limit · resets 7:56\u202fAM (Asia/Tokyo)", "09-30 22:56:00"),
        ("You're out of extra usage · resets 5:50pm (Asia/Calcutta)", "09-30 12:20:00"),
        ("You've hit your team's pooled group budget. It resets Oct 3, 5pm (UTC). Switch to …", "10-03 17:00:00"),
        ("… · resets Oct 7, 3pm (UTC) · your weekly limit resets Oct 1, 3pm (UTC)", "10-01 15:00:00"),
        ("You've hit your limit · resets 12am (UTC)", "10-01 00:00:00"),
        ("You've hit your limit · resets 12pm (UTC)", "09-30 12:00:00"),
        ("You've hit your limit · resets 5pm (America/Argentina/Buenos_Aires)", "09-30 20:00:00"),
        ("You've hit your limit · resets 5pm (Etc/GMT+5)", "09-30 22:00:00"),
        ("You've hit your limit · resets 5pm (+05:30)", "09-30 11:30:00"),
        ("Usage limit reached · continuing automatically at 7pm · esc or type to cancel", "09-30 17:00:00"),
        # 1.0.128: no zone, the process's own
        ("Session limit reached ∙ resets 7:56am", "10-01 05:56:00"),
        ("Weekly limit reached ∙ resets Oct 3, 5:12am", "10-03 03:12:00"),
        ("Weekly limit resets 3pm ∙ contact an admin to keep working", "09-30 13:00:00"),
        ("Claude AI usage limit reached|1790800000", "09-30 20:26:40"),
        # the API and gateways
        ("You will regain access on 2026-10-02 at 00:00 UTC.", "10-02 00:00:00"),
        ("spend limit reached · resets Oct 3", "10-03 00:00:00"),
        ("Limit resets at: 2026-10-01 00:15:18 UTC", "10-01 00:15:18"),
        ("resets 2026-10-01T08:00:00Z", "10-01 08:00:00"),
        ("resets 2026-10-01T08:00:00+02:00", "10-01 06:00:00"),
        ("resets in 3 hours", "09-30 13:00:30"),
        ("resets in 2h 15m", "09-30 12:15:30"),
        ("Please try again in 1 hour and 20 minutes", "09-30 11:20:30"),
        ("resets 15:30 (Asia/Tokyo)", "10-01 06:30:00"),
        # none, or none that can be understood
        ("resets soon", None),
        ("resets 8", None),
        ("resets in a few hours", None),
        ("reset after 3 tries", None),
        ("resets 3pm (Mars/Olympus)", None),
        ("resets 3pm (../../../etc/passwd)", None),
        ("resets 13pm (UTC)", None),
        ("resets 25:00 (UTC)", None),
        ("resets Oct 32, 5pm (UTC)", None),
        ("Your limit will reset at 2026-10-01 03:12:41", None),
        ("usage limit reached|0", None),
        ("", None),
    ],
)
def test_k10_the_end_of_a_limit_is_read_in_every_form(text: str, found: str | None) -> None:
    assert end(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "resets Sep 29, 5pm (UTC)",
        "usage limit reached|1759000000",
        "You will regain access on 2026-04-01 at 00:00 UTC.",
        "resets Oct 31, 5pm (UTC)",
        "resets Jan 2, 2027, 5pm (UTC)",
        "usage limit reached|1890000000",
        "resets in 200 hours",
        "resets in 9999 days",
    ],
)
def test_k10_an_end_is_never_in_the_past_and_never_beyond_eight_days(text: str) -> None:
    assert end(text) is None


def test_k10_a_time_that_is_this_minute_is_not_that_of_tomorrow() -> None:
    assert end("resets 10am (UTC)") == "09-30 10:00:30"
    assert end("resets 9:59am (UTC)") == "10-01 09:59:00"


def test_k10_a_date_without_a_year_is_the_next_such_day() -> None:
    assert end("resets Jan 2, 5pm (UTC)", datetime(2026, 12, 30, tzinfo=UTC)) == "01-02 17:00:00"


def test_k10_a_day_on_which_clocks_change_is_heeded() -> None:
    assert end("resets Oct 26, 9am (Europe/Berlin)", datetime(2026, 10, 24, tzinfo=UTC)) == "10-26 08:00:00"
    assert end("resets Oct 26, 9am", datetime(2026, 10, 24, tzinfo=UTC)) == "10-26 08:00:00"


def test_k10_zones_are_known_by_name_where_the_image_has_none() -> None:
    code = "from agent_runtime.evidence.reset_times import end_of_limit; "
    code += "print(end_of_limit('resets 8pm (Asia/Tokyo)', 1.79e9))"
    environ = {**os.environ, "PYTHONTZPATH": ""}
    found = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)

    assert float(found.stdout) == datetime(2026, 9, 22, 11, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "text", ["resets " * 10_000, "resets 8pm (" * 5000, "9" * 100_000, "resets Oct " + "1" * 50_000]
)
def test_k10_a_text_of_any_length_takes_no_time(text: str) -> None:
    begun = time.process_time()
    found = end_of_limit(text, NOW.timestamp())

    assert found is None or found <= (NOW + HORIZON).timestamp()
    assert time.process_time() - begun < 0.5
