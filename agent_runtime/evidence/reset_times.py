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
from datetime import UTC, datetime, timedelta, timezone, tzinfo
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

_EPOCH = r"\|(\d{10})(?!\d)"
_MARK = r"(?i)regain access on |resets? |try again |continuing automatically "
_LEAD = r"(?i)(?:at:?|on|after) "
_SPAN = r"(?i)(\d{1,4}) ?(d|h|m|s)[a-z]{0,6}(?:,? and |, | )?"
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_ISO = r"(?i)(\d{4})-(\d{2})-(\d{2})(?:T|,? at |,? )?"
_DATE = r"(?i)([a-z]{3})[a-z]{0,6} (\d{1,2})(?:,? (\d{4}))?(?![\d:])(?:,? at |, | )?"
_TIME = r"(?i)(\d{1,2})(?::(\d{2})(?::(\d{2})(?:\.\d{1,9})?)?)? ?([ap]\.?m\b)?"
_ZONE = r"(?i) ?\(([^)]{1,48})\)| ?(utc|gmt|z|(?:utc|gmt)?[+-]\d{1,2}:?\d{0,2})(?![a-z0-9/])"
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
    """Parse a time, a date, or both, with or without a zone."""
    if piece[:10].isdigit() and not piece[10:11].isdigit():
        return float(piece[:10])
    year = month = day = None
    is_iso = (found := re.match(_ISO, piece)) is not None
    if found:
        year, month, day = int(found[1]), int(found[2]), int(found[3])
    elif (found := re.match(_DATE, piece)) and found[1].lower() in _MONTHS:
        year, month, day = int(found[3] or 0) or None, _MONTHS.index(found[1].lower()) + 1, int(found[2])
    else:
        found = None
    rest = piece[found.end() :] if found else piece
    time = re.match(_TIME, rest)
    if time is not None and time[2] is None and time[4] is None:
        time = None  # a number alone is no time
    if time is None and day is None:
        return None
    zone = re.match(_ZONE, rest[time.end() :] if time else rest)
    try:
        where = _zone(zone[1] or zone[2]) if zone else None
        if where is None and time is None:
            where = UTC  # only the API prints a date alone, and its days are in UTC
        elif where is None and is_iso:
            return None  # no version of the CLI prints this form: the zone is unknown
        return _next(now, where, (year, month, day), _hour(time) if time else (0, 0, 0))
    except (ValueError, OverflowError, OSError, LookupError):
        return None  # there is no such day, hour or zone


def _next(
    now: float, zone: tzinfo | None, date: tuple[int | None, int | None, int | None], time: tuple[int, int, int]
) -> float | None:
    """Return the next such date and time, in epoch seconds; None: it is past; *zone* None: this process's zone."""
    here = datetime.fromtimestamp(now, zone)
    wanted = here.replace(hour=time[0], minute=time[1], second=time[2], microsecond=0)
    year, month, day = date
    if month is None or day is None:
        moments = [wanted, wanted + _DAY]
    else:
        years = [year] if year else [here.year, here.year + 1]
        moments = [wanted.replace(year=each, month=month, day=day) for each in years]
    # The CLI cuts the seconds off: an end in this very minute means now, not tomorrow.
    moment = next((moment for moment in moments if moment + _MINUTE > here), None)
    return None if moment is None else max(moment.timestamp(), now)


def _hour(time: re.Match[str]) -> tuple[int, int, int]:
    """
    Return hour, minute and second of a time of day.

    Raises:
        ValueError: There is no such hour.
    """
    hour, minute, second = int(time[1]), int(time[2] or 0), int(time[3] or 0)
    if time[4] is None:
        return hour, minute, second
    if not 1 <= hour <= 12:
        raise ValueError("no such hour")
    return hour % 12 + (12 if time[4][0] in "pP" else 0), minute, second


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
