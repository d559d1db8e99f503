"""What the API thinks of a token: good, suspect, refused, or limited; and when a refused one may be tried again."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_runtime.generations import Generation, GenerationLedger

FIRST_RETRY_SECONDS = 60.0
LONGEST_RETRY_SECONDS = 600.0
UNKNOWN_LIMIT_SECONDS = 60.0
"""How long a limit is believed in that does not say when it ends; then one execution finds out."""


@dataclass(slots=True)
class _Pause:
    """When a refused token may be tried again (monotonic seconds), and whether somebody does so now."""

    retry_at: float
    seconds: float
    trying: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """
    A usage limit of the account.

    Attributes:
        type: In the API's words, such as ``five_hour``.
        model: The model it is of; None: the whole account.
        until: Epoch seconds.
        is_told: The API said until when; otherwise it is a guess.
    """

    type: str | None
    model: str | None
    until: float
    is_told: bool = True

    def concerns(self, model: str | None) -> bool:
        """Whether a task that asks for *model* meets it; one that asks for none may use any."""
        return self.model is None or (model is not None and self.model in model)


class Standing:
    """
    Keep what is known of each token, by its fingerprint: a refused token that returns is still refused.

    Refusals are kept in *ledger* over restarts; the pauses between tries are not: a new process waits the first one
    again. Times called *now* are monotonic seconds, limits are epoch seconds; the caller passes them in. Asked from
    the event loop and from attempts' threads.
    """

    def __init__(self, ledger: GenerationLedger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._pauses: dict[str, _Pause] = {}
        self._suspected_by: dict[str, set[str]] = {}
        self._limits: dict[str, dict[str | None, Limit]] = {}

    # -- refused

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
            pause = self._pause(generation, now)
            return max(pause.retry_at - now, 1.0 if pause.trying else 0.0)

    def refuse(self, generation: Generation, now: float) -> bool:
        """Note a refusal and tell whether it is news; after a try, the pause doubles."""
        is_news = not self.is_refused(generation)
        with self._lock:
            pause = self._pause(generation, now)
            if pause.trying:
                pause.trying = False
                pause.seconds = min(pause.seconds * 2, LONGEST_RETRY_SECONDS)
                pause.retry_at = now + pause.seconds
            self._suspected_by.pop(generation.token.fingerprint, None)
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

    def retry_now(self, generation: Generation) -> None:
        """Let a refused token be tried at once, because somebody who may know more asks for it."""
        with self._lock:
            if pause := self._pauses.get(generation.token.fingerprint):
                pause.retry_at = 0.0
            else:
                self._pauses[generation.token.fingerprint] = _Pause(0.0, FIRST_RETRY_SECONDS)

    def accept(self, generation: Generation) -> None:
        """Note that the API answered a request made with this token."""
        self._ledger.absolve(generation.token)
        with self._lock:
            self._pauses.pop(generation.token.fingerprint, None)
            self._suspected_by.pop(generation.token.fingerprint, None)

    # -- suspect

    def suspect(self, generation: Generation, by: str) -> None:
        """Note that *by* waits to hear, or is finding out, whether the token is good."""
        with self._lock:
            self._suspected_by.setdefault(generation.token.fingerprint, set()).add(by)

    def unsuspect(self, by: str) -> None:
        """Note that *by* will find out nothing more."""
        with self._lock:
            for fingerprint, holders in list(self._suspected_by.items()):
                holders.discard(by)
                if not holders:
                    del self._suspected_by[fingerprint]

    def is_suspect(self, generation: Generation) -> bool:
        """Whether somebody is finding out about this token."""
        return generation.token.fingerprint in self._suspected_by

    # -- limited

    def limit(self, generation: Generation, limit: Limit) -> bool:
        """Note a usage limit and tell whether it is news."""
        with self._lock:
            known = self._limits.setdefault(generation.token.fingerprint, {})
            is_news = known.get(limit.model) is None or known[limit.model].type != limit.type
            known[limit.model] = limit
            return is_news

    def limit_of(self, generation: Generation, model: str | None, epoch: float) -> Limit | None:
        """Tell the limit that a task for *model* would meet at *epoch*, the one that lasts longest."""
        with self._lock:
            known = self._limits.get(generation.token.fingerprint, {})
            for name in [name for name, limit in known.items() if limit.until <= epoch]:
                del known[name]
            return max((limit for limit in known.values() if limit.concerns(model)), key=_until, default=None)

    def any_limit_of(self, generation: Generation, epoch: float) -> Limit | None:
        """Tell the limit to show: of the account if there is one, else of a model."""
        if limit := self.limit_of(generation, None, epoch):
            return limit
        with self._lock:
            return max(self._limits.get(generation.token.fingerprint, {}).values(), key=_until, default=None)

    def forget_limits(self, generation: Generation) -> None:
        """Believe in no limit any more, because somebody who may know more asks for it."""
        with self._lock:
            self._limits.pop(generation.token.fingerprint, None)

    def _pause(self, generation: Generation, now: float) -> _Pause:
        first = _Pause(now + FIRST_RETRY_SECONDS, FIRST_RETRY_SECONDS)
        return self._pauses.setdefault(generation.token.fingerprint, first)


def _until(limit: Limit) -> float:
    return limit.until
