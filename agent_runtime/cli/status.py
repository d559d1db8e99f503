"""``agent-runtime status``: slots, token and executions of a supervisor, as a table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from agent_runtime.cli.connection import connect
from agent_runtime.cli.exit_codes import EXIT_SUCCESS
from agent_runtime.cli.output import safe_line
from agent_runtime.client import Execution, Health, SyncAgentClient, TokenReport

HEADINGS = (
    *("EXECUTION", "STATE", "OUTCOME", "ERROR", "AGE", "TIME", "CPU", "MEMORY", "ATTEMPTS", "TOKEN"),
    *("TITLE", "LABELS"),
)
NOTHING = "-"


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    with connect(options) as client:
        if options.json:
            text = _as_json(client, options)
        else:
            records = client.executions(limit=options.limit, labels=dict(options.label or ())).executions
            text = "\n".join(page(client.base_url, client.health(), client.token(), records, datetime.now(UTC)))
    sys.stdout.write(text + "\n")
    return EXIT_SUCCESS


def _as_json(client: SyncAgentClient, options: argparse.Namespace) -> str:
    """Return the supervisor's answers, unchanged, as one JSON document."""
    labels = {f"label.{name}": value for name, value in options.label or ()}
    report = {
        "url": client.base_url,
        "health": client.get("/health"),
        "token": client.get("/api/token"),
        "executions": client.get("/api/executions", limit=options.limit, **labels).get("executions"),
    }
    return json.dumps(report)


def page(url: str, health: Health, token: TokenReport, records: Sequence[Execution], now: datetime) -> Iterator[str]:
    """Yield the lines of the table for a person."""
    slots = f"{health.slots.busy} of {health.slots.total} busy"
    if health.slots.unkillable:
        slots += f", {health.slots.unkillable} unkillable"
    yield from columns(
        [
            ("supervisor", f"{health.status}{', draining' if health.draining else ''}", url),
            ("slots", slots, f"{health.queue.length} queued"),
            ("token", token.state, _token(token, now)),
        ]
    )
    yield ""
    if not records:
        yield "no executions"
        return
    yield from columns([HEADINGS, *(_row(record, now) for record in records)])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows as aligned columns; every cell becomes one line, whatever its content."""
    clean = [[safe_line(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*clean, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in clean]


def duration(seconds: float) -> str:
    """Format a duration for a person; it is rounded before the unit is chosen, so there is no ``60 s``."""
    seconds = max(0.0, seconds)
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if round(seconds, 1) < 10 else f"{seconds:.0f} s"
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d"


def _row(record: Execution, now: datetime) -> tuple[str, ...]:
    created, started, ended, usage = record.created_at, record.started_at, record.ended_at, record.usage
    generations = dict.fromkeys(str(token.generation) for attempt in record.attempts for token in attempt.tokens)
    return (
        record.execution_id,
        "held" if record.held else record.state,
        record.outcome or NOTHING,
        record.error_class or NOTHING,
        NOTHING if created is None else duration((now - created).total_seconds()),
        NOTHING if started is None else duration(((ended or now) - started).total_seconds()),
        duration(usage.cpu_seconds) if usage.cpu_seconds else NOTHING,
        f"{usage.memory_bytes / 1e6:.0f} MB" if usage.memory_bytes else NOTHING,
        str(len(record.attempts)),
        ",".join(generations) or NOTHING,
        record.title or NOTHING,
        " ".join(f"{name}={value}" for name, value in record.labels.items()) or NOTHING,
    )


def _token(token: TokenReport, now: datetime) -> str:
    parts = []
    if token.generation is not None:
        parts.append(f"generation {token.generation}, {token.kind}, fingerprint {token.fingerprint}")
    if token.expires_at is not None:
        left = (token.expires_at - now).total_seconds()
        parts.append(f"expires in {duration(left)}" if left > 0 else "expired")
    if token.limited_until:
        parts.append(f"limited until {token.limited_until:%Y-%m-%d %H:%M:%S} UTC")
    if token.error:
        parts.append(token.error)
    return "; ".join(parts) or NOTHING
