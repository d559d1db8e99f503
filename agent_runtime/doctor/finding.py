"""The result of one check, and helpers to look at files and the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec


class Severity(StrEnum):
    """The result of a check; only a problem keeps an agent from working."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(msgspec.Struct, frozen=True):
    """
    The finding of one check.

    Attributes:
        check: The name of the check.
        advice: What to do; None: nothing.
    """

    check: str
    verdict: Severity
    text: str
    advice: str | None = None

    def line(self) -> str:
        """Return the finding as one line of text."""
        return f"{self.verdict:<8} {self.check:<12} {self.text}" + (f" -> {self.advice}" if self.advice else "")


def ok(check: str, text: str) -> Finding:
    """Build a finding without a problem."""
    return Finding(check, Severity.OK, text)


def warning(check: str, text: str, advice: str) -> Finding:
    """Build a finding with a warning: agents work, but perhaps not as expected."""
    return Finding(check, Severity.WARNING, text, advice)


def problem(check: str, text: str, advice: str) -> Finding:
    """Build a finding with a problem: agents cannot work."""
    return Finding(check, Severity.PROBLEM, text, advice)


def is_dir(path: Path) -> bool:
    """Whether this is a directory that this process can reach."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir() raises where a directory on the way is closed


def exists(path: Path) -> bool:
    """Whether a file or directory exists there that this process can reach."""
    return os.path.exists(path)  # noqa: PTH110 - as above


def may(path: Path, mode: int) -> bool:
    """Whether the effective user of this process has the access *mode* (``os.R_OK`` and so on)."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


@dataclass(frozen=True, slots=True)
class Machine:
    """Paths of files that describe the machine; tests replace them."""

    mountinfo: Path = Path("/proc/self/mountinfo")
    managed_settings: Path = Path("/etc/claude-code")
