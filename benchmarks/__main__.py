"""Run benches and make one table: ``python -m benchmarks [NAME…] [--quick] [--into DIRECTORY]``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import Row, Scale, text_table
from benchmarks.machine import facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.harness import Bench

MODULES = (
    "starting",
    "idle",
    "kept",
    "spawning",
    "output",
    "streaming",
    "detection",
    "trees",
    "switching",
    "many",
    "traffic",
    "dead_token",
    "relay",
)
INTO = Path(".benchmarks")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benches asked for; the exit code tells whether every one could be run, not whether goals were met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *MODULES], metavar="NAME", help=", ".join(MODULES))
    parser.add_argument("--quick", action="store_true", help="few rounds, and nothing that takes minutes")
    parser.add_argument(
        "--into", type=Path, metavar="DIRECTORY", default=INTO, help="where table.json and table.txt go (%(default)s)"
    )
    options = parser.parse_args(argv)
    benches: list[Bench] = [import_module(f"benchmarks.{name}").BENCH for name in options.names or MODULES]
    machine = facts()

    def write(rows: Sequence[Row]) -> str:
        text = "\n".join([text_table(rows), "", *(f"{name}: {value}" for name, value in machine.items())])
        table = {"quick": options.quick, "machine": machine, "rows": [row.as_dict() for row in rows]}
        options.into.mkdir(parents=True, exist_ok=True)
        (options.into / "table.txt").write_text(text + "\n")
        (options.into / "table.json").write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
        return text

    rows, failed = run(benches, Scale(quick=options.quick), write)
    print(write(rows))
    return 1 if failed else 0


def run(
    benches: Iterable[Bench], scale: Scale, keep: Callable[[Sequence[Row]], object] = lambda _: None
) -> tuple[list[Row], list[str]]:
    """Run benches one after the other; a failure costs only its own rows. *keep* gets all rows so far, after each."""
    rows: list[Row] = []
    failed: list[str] = []
    for bench in benches:
        begun = time.monotonic()
        print(f"{bench.name}…", end=" ", file=sys.stderr, flush=True)
        try:
            rows.extend(bench.run(scale))
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are still worth having
            failed.append(bench.name)
            rows.append(Row(bench.name, "could not be run", "-", None, note=f"{type(error).__name__}: {error}"[:300]))
        keep(rows)
        print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return rows, failed


if __name__ == "__main__":
    sys.exit(main())
