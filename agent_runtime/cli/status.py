"""``agent-runtime status``: slots, token and executions of a supervisor, as a table."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from agent_runtime.cli.connection import complain, connect
from agent_runtime.cli.exit_codes import EXIT_SUCCESS
from agent_runtime.cli.output import line_of
from agent_runtime.client import ClientError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

HEADINGS = (
    *("EXECUTION", "STATE", "OUTCOME", "ERROR", "AGE", "TIME", "CPU", "MEMORY", "ATTEMPTS", "TOKEN"),
    *("TITLE", "LABELS"),
)
NOTHING = "-"


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    try:
        labels = {f"label.{name}": value for name, value in options.label}
        with connect(options) as client:
            report = {
                "url": client.base_url,
                "health": client.get("/health"),
                "token": client.get("/api/token"),
                "executions": client.get("/api/executions", limit=options.limit, **labels)["executions"],
            }
    except ClientError as error:
        return complain(error)
    text = json.dumps(report) if options.json else "\n".join(page(report, datetime.now(UTC)))
    sys.stdout.write(text + "\n")
    return EXIT_SUCCESS


def page(report: dict[str, Any], now: datetime) -> Iterator[str]:
    """Yield the lines for a person."""
    health, token = report["health"], report["token"]
    yield from columns(
        [
            ("supervisor", _words(health.get("status"), "draining" if health.get("draining") else None), report["url"]),
            ("slots", _slots(health), f"{_of(health, 'queue', 'length')} queued"),
            ("token", str(token.get("state")), _token(token, now)),
        ]
    )
    yield ""
    if not report["executions"]:
        yield "no executions"
        return
    yield from columns([HEADINGS, *(_row(record, now) for record in report["executions"])])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Set rows under each other; every cell is one line, whatever is in it."""
    clean = [[line_of(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*clean, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in clean]


def span(seconds: float) -> str:
    """Format a time for a person, rounded before its units are told apart: no 60 s."""
    seconds = max(0.0, seconds)
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if round(seconds, 1) < 10 else f"{seconds:.0f} s"
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d"


def _row(record: dict[str, Any], now: datetime) -> tuple[str, ...]:
    attempts = record.get("attempts") or []
    created, started, ended = (_time(record.get(name)) for name in ("created_at", "started_at", "ended_at"))
    return (
        str(record.get("execution_id")),
        str(record.get("state")),
        str(record.get("outcome") or NOTHING),
        str(record.get("error_class") or NOTHING),
        NOTHING if created is None else span((now - created).total_seconds()),
        NOTHING if started is None else span(((ended or now) - started).total_seconds()),
        *_usage(record.get("usage") or {}),
        str(len(attempts)),
        _generations(attempts),
        str(record.get("title") or NOTHING),
        " ".join(f"{name}={value}" for name, value in (record.get("labels") or {}).items()) or NOTHING,
    )


def _usage(usage: dict[str, Any]) -> tuple[str, str]:
    """Return processor time and peak memory; nothing where it ended before the first sample."""
    cpu_seconds, memory_bytes = usage.get("cpu_seconds"), usage.get("memory_bytes")
    return span(cpu_seconds) if cpu_seconds else NOTHING, f"{memory_bytes / 1e6:.0f} MB" if memory_bytes else NOTHING


def _generations(attempts: list[dict[str, Any]]) -> str:
    """Name the token generations that reached it, in order."""
    seen = dict.fromkeys(str(token.get("generation")) for attempt in attempts for token in attempt.get("tokens") or [])
    return ",".join(seen) or NOTHING


def _slots(health: dict[str, Any]) -> str:
    unkillable = _of(health, "slots", "unkillable")
    more = f", {unkillable} unkillable" if unkillable.strip("0").isdecimal() else ""
    return f"{_of(health, 'slots', 'busy')} of {_of(health, 'slots', 'total')} busy{more}"


def _token(token: dict[str, Any], now: datetime) -> str:
    parts = []
    if token.get("generation") is not None:
        parts.append(f"generation {token['generation']}, {token.get('kind')}, fingerprint {token.get('fingerprint')}")
    if (expires := _time(token.get("expires_at"))) is not None:
        left = expires - now
        parts.append(f"expires in {span(left.total_seconds())}" if left > timedelta() else "expired")
    if token.get("limited_until"):
        parts.append(f"limited until {token['limited_until']}")
    if token.get("error"):
        parts.append(str(token["error"]))
    return "; ".join(parts) or NOTHING


def _of(health: dict[str, Any], part: str, name: str) -> str:
    inner = health.get(part)
    return str(inner.get(name)) if isinstance(inner, dict) else "?"


def _words(*words: str | None) -> str:
    return ", ".join(word for word in words if word)


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
