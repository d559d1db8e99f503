"""What is done to a supervisor, its processes, its token and its disk while it works."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from typing import TYPE_CHECKING

import psutil

from agent_runtime.standins.messages_api import UsageLimit
from tests.soak.bed import FORK_SERVER, SHIM
from tests.support.secret_mount import SecretMount

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.soak.bed import Bed

DEATHS = ("expired", "invalid", "revoked", "revoked_403", "org_not_allowed", "credit_balance")
STORM_WRITES = 120
RESET_SECONDS = 4
MOST_SECONDS = 20.0


class Trouble:
    """Each method is a thread's work until the soak is over; while :attr:`Bed.calm` is set nothing is done."""

    def __init__(self, bed: Bed, seconds: float) -> None:
        self._bed, self._journal = bed, bed.journal
        self._haste = min(1.0, max(0.15, seconds / 300))  # a short soak must do everything, too
        self.spare_the_supervisor = False
        self._stopped: list[psutil.Process] = []

    def _while_loud(self, low: float, high: float, rng: random.Random, act: Callable[[], None]) -> None:
        while not self._bed.stop.wait(rng.uniform(low, high) * self._haste):
            if not self._bed.calm.is_set():
                act()

    def _in_turn(self, rng: random.Random, *acts: Callable[[], None]) -> Callable[[], None]:
        """Return what does each of these equally often, in an order that changes."""
        waiting: list[Callable[[], None]] = []

        def act() -> None:
            if not waiting:
                waiting.extend(rng.sample(acts, len(acts)))
            waiting.pop()()

        return act

    # -- the token

    def tokens(self, rng: random.Random) -> None:
        """Switch tokens in every way."""
        bed, journal = self._bed, self._journal

        def met(token: str) -> None:
            """Wait until two requests have met what this token gets, as far as there are any."""
            with contextlib.suppress(TimeoutError):
                bed.api.wait_for_requests(token, bed.api.seen(token).requests + 2, MOST_SECONDS * self._haste)

        def good() -> None:
            old = bed.token_file.read_text().strip()
            bed.heal()
            bed.stop.wait(rng.uniform(0, 1))
            bed.api.on(old, "revoked")
            journal.did("token, a good one")

        def dead() -> None:
            token = bed.tokens.fresh(rng.choice(DEATHS))
            bed.publish(token)
            met(token)
            bed.heal()
            journal.did("token, a dead one")

        def late() -> None:
            token = bed.token_file.read_text().strip()
            bed.api.on(token, rng.choice(DEATHS))
            met(token)
            bed.stop.wait(5)
            bed.heal()
            journal.did("token, a good one 5 s late")

        def limit() -> None:
            token = bed.token_file.read_text().strip()
            bed.api.on(token, UsageLimit(resets_in_seconds=RESET_SECONDS))
            met(token)
            bed.stop.wait(RESET_SECONDS)
            bed.api.accept(token)
            bed.stop.wait(rng.uniform(1, 8) * self._haste)
            journal.did("token, a usage limit with a reset")

        def storm() -> None:
            mount, begun = SecretMount(bed.token_file.parent), time.monotonic()
            bed.storms.append((begun, math.inf))
            for number in range(STORM_WRITES):
                write = rng.choice((mount.publish, mount.overwrite, mount.tear, mount.unlink_and_create))
                write(bed.tokens.fresh(*(["expired"] if number % 3 == 0 else [])) + "\n")
                journal.did("token, a write in a storm")
            bed.heal()
            bed.storms[-1] = (begun, time.monotonic())
            journal.did("token, a storm of writes")

        self._while_loud(2, 6, rng, self._in_turn(rng, good, dead, late, limit, storm))

    # -- processes

    def processes(self, rng: random.Random) -> None:
        """Kill and stop what the supervisor has started."""

        def hit(what: str, find: Callable[[], list[psutil.Process]], number: int) -> Callable[[], None]:
            def act() -> None:
                with contextlib.suppress(psutil.Error, IndexError):
                    victim = rng.choice(find())
                    victim.send_signal(number)
                    if number == signal.SIGSTOP:
                        self._stopped.append(victim)
                    self._journal.did(f"{'kill -9' if number == signal.SIGKILL else 'SIGSTOP'} of a {what}")

            return act

        bed = self._bed
        clis, shims, servers = bed.clis, lambda: bed.named(SHIM), lambda: bed.named(FORK_SERVER)
        acts = [
            *[hit("CLI", clis, signal.SIGKILL)] * 4,
            *[hit("shim", shims, signal.SIGKILL)] * 2,
            hit("fork server", servers, signal.SIGKILL),
            *[hit("CLI", clis, signal.SIGSTOP)] * 3,
            hit("shim", shims, signal.SIGSTOP),
            hit("fork server", servers, signal.SIGSTOP),
        ]
        turn = self._in_turn(rng, *acts)

        def act() -> None:
            turn()
            bed.stop.wait(rng.uniform(0.2, 1.5) * self._haste)
            self.go_on()

        self._while_loud(0.5, 2.5, rng, act)
        self.go_on()

    def go_on(self) -> None:
        """Send SIGCONT to every process that was stopped."""
        while self._stopped:
            with contextlib.suppress(psutil.Error):
                self._stopped.pop().send_signal(signal.SIGCONT)

    def supervisor(self, rng: random.Random) -> None:
        """Kill, restart and stop the supervisor itself; one that is spared is only stopped."""
        bed, journal = self._bed, self._journal

        def ended(number: int, what: str) -> Callable[[], None]:
            def act() -> None:
                if not self.spare_the_supervisor:
                    bed.end(number)
                    bed.begin()
                    journal.did(what)

            return act

        def stopped() -> None:
            bed.suspend(rng.uniform(0.2, 3) * self._haste)
            journal.did("SIGSTOP of the supervisor")

        kill, restart = ended(signal.SIGKILL, "kill -9 of the supervisor"), ended(signal.SIGTERM, "restart by SIGTERM")
        turn = self._in_turn(rng, kill, restart, stopped)
        self._while_loud(4, 10, rng, turn)

    # -- the disk

    def disk(self, rng: random.Random) -> None:
        """Keep the data directory's disk full, and free it from time to time."""
        bed, journal = self._bed, self._journal

        def act() -> None:
            begun = time.monotonic()
            until = begun + rng.uniform(5, 20) * self._haste
            filler = os.open(bed.home / "data" / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                while time.monotonic() < until and not bed.calm.is_set() and not bed.stop.wait(0.02):
                    with contextlib.suppress(OSError):
                        while os.write(filler, bytes(65536)):
                            pass
                    with contextlib.suppress(OSError):
                        while os.write(filler, bytes(512)):
                            pass
                journal.did("disk filled")
            finally:
                os.ftruncate(filler, 0)
                os.close(filler)
                bed.full.append((begun, time.monotonic()))
                journal.did("disk freed")

        self._while_loud(3, 8, rng, act)
