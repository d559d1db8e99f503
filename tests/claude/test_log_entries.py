"""A line of stderr is an entry of the CLI's debug log, or a line for a person."""

from __future__ import annotations

import pytest

from agent_runtime.claude.log_entries import LogEntry

TIME = "2026-01-01T00:00:10.000Z"


@pytest.mark.parametrize(
    ("line", "time", "level", "text"),
    [
        (f"{TIME} [DEBUG] text", TIME, "DEBUG", "text"),
        ("[ERROR] text of 1.0.128", "", "ERROR", "text of 1.0.128"),
        (f"{TIME} [VERBOSE] [ERROR] quoted", TIME, "VERBOSE", "[ERROR] quoted"),
        (f"\x1b[31m{TIME} [WARN]\x1b[0m text", TIME, "WARN", "\x1b[0m text"),
        (f"50 %\r{TIME} [INFO] text", TIME, "INFO", "text"),
        (f"step [INFO] 3\r{TIME} [ERROR] text", TIME, "ERROR", "text"),
        (f"\ufeff{TIME} [INFO]", TIME, "INFO", ""),
    ],
)
def test_an_entry_has_a_time_a_level_and_a_text(line: str, time: str, level: str, text: str) -> None:
    assert LogEntry.of(line.encode()) == LogEntry(time, level, text.encode())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Error: text",
        f"tool {TIME} [ERROR] text",
        "[OOM] text",
        "[error] text",
        f"{TIME} ERROR text",
        f"{TIME}, {TIME} [ERROR] a time that is too long",
        f"{' ' * 300}[ERROR] text",
    ],
)
def test_any_other_line_is_for_a_person(line: str) -> None:
    assert LogEntry.of(line.encode()) == LogEntry("", "", line.encode())
