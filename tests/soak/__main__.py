"""
Let a supervisor work under mixed load while everything around it is killed, stopped, cut and switched.

Everything runs on loopback with the scripted CLI and the stand-in of the Messages API, and is ended by pid. At the end
come a table of what was done, and one of what must hold, each with its number of violations.

Exit codes: 0 nothing was violated; 1 something was; 2 wrong use; 75 it cannot be done here; 130 it was interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, serve
from tests.soak.bed import Bed, small_disk
from tests.soak.journal import (
    LEAST_IN_TEN_MINUTES,
    LEAST_IN_THE_END,
    LEAST_WITH_A_FULL_DISK,
    OF_THE_SUPERVISOR,
    Invariant,
    Journal,
)
from tests.soak.load import Load
from tests.soak.trouble import Trouble
from tests.soak.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COULD_NOT = 75
DISK_MEBIBYTES = 48


def main(argv: Sequence[str] | None = None) -> int:
    """Run a soak and print its tables."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seconds", type=float, metavar="SECONDS", help="how long there is load; 30 at least")
    parser.add_argument("--full-disk", action="store_true", help="keep the data directory's disk full; needs root")
    parser.add_argument("--delivery", choices=("env", "file", "auto"), default="auto", help="[%(default)s]")
    parser.add_argument("--slots", type=int, default=4, help="[%(default)s]")
    parser.add_argument("--seed", type=int, help="of all that is left to chance [another one each time]")
    parser.add_argument("--livez", type=float, default=5, metavar="SECONDS", help="its bound [%(default)s]")
    parser.add_argument("--keep", action="store_true", help="keep the directory, with the log of the last supervisor")
    options = parser.parse_args(argv)
    if options.seconds < 20 or options.slots < 1:
        parser.error("SECONDS must be 20 or more, and there must be a slot")
    options.seed = random.randrange(1 << 32) if options.seed is None else options.seed
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # the stand-in meets clients that were killed
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    home, journal = Path(tempfile.mkdtemp(prefix="agent-runtime-soak.")), Journal()
    try:
        with small_disk(home / "data", DISK_MEBIBYTES) if options.full_disk else contextlib.nullcontext():
            soak(options, home, journal)
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"--full-disk needs root: {error.stderr.decode(errors='replace').strip()}\n")
        return COULD_NOT
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; all that was started is ended\n")
        return 130
    finally:
        if not options.keep:
            shutil.rmtree(home, ignore_errors=True)
    how = f"{options.seconds:g} s, delivery {options.delivery}, {options.slots} slots, seed {options.seed}"
    sys.stdout.write(f"soak: {how}{', full disk' * options.full_disk}\n\n{journal.table()}\n")
    return 0 if journal else 1


def soak(options: argparse.Namespace, home: Path, journal: Journal) -> None:
    """Run the load, its disturbances and the checks; whatever happens, nothing that was started is left."""
    api, rng = MessagesApi(), random.Random(options.seed)
    api.script("build", Tool(command="sleep 0.2; echo built"), Text(text="built", over_seconds=0.4, piece_seconds=0.1))
    flags = (
        *("--slots", str(options.slots), "--queue", str(options.slots * 2), "--token-delivery", options.delivery),
        *("--resume-interrupted", "--stop-grace", "0.5", "--drain-timeout", "3", "--wait-for-reset", "30"),
        *("--first-message-timeout", "20"),
    )
    threads: list[threading.Thread] = []
    with serve(api) as api_url:
        bed = Bed(home, journal, api, api_url, flags)
        load = Load(bed, full_disk=options.full_disk)
        trouble, watch = Trouble(bed, options.seconds), Watch(bed, load, livez_seconds=options.livez)

        def start(work: Callable[[random.Random], None]) -> None:
            def run(rng: random.Random) -> None:
                try:
                    work(rng)
                except BaseException:  # noqa: BLE001 - one that has ended is seen in the table
                    journal.violated(Invariant.DRIVER, traceback.format_exc())

            threads.append(threading.Thread(target=run, args=(random.Random(rng.random()),), daemon=True))
            threads[-1].start()

        try:
            (home / "secret").mkdir()
            bed.heal()
            bed.begin()
            for _ in range(options.slots * 3):
                start(load.caller)
            for work in (load.event_reader, load.questioner, watch.livez, watch.machine):
                start(work)
            for work in (trouble.tokens, trouble.processes, trouble.supervisor):
                start(work)
            if options.full_disk:
                start(trouble.disk)
            least = LEAST_IN_TEN_MINUTES | (LEAST_WITH_A_FULL_DISK if options.full_disk else {})
            begun = time.monotonic()

            def load_until(share: float, *names: str) -> None:
                """Go on so long, and then until these were done often enough: a busy machine takes longer."""
                until, wanted = begun + share * options.seconds, {name: least[name] for name in names}
                patience = until + options.seconds + 240
                while time.monotonic() < until or (
                    journal.missing(wanted, options.seconds) and time.monotonic() < patience
                ):
                    time.sleep(0.2)

            load_until(0.4, *OF_THE_SUPERVISOR)
            trouble.spare_the_supervisor = True
            load_until(0.7)  # caches fill meanwhile
            calm(bed, trouble)
            baseline = watch.measure()
            bed.calm.clear()
            load_until(1, *least)
            calm(bed, trouble)
            watch.measure(hold_against=baseline)
            journal.facts["seconds until all was quiet"] = f"{time.monotonic() - begun:.0f}"
            watch.accounts()
            bed.stop.set()
            for thread in threads:
                thread.join(90)
            bed.end(signal.SIGTERM)
            bed.nothing_is_left()
            watch.sinks()
            for text in journal.missing(least | LEAST_IN_THE_END, options.seconds):
                journal.violated(Invariant.ENOUGH, text)
        except Exception:  # noqa: BLE001 - what was found until then is still worth its table
            journal.violated(Invariant.DRIVER, traceback.format_exc())
        finally:
            bed.stop.set()
            trouble.go_on()
            with contextlib.suppress(Exception):
                bed.end(signal.SIGKILL)
            bed.end_all()


def calm(bed: Bed, trouble: Trouble) -> None:
    """End the disturbances, wait until a supervisor answers, and let what still runs end: SIGCONT, and a good token."""
    bed.calm.set()
    until = time.monotonic() + 10
    while time.monotonic() < until and not bed.answers:
        time.sleep(0.1)
    trouble.go_on()
    bed.heal()


if __name__ == "__main__":
    sys.exit(main())
