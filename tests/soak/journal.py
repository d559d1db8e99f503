"""What a soak has done and what it has found: counts, and the violations of each invariant."""

from __future__ import annotations

import secrets
import threading
from collections import Counter, defaultdict
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent_runtime.standins.messages_api import MessagesApi

SHOWN = 5
DESCRIPTORS, THREADS, RSS_MEBIBYTES = 4, 2, 24


class Invariant(StrEnum):
    """What must hold; each value is a row of the table."""

    ENDED = "every admitted execution ended with a known outcome"
    ANSWERS = "every answer given equals the one kept"
    ONCE = "no execution runs twice at the same moment"
    RAN = "every success ran to its end, attempts in order"
    STATUS = "no unexpected status"
    LINES = "a stream has each line once, in order, as kept"
    EVENTS = "ids of the event stream rise"
    PROCESSES = "no process, shim or fork server is left over"
    CGROUPS = "no cgroup is left over"
    DESCRIPTORS = f"descriptors flat (within {DESCRIPTORS})"
    THREADS = f"threads flat (within {THREADS})"
    MEMORY = f"RSS back near its start (within {RSS_MEBIBYTES} MiB)"
    TOKENS = "no token in any sink"
    LIVEZ = "/livez answers in time while it should"
    EXITS = "the supervisor ends only when told to, with 0 after SIGTERM"
    LOG = "no fault of the supervisor in its log"
    QUIET = "all is quiet within a minute when it should be"
    ENOUGH = "each disturbance was made often enough"
    DRIVER = "the soak itself did not fail"


LEAST_IN_TEN_MINUTES = {
    "task, waited for": 100,
    "task, asynchronous": 100,
    "task, connection cut": 50,
    "task, posted twice": 50,
    "task, cancelled": 50,
    "answer 200": 200,
    "stream read to its end": 50,
    "stream cut, and continued": 30,
    "event stream cut, and continued": 10,
    "token, a good one": 10,
    "token, a dead one": 10,
    "token, a good one 5 s late": 5,
    "token, a usage limit with a reset": 5,
    "token, a storm of writes": 5,
    "event execution.parked": 10,
    "event execution.resumed": 10,
    "kill -9 of a CLI": 20,
    "kill -9 of a shim": 10,
    "kill -9 of a fork server": 5,
    "kill -9 of the supervisor": 5,
    "restart by SIGTERM": 5,
    "SIGSTOP of a CLI": 10,
    "SIGSTOP of a shim": 2,
    "SIGSTOP of a fork server": 2,
    "SIGSTOP of the supervisor": 5,
}
LEAST_WITH_A_FULL_DISK = {"disk filled": 10, "disk freed": 10, "answer that says it is not retained": 10}
LEAST_IN_THE_END = {"answer compared": 100, "stream compared": 20}
OF_THE_SUPERVISOR = ("kill -9 of the supervisor", "restart by SIGTERM")


class Journal:
    """Collect from all threads; every token of the soak holds :attr:`nonce`, so one search finds any of them."""

    def __init__(self) -> None:
        self.nonce = secrets.token_hex(8)
        self.done: Counter[str] = Counter()
        self.facts: dict[str, str] = {}
        self._violations: dict[Invariant, list[str]] = defaultdict(list)
        self._lock = threading.Lock()

    def did(self, what: str, count: int = 1) -> None:
        with self._lock:
            self.done[what] += count

    def violated(self, invariant: Invariant, text: str) -> None:
        with self._lock:
            self._violations[invariant].append(text)

    def see(self, sink: str, content: bytes) -> None:
        """Look for a token in what left the supervisor."""
        nonce = self.nonce.encode()
        if nonce in content or nonce.hex().encode() in content:
            at = max(0, content.find(nonce) - 80)
            shown = content[at : at + 80].decode(errors="replace").replace(self.nonce, "NONCE")
            self.violated(Invariant.TOKENS, f"{sink}: …{shown}")

    def missing(self, least: Mapping[str, int], seconds: float) -> list[str]:
        """Name what a soak of this length has not done often enough yet."""
        wanted = {what: max(1, int(count * min(1.0, seconds / 600))) for what, count in least.items()}
        return [f"{what}: {self.done[what]} of {count}" for what, count in wanted.items() if self.done[what] < count]

    def __bool__(self) -> bool:
        """Whether nothing was violated."""
        return not any(self._violations.values())

    def table(self) -> str:
        """Lay out what was done, and each invariant with its number of violations."""
        lines = ["done", *_rows((what, str(count)) for what, count in sorted(self.done.items()))]
        lines += ["", "measured", *_rows(self.facts.items())]
        lines += ["", "invariants and their violations"]
        lines += _rows((invariant.value, str(len(self._violations[invariant]))) for invariant in Invariant)
        for invariant, texts in self._violations.items():
            lines += [f"!!! {invariant.value}: {text}" for text in texts[:SHOWN]]
        return "\n".join(lines)


def _rows(cells: Iterable[tuple[str, str]]) -> list[str]:
    return [f"  {name:<66}{value:>8}" for name, value in cells]


class Tokens:
    """The tokens that a soak hands out, and what the stand-in API answers to each."""

    def __init__(self, journal: Journal, api: MessagesApi) -> None:
        self._nonce, self._api, self._number = journal.nonce, api, 0

    def fresh(self, *faults: str) -> str:
        """Make up a token; the API answers it with these faults, or takes it. Every fourth has a gateway's form."""
        self._number += 1
        form = "gateway.{}.{:05}" if self._number % 4 == 0 else "sk-ant-oat01-{}-{:05}"
        token = form.format(self._nonce, self._number)
        if faults:
            self._api.on(token, *faults)
        return token
