"""
The cost and usage that the CLI has counted in a session, read from the CLI's own file of that session.

Source: Claude Code 2.1.330 and 2.1.332 append a line of type ``cost-state`` when a process ends, and a process that
resumes the session counts on from the last such line; 2.1.197 and earlier write none and count from 0.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from uuid import UUID

import msgspec

from agent_runtime.claude.frames import ReportedUsage
from agent_runtime.claude.run_stats import SessionCost
from agent_runtime.model.usage import amount

MOST_BYTES = 64 << 20
"""How many bytes at the end of the file are searched."""

_MARK = b'{"type":"cost-state"'


class _CostState(msgspec.Struct):
    session_id: str = msgspec.field(name="sessionId")
    total_cost_usd: float = msgspec.field(name="totalCostUSD")
    model_usage: dict[str, ReportedUsage] = msgspec.field(name="modelUsage")


def session_cost(config_dir: Path, session_id: UUID) -> SessionCost:
    """Return the totals from which the CLI will count on when it resumes the session; never raises."""
    try:
        files = list((config_dir / "projects").glob(f"*/{session_id}.jsonl"))
        newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
        return SessionCost() if newest is None else _last_in(newest, str(session_id))
    except (OSError, ValueError):
        return SessionCost(is_known=False)


def _last_in(file: Path, session_id: str) -> SessionCost:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end, begin = len(content), max(0, len(content) - MOST_BYTES)
        while (at := content.rfind(_MARK, begin, end)) >= 0:
            end = at
            if at > 0 and content[at - 1 : at] != b"\n":
                continue
            content.seek(at)
            try:
                found = msgspec.json.decode(content.readline(), type=_CostState)
            except msgspec.DecodeError:
                continue
            if found.session_id == session_id:
                by_model = {name: one.usage for name, one in found.model_usage.items()}
                return SessionCost(amount(found.total_cost_usd), by_model)
        return SessionCost(is_known=begin == 0)
