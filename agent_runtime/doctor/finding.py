"""What one check of the doctor says, and what it looks at besides the settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

DATA_DIR = Path("/var/lib/agent-runtime")
"""Where ``serve`` keeps its records unless it is told otherwise."""


class Verdict(StrEnum):
    """How a check came out; only a problem keeps an agent from working."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(msgspec.Struct, frozen=True):
    """
    What one check found.

    Attributes:
        advice: What to do; None where there is nothing to do.
    """

    check: str
    verdict: Verdict
    text: str
    advice: str | None = None

    def line(self) -> str:
        """Put it on one line."""
        return f"{self.verdict:<8} {self.check:<12} {self.text}" + (f" -> {self.advice}" if self.advice else "")


def ok(check: str, text: str) -> Finding:
    """Say that all is well."""
    return Finding(check, Verdict.OK, text)


def warning(check: str, text: str, advice: str) -> Finding:
    """Say that it works, but not as one may think."""
    return Finding(check, Verdict.WARNING, text, advice)


def problem(check: str, text: str, advice: str) -> Finding:
    """Say that it cannot work so."""
    return Finding(check, Verdict.PROBLEM, text, advice)


def is_dir(path: Path) -> bool:
    """Tell whether there is a directory that we can get to; one behind a closed door is none."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir() raises where a directory on the way is closed


def exists(path: Path) -> bool:
    """Tell whether there is something that we can get to."""
    return os.path.exists(path)  # noqa: PTH110 - as above


def may(path: Path, mode: int) -> bool:
    """Tell whether this process may do that, as who it is now, not as who started it."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the machine tells about itself; a test puts files of its own there."""

    mountinfo: Path = Path("/proc/self/mountinfo")
    locks: Path = Path("/proc/locks")
    managed_settings: Path = Path("/etc/claude-code")
