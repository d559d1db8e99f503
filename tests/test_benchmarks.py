"""The benches run: what takes minutes by hand must not have rotted when somebody needs it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.harness import (
    Bench,
    Figure,
    Goal,
    Row,
    Scale,
    adds_at_most,
    in_turn,
    p50_at_most,
    p99_at_most,
    ratio_at_least,
    ratio_at_most,
    text_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUICK = Scale(quick=True)


@pytest.mark.slow
def test_one_bench_is_run_and_the_table_written_with_all_that_it_promises(tmp_path: Path) -> None:
    written, shown = tmp_path / "table.json", tmp_path / "table.txt"

    assert benchmarks.main(["spawning", "--quick", "--into", str(tmp_path)]) == 0

    table = json.loads(written.read_text())
    assert table["quick"] is True
    assert {"kernel", "cores", "python", "cli_versions"} <= set(table["machine"])
    whats = ["task in → child spawned", "task in → whole answer", "task in → whole answer"]
    assert [row["what"] for row in table["rows"]] == whats
    for row in table["rows"]:
        assert row["ratio"] == pytest.approx(row["ours"]["p50"] / row["baseline"]["p50"])
        assert (row["met"] in {True, False}) == (row["goal"] != "-")
        assert row["what"] in shown.read_text()


@pytest.mark.parametrize("name", benchmarks.MODULES)
def test_every_bench_can_be_imported_under_its_name(name: str) -> None:
    module = __import__(f"benchmarks.{name}", fromlist=["BENCH"])

    assert module.BENCH.name == name


def test_a_bench_that_fails_costs_only_its_own_rows_and_is_said() -> None:
    def broken(_scale: Scale) -> Iterator[Row]:
        yield Row("broken", "first", "ms", Figure(1, 1, 1))
        raise OSError("no such machine")

    def whole(_scale: Scale) -> Iterator[Row]:
        yield Row("whole", "only", "ms", Figure(1, 1, 1))

    kept: list[int] = []
    benches = [Bench("broken", broken), Bench("whole", whole)]
    rows, failed = benchmarks.run(benches, QUICK, lambda rows: kept.append(len(rows)))

    assert kept == [2, 3], "what there is is kept after each"
    assert failed == ["broken"]
    assert [row.what for row in rows] == ["first", "could not be run", "only"]
    assert "no such machine" in text_table(rows)


def test_a_figure_has_the_middle_and_what_one_in_a_hundred_exceeds() -> None:
    assert Figure.of(range(1, 201)) == Figure(p50=100.5, p99=198, n=200)
    assert Figure.of([3.0]) == Figure(3.0, 3.0, 1)
    with pytest.raises(ValueError, match="nothing was measured"):
        Figure.of([])


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (p50_at_most(4), True),
        (p50_at_most(3.9), False),
        (p99_at_most(9), True),
        (p99_at_most(8.9), False),
        (ratio_at_most(2), True),
        (ratio_at_most(1.9), False),
        (ratio_at_least(2), True),
        (ratio_at_least(2.1), False),
        (adds_at_most(2), True),
        (adds_at_most(1.9), False),
        (p50_at_most(4) & ratio_at_most(2), True),
        (p50_at_most(4) & ratio_at_most(1.9), False),
    ],
    ids=lambda value: getattr(value, "text", None),
)
def test_a_goal_is_reached_up_to_its_limit(goal: Goal, met: bool) -> None:
    row = Row("bench", "what", "ms", Figure(4, 9, 10), "another", Figure(2, 3, 10), goal)

    assert row.ratio == 2
    assert row.met is met


def test_without_a_baseline_a_ratio_is_neither_reached_nor_missed() -> None:
    row = Row("bench", "what", "ms", Figure(4, 9, 10), goal=ratio_at_most(1))

    assert (row.ratio, row.met) == (None, None)
    assert Row("bench", "what", "ms", Figure(4, 9, 10), goal=ratio_at_most(1) & p50_at_most(3)).met is False


@pytest.mark.slow
def test_sides_are_measured_in_turn_and_no_side_always_first() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return len(order)

    ours, baseline = in_turn(3, lambda: side("ours"), lambda: side("baseline"))

    assert order == ["ours", "baseline", "baseline", "ours", "ours", "baseline"]
    assert (ours.n, baseline.n) == (3, 3)
