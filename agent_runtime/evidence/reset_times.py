"""
Parse from a sentence when a usage limit ends.

The CLI prints the time of day within 24 hours, adds the date for later ends, and adds its own time zone since 2.0. The
API and gateways give a time in UTC or a duration.

Source: Claude Code 1.0.128 ("Session limit reached ∙ resets 7:56am", "…limit reached|EPOCH"), 2.0.76 to 2.1.332
("· resets 8pm (Asia/Tokyo)", "· resets Dec 3, 5:11am (Asia/Tokyo)", "It resets …", with a year where it is
another one); the API ("You will regain access on 2026-04-01 at 00:00 UTC.", "spend limit reached · resets Oct 3");
LiteLLM ("Limit resets at: 2026-08-27 00:15:18 UTC").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from itertools import islice

HORIZON = timedelta(days=8)
"""No usage limit lasts longer than a week: a later end is misread, or not worth waiting for."""

_TEXT_LENGTH = 2000
_PIECE_LENGTH = 80
_MARKS_AT_MOST = 8
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_UTC_NAMES = frozenset({"utc", "gmt", "z", "etc/utc"})  # known without a time zone database
_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)
_HOURS = (12, *range(1, 12))
"""The hours of half a day, as a clock of twelve hours shows them."""

_EPOCH = r"\|(\d{10})(?!\d)"
_MARK = r"(?i)regain access on |resets? |try again |continuing automatically "
_LEAD = r"(?i)(?:at:?|on|after) "
_SPAN = r"(?i)(\d{1,4}) ?(d|h|m|s)[a-z]{0,6}(?:,? and |, | )?"
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_MOMENT = (
    r"(?i)(?:(?P<iso_date>\d{4}-\d{2}-\d{2})(?:T|,? at |,? )?"
    rf"|(?P<month>{'|'.join(_MONTHS)})[a-z]{{0,6}} (?P<day>\d{{1,2}})(?:,? (?P<year>\d{{4}}))?(?![\d:])"
    r"(?:,? at |, | )?)?"
    r"(?:(?P<hour>\d{1,2})(?=:\d\d| ?[ap]\.?m\b)(?::(?P<minute>\d{2})(?::(?P<second>\d{2})(?:\.\d{1,9})?)?)?"
    r" ?(?:(?P<half>[ap])\.?m\b)?)?"
    r"(?: ?\((?P<zone>[^)]{1,48})\)| ?(?P<short_zone>utc|gmt|z|(?:utc|gmt)?[+-]\d{1,2}:?\d{0,2})(?![a-z0-9/]))?"
)
"""A date, a time of day or both, and a time zone. A number alone is no time."""

_OFFSET = r"(?i)(?:utc|gmt)?([+-])(\d{1,2}):?(\d{2})?"


def end_of_limit(text: str, now: float) -> float | None:
    """
    Return when a limit ends, in epoch seconds: the earliest time in the text, within :data:`HORIZON` from *now*.

    None without a time, or with one in a time zone that is unknown here. A sentence without a zone uses this process's
    zone, which the CLI shares.
    """
    moments = [moment for moment in _moments(text[:_TEXT_LENGTH], now) if 0 <= moment - now <= HORIZON.total_seconds()]
    return min(moments, default=None)


def _moments(text: str, now: float) -> Iterator[float]:
    # Newer versions of Node put a narrow space before AM and PM, and not every version uses the same dot.
    text = " ".join(text.split()).encode("ascii", "replace").decode()
    yield from map(float, re.findall(_EPOCH, text))
    for mark in islice(re.finditer(_MARK, text), _MARKS_AT_MOST):
        piece = text[mark.end() : mark.end() + _PIECE_LENGTH]
        if piece[:3].lower() == "in ":
            moment = _after(piece[3:], now)
        else:
            lead = re.match(_LEAD, piece)
            moment = _at(piece[lead.end() :] if lead else piece, now)
        if moment is not None:
            yield moment


def _after(piece: str, now: float) -> float | None:
    """Parse a duration: ``3 hours``, ``2h 15m``, ``1 hour and 20 minutes``."""
    total, rest = 0, piece
    while found := re.match(_SPAN, rest):
        total += int(found[1]) * _SECONDS[found[2].lower()]
        rest = rest[found.end() :]
    return now + total if rest != piece else None


def _at(piece: str, now: float) -> float | None:
    """Parse a time, a date, or both, with or without a zone, as the next such moment; None: it is past, or none."""
    if piece[:10].isdigit() and not piece[10:11].isdigit():
        return float(piece[:10])
    found = re.match(_MOMENT, piece)
    if found is None or not (found["iso_date"] or found["day"] or found["hour"]):
        return None
    zone = found["zone"] or found["short_zone"]
    if zone is None and found["hour"] is None:
        zone = "utc"  # only the API prints a date alone, and its days are in UTC
    if zone is None and found["iso_date"]:
        return None  # no version of the CLI prints this form: the zone is unknown
    try:
        # Without a zone it is this process's.
        here = datetime.fromtimestamp(now, None if zone is None else _zone(zone))
        hour, minute, second = (int(found[name] or 0) for name in ("hour", "minute", "second"))
        if found["half"]:
            hour = _HOURS.index(hour) + (12 if found["half"] in "pP" else 0)
        wanted = here.replace(hour=hour, minute=minute, second=second, microsecond=0)
        if found["iso_date"]:
            day = date.fromisoformat(found["iso_date"])
            moments = [wanted.replace(year=day.year, month=day.month, day=day.day)]
        elif found["day"]:
            month, years = _MONTHS.index(found["month"].lower()) + 1, [here.year, here.year + 1]
            if found["year"]:
                years = [int(found["year"])]
            moments = [wanted.replace(year=year, month=month, day=int(found["day"])) for year in years]
        else:
            moments = [wanted, wanted + _DAY]
        # The CLI cuts the seconds off: an end in this very minute means now, not tomorrow.
        moment = next((moment for moment in moments if moment + _MINUTE > here), None)
        return None if moment is None else max(moment.timestamp(), now)
    except (ValueError, OverflowError, OSError, LookupError):
        return None  # there is no such day, hour or zone


def _zone(name: str) -> tzinfo:
    """
    Return a time zone by its name or by its offset from UTC.

    Raises:
        LookupError, ValueError, OSError: No zone of that name is known here.
    """
    if name.lower() in _UTC_NAMES:
        return UTC
    if offset := re.fullmatch(_OFFSET, name):
        distance = timedelta(hours=int(offset[2]), minutes=int(offset[3] or 0))
        return timezone(-distance if offset[1] == "-" else distance)
    from zoneinfo import ZoneInfo  # with sysconfig: 3 ms of every start, for a sentence that few supervisors ever see

    return ZoneInfo(name)
