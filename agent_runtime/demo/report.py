"""The promises that the demo checks, its measurements, and the table of both."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path

LINE_TO_SIGNAL_SECONDS = 0.050
REFUSAL_TO_GONE_SECONDS = 2.0

_NOT_REACHED = "not reached"


class Promise(Enum):
    """The promises that the demo checks; its exit code is 0 if all are held."""

    STARTS = "the supervisor starts and is ready"
    TOOLS_RUN = "four executions run in parallel, each in the middle of a tool, when the token is switched"
    FINISH = "all four finish, each with its own result and in one attempt"
    NEW_TOKEN = "the fifth carries the new token, and only that one, as the API saw it"  # noqa: S105 - a sentence
    ANSWER = "an execution whose token dies is answered with 503 auth"
    EVIDENCE = "its record names the failing line"
    SIGNAL = f"failing line to signal within {LINE_TO_SIGNAL_SECONDS * 1000:.0f} ms"
    GONE = f"all its processes gone within {REFUSAL_TO_GONE_SECONDS:.0f} s, seen from outside"
    TURNED_AWAY = "the next one is turned away with 503 auth: nothing is spawned, nothing asks the API"
    HEALED = "a new token in the file is all it takes to go on"
    NOT_LOST = "no execution is lost"
    NOTHING_LEFT = "no process of any execution is left, seen from outside"
    NO_TOKEN_SHOWN = "no token in any log, record, transcript, answer or argv"  # noqa: S105 - a sentence
    ENDS_WELL = "the supervisor ends on SIGTERM with exit code 0"


class RelayPromise(Enum):
    """The promises of the scenario with the relay."""

    SWITCHES = "four executions run in parallel, each in the middle of a tool, at each of three switches"
    DEAD = "a dead token: all four are held, and go on with the next one"
    LIMIT = "a usage limit: all four are held, and go on with the next token"
    FINISH = "all four finish, each with its own result, in one attempt: no stop, no kill, no resume"
    TOOLS_ONCE = "each tool has run once"
    UNSEEN = "no execution is told of a refusal or a limit"
    SEARCH = "a tool that looks for a token finds none"
    NO_KEY = "the relay lets no tool ask the API for a key"
    CONTROL = "without the relay the same tool finds the token, and asks for a key with it"


RELAY_PROMISES = (
    *(Promise.STARTS, *RelayPromise),
    *(Promise.NOT_LOST, Promise.NOTHING_LEFT, Promise.NO_TOKEN_SHOWN, Promise.ENDS_WELL),
)


class Report:
    """
    The measurements of one run, and the promises that were held or broken.

    Args:
        promises: The promises that this run checks.

    Attributes:
        stuck: Why the run could not be finished; None: it could.
    """

    def __init__(self, promises: Sequence[Promise | RelayPromise] = tuple(Promise)) -> None:
        self.stuck: str | None = None
        self._promises = promises
        self._checked: dict[Promise | RelayPromise, list[str]] = {}
        self._figures: list[tuple[str, str, str]] = []

    def check(self, promise: Promise | RelayPromise, held: bool, otherwise: str) -> None:
        """Record whether a promise was held, or else (*otherwise*) why not; it must be held in every check."""
        broken = self._checked.setdefault(promise, [])
        if not held:
            broken.append(otherwise)

    def figure(self, name: str, measured: str, promised: str = "") -> None:
        """Record a measurement, and its promised limit."""
        self._figures.append((name, measured, promised))

    @property
    def broken(self) -> dict[Promise | RelayPromise, str]:
        """The broken promises, each with the reason; a promise that was not checked counts as broken."""
        return {
            promise: "; ".join(dict.fromkeys(reasons))
            for promise in self._promises
            if (reasons := self._checked.get(promise, [_NOT_REACHED]))
        }

    def table(self, cli: str, *, took_seconds: float, log: Path | None) -> str:
        """Format the table for a person; *log* is the saved log of the supervisor, if there is one."""
        rows = [(f"measured in this run, with {cli}", "", "promised"), *self._figures]
        rows.append(("the demo as a whole", f"{took_seconds:.1f} s", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        rule = "-" * (sum(widths) + 4)
        head, *body = (
            f"{name:<{widths[0]}}  {value:>{widths[1]}}  {limit:>{widths[2]}}".rstrip() for name, value, limit in rows
        )
        lines = ["", head, rule, *body, "", "promises", rule]
        broken = self.broken
        for promise in self._promises:
            state = "held" if promise not in broken else "-" if broken[promise] == _NOT_REACHED else "BROKEN"
            lines.append(f"{state:<6}  {promise.value}")
        lines.append("")
        if not broken:
            return "\n".join([*lines, f"All {len(self._promises)} promises held."])
        failed = {promise: why for promise, why in broken.items() if why != _NOT_REACHED}
        lines.append(
            f"{len(failed)} of {len(self._promises)} promises were broken, {len(broken) - len(failed)} not reached:"
        )
        lines += [f"  {promise.value}: {why}" for promise, why in failed.items()]
        if self.stuck is not None:
            lines.append(f"  the demo could not go on: {self.stuck}")
        if log is not None:
            lines.append(f"The supervisor's log is kept in {log}")
        return "\n".join(lines)
