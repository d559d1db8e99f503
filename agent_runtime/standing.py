"""What the API thinks of a token: refused or not, and when a refused one may be tried again."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_runtime.generations import Generation, GenerationLedger

FIRST_RETRY_SECONDS = 60.0
LONGEST_RETRY_SECONDS = 600.0


@dataclass(slots=True)
class _Pause:
    """When a refused token may be tried again (monotonic seconds), and whether somebody does so now."""

    retry_at: float
    seconds: float
    trying: bool = False


class Standing:
    """
    Keep the refusals and the pauses between tries.

    A refusal belongs to the fingerprint, so a refused token that returns is still refused, and it is kept in *ledger*
    over restarts. The pauses are not: a new process waits the first one again. Times are monotonic seconds that the
    caller passes in. Asked from the event loop and from attempts' threads.
    """

    def __init__(self, ledger: GenerationLedger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._pauses: dict[str, _Pause] = {}

    @property
    def last_refused_generation(self) -> int | None:
        """The highest generation that was refused and has not been accepted since."""
        return self._ledger.last_refused_generation

    def is_refused(self, generation: Generation) -> bool:
        """Whether the API refused this token and has not accepted it since."""
        return self._ledger.is_refused(generation.token)

    def retry_after_seconds(self, generation: Generation, now: float) -> float:
        """How long until a refused token may be tried again; 0 for one that is not refused."""
        if not self.is_refused(generation):
            return 0.0
        with self._lock:
            return max(0.0, self._pause(generation, now).retry_at - now)

    def refuse(self, generation: Generation, now: float) -> bool:
        """Note a refusal and tell whether it is news; after a try, the pause doubles."""
        is_news = not self.is_refused(generation)
        with self._lock:
            pause = self._pause(generation, now)
            if pause.trying:
                pause.trying = False
                pause.seconds = min(pause.seconds * 2, LONGEST_RETRY_SECONDS)
                pause.retry_at = now + pause.seconds
        self._ledger.refuse(generation)
        return is_news

    def begin_try(self, generation: Generation, now: float) -> bool:
        """Take the right to try a refused token again; only one holds it at a time."""
        with self._lock:
            pause = self._pause(generation, now)
            if pause.trying or now < pause.retry_at:
                return False
            pause.trying = True
            return True

    def end_try(self, generation: Generation) -> None:
        """Give the right back when the try showed nothing."""
        with self._lock:
            if pause := self._pauses.get(generation.token.fingerprint):
                pause.trying = False

    def accept(self, generation: Generation) -> None:
        """Note that the API answered a request made with this token."""
        self._ledger.absolve(generation.token)
        with self._lock:
            self._pauses.pop(generation.token.fingerprint, None)

    def _pause(self, generation: Generation, now: float) -> _Pause:
        first = _Pause(now + FIRST_RETRY_SECONDS, FIRST_RETRY_SECONDS)
        return self._pauses.setdefault(generation.token.fingerprint, first)
