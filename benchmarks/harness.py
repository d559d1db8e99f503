"""Figures, goals, rows, rounds and the table of all benches."""

from __future__ import annotations

import gc
import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Figure:
    """Median, 99th percentile and number of samples."""

    p50: float
    p99: float
    n: int

    @classmethod
    def of(cls, samples: Iterable[float]) -> Figure:
        """Make the figure of *samples*; of fewer than a hundred the 99th percentile is the largest."""
        ordered = sorted(samples)
        if not ordered:
            raise ValueError("nothing was measured")
        return cls(statistics.median(ordered), ordered[math.ceil(len(ordered) * 0.99) - 1], len(ordered))


@dataclass(frozen=True, slots=True)
class Goal:
    """What a row should reach; *check* returns None where that is not known, mostly for want of a baseline."""

    text: str
    check: Callable[[Row], bool | None]

    def __and__(self, other: Goal) -> Goal:
        """Return the goal that both are met."""

        def both(row: Row) -> bool | None:
            found = [self.check(row), other.check(row)]
            return False if False in found else None if None in found else True

        return Goal(f"{self.text}, {other.text}", both)


def p50_at_most(limit: float) -> Goal:
    """Return the goal that the median is at most *limit*."""
    return Goal(f"p50 ≤ {limit:g}", lambda row: None if row.ours is None else row.ours.p50 <= limit)


def p99_at_most(limit: float) -> Goal:
    """Return the goal that the 99th percentile is at most *limit*."""
    return Goal(f"p99 ≤ {limit:g}", lambda row: None if row.ours is None else row.ours.p99 <= limit)


def ratio_at_most(limit: float, text: str | None = None) -> Goal:
    """Return the goal that our median is at most *limit* times the baseline's."""
    return Goal(text or f"≤ {limit:g} ×", lambda row: None if row.ratio is None else row.ratio <= limit)


def ratio_at_least(limit: float) -> Goal:
    """Return the goal that our median is at least *limit* times the baseline's."""
    return Goal(f"≥ {limit:g} ×", lambda row: None if row.ratio is None else row.ratio >= limit)


def adds_at_most(limit: float) -> Goal:
    """Return the goal that our median is at most *limit* more than the baseline's."""

    def check(row: Row) -> bool | None:
        return None if row.ours is None or row.baseline is None else row.ours.p50 - row.baseline.p50 <= limit

    return Goal(f"adds ≤ {limit:g}", check)


NO_GOAL = Goal("-", lambda _row: None)


@dataclass(frozen=True, slots=True)
class Row:
    """
    One line of the table.

    Attributes:
        ratio: Our median divided by the baseline's.
        met: Whether the goal is met; None: not known, or there is no goal.
    """

    bench: str
    what: str
    unit: str
    ours: Figure | None
    beside: str = "-"
    baseline: Figure | None = None
    goal: Goal = field(default=NO_GOAL, repr=False)
    note: str = ""

    @property
    def ratio(self) -> float | None:
        if self.ours is None or self.baseline is None or self.baseline.p50 == 0:
            return None
        return self.ours.p50 / self.baseline.p50

    @property
    def met(self) -> bool | None:
        return None if self.ours is None else self.goal.check(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the row as in the JSON file."""
        return {
            "bench": self.bench,
            "what": self.what,
            "unit": self.unit,
            "ours": _figure_dict(self.ours),
            "beside": self.beside,
            "baseline": _figure_dict(self.baseline),
            "ratio": self.ratio,
            "goal": self.goal.text,
            "met": self.met,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Scale:
    """How often each bench measures; *quick*: just enough to show that all works, with rough figures."""

    quick: bool

    def rounds(self, full: int, quick: int) -> int:
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Bench:
    """A module of this package: :attr:`run` yields its rows as it has them."""

    name: str
    run: Callable[[Scale], Iterable[Row]]


def in_turn(rounds: int, *sides: Callable[[], float | Iterable[float]]) -> list[Figure]:
    """
    Measure every side once a round, so that other load affects all alike; the order changes each round.

    Each side returns one sample a round, or several.
    """
    samples: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        order = range(len(sides)) if number % 2 == 0 else range(len(sides) - 1, -1, -1)
        for side in order:
            gc.collect()
            measured = sides[side]()
            samples[side] += [measured] if isinstance(measured, int | float) else measured
    return [Figure.of(side) for side in samples]


def text_table(rows: Sequence[Row]) -> str:
    """Return the rows as a table for people."""
    head = ("bench", "what", "unit", "ours p50", "p99", "n", "beside", "p50", "p99", "n", "ratio", "goal", "met")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    shown.insert(1, "  ".join("-" * width for width in widths))
    notes = [f"  {row.bench}, {row.what}: {row.note}" for row in rows if row.note]
    return "\n".join([*shown, *(["", "notes:"] if notes else []), *notes])


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "-" if row.ratio is None else _number(row.ratio)
    met = {True: "yes", False: "NO", None: "-"}[row.met]
    ours, baseline = _figure_cells(row.ours), _figure_cells(row.baseline)
    return (row.bench, row.what, row.unit, *ours, row.beside, *baseline, ratio, row.goal.text, met)


def _figure_cells(figure: Figure | None) -> tuple[str, str, str]:
    return ("-", "-", "-") if figure is None else (_number(figure.p50), _number(figure.p99), str(figure.n))


def _figure_dict(figure: Figure | None) -> dict[str, float] | None:
    return None if figure is None else {"p50": figure.p50, "p99": figure.p99, "n": figure.n}


def _number(value: float) -> str:
    """Return a number with three significant digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
