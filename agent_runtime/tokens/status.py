"""What the API holds against a token: refused, blocked, billing, limited; and when such a token may be tried again."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

import msgspec

from agent_runtime.model.state import TokenTrouble

if TYPE_CHECKING:
    from agent_runtime.secret.generations import Generation, GenerationLedger

FIRST_RETRY_SECONDS = 60.0
LONGEST_RETRY_SECONDS = 600.0
BILLING_RETRY_SECONDS = 600.0
"""How long an account that cannot pay is not tried; then one execution finds out, as the probe's question is free."""

PROBED = frozenset({TokenTrouble.REFUSED, TokenTrouble.BLOCKED})
"""The troubles that the probe can find to be over."""

UNKNOWN_LIMIT_SECONDS = 60.0
"""How long a limit is believed in that does not say when it ends; then one execution finds out."""

ANSWERED_KEPT = 64


class _Pause(msgspec.Struct):
    """
    When a token in trouble may be tried again.

    Attributes:
        retry_at: Monotonic seconds.
        tried_by: Who finds out now.
        by_execution: The probe could not tell, so an execution may find out.
    """

    retry_at: float
    seconds: float
    tried_by: str | None = None
    by_execution: bool = False


class Limit(msgspec.Struct, frozen=True):
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


class TokenStatuses:
    """
    Keep what is known of each token, by its fingerprint: a refused token that returns is still refused.

    Troubles but for limits are kept in *ledger* over restarts; the pauses between tries are not: a new process waits
    the first one again. Times called *now* are monotonic seconds, limits are epoch seconds; the caller passes them in.
    Asked from the event loop and from attempts' threads.
    """

    def __init__(self, ledger: GenerationLedger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._pauses: dict[str, _Pause] = {}
        self._suspected_by: dict[str, set[str]] = {}
        self._doubted_at: dict[str, float] = {}
        self._limits: dict[str, dict[tuple[str | None, str | None], Limit]] = {}
        self._answered: dict[int, None] = {}

    # -- refused, blocked, billing

    @property
    def last_refused_generation(self) -> int | None:
        """The highest generation that was refused and has not been accepted since."""
        return self._ledger.last_refused_generation

    def trouble_of(self, generation: Generation) -> TokenTrouble | None:
        """Return what the API holds against this token and has not taken back since; limits are no part of it."""
        return self._ledger.trouble_of(generation.token)

    def retry_after_seconds(self, generation: Generation, now: float) -> float:
        """How long until a token in trouble may be tried again; 0 for one that is in none."""
        if (trouble := self.trouble_of(generation)) is None:
            return 0.0
        with self._lock:
            pause = self._pause(generation, trouble, now)
            return max(pause.retry_at - now, 1.0 if pause.tried_by is not None else 0.0)

    def mark(self, generation: Generation, trouble: TokenTrouble, now: float) -> bool:
        """Record a trouble and return whether it is news; after a try, the pause doubles."""
        is_news = self.trouble_of(generation) is not trouble
        fingerprint = generation.token.fingerprint
        with self._lock:
            if is_news:
                self._pauses[fingerprint] = _first_pause(trouble, now)
                self._answered.pop(generation.number, None)
            elif (pause := self._pause(generation, trouble, now)).retry_at <= now:
                pause.seconds = min(pause.seconds * 2, LONGEST_RETRY_SECONDS)
                pause.retry_at = now + pause.seconds
                pause.tried_by, pause.by_execution = None, False
            self._suspected_by.pop(fingerprint, None)
            self._doubted_at[fingerprint] = now
        self._ledger.mark(generation, trouble)
        return is_news

    def begin_try(self, generation: Generation, by: str, now: float) -> bool:
        """Take the right to try a token in trouble again; only one holds it at a time, until :meth:`end_try`."""
        if (trouble := self.trouble_of(generation)) is None:
            return True
        with self._lock:
            pause = self._pause(generation, trouble, now)
            if pause.tried_by is not None or now < pause.retry_at:
                return False
            pause.tried_by = by
            return True

    def end_try(self, by: str) -> None:
        """Give the right back, if *by* still has it: what it tried showed nothing."""
        with self._lock:
            for pause in self._pauses.values():
                if pause.tried_by == by:
                    pause.tried_by = None

    def leave_to_execution(self, generation: Generation) -> None:
        """Let an execution try a token in trouble of which the probe could not tell anything."""
        with self._lock:
            if pause := self._pauses.get(generation.token.fingerprint):
                pause.by_execution = True

    def is_left_to_execution(self, generation: Generation) -> bool:
        """Whether the probe has tried in vain."""
        pause = self._pauses.get(generation.token.fingerprint)
        return pause is not None and pause.by_execution

    def is_due(self, generation: Generation, now: float) -> bool:
        """Whether the probe is to try a token in trouble again."""
        if self.trouble_of(generation) not in PROBED or self.is_left_to_execution(generation):
            return False
        return self.retry_after_seconds(generation, now) <= 0

    def retry_now(self, generation: Generation) -> None:
        """Let a token in trouble be tried at once, because somebody who may know more asks for it."""
        if (trouble := self.trouble_of(generation)) is not None:
            with self._lock:
                self._pause(generation, trouble, -math.inf).retry_at = -math.inf

    def accept(self, generation: Generation, since: float = math.inf, *, served: bool = False) -> bool:
        """
        Record that the API answered a request made with this token; return whether that clears all it was held for.

        Args:
            since: When the token was handed to who made the request, monotonic seconds. An answer that may have been on
                its way before the token was doubted says nothing about what the API thinks of it now.
            served: The model answered. Otherwise it was the probe's question, which costs nothing and therefore says
                nothing of an account that cannot pay.
        """
        fingerprint = generation.token.fingerprint
        with self._lock:
            if since < self._doubted_at.get(fingerprint, -math.inf):
                return False
            self._suspected_by.pop(fingerprint, None)
            if not served and self.trouble_of(generation) is TokenTrouble.BILLING:
                return False
            self._doubted_at.pop(fingerprint, None)
            self._pauses.pop(fingerprint, None)
        self._ledger.clear(generation.token)
        return True

    # -- suspect

    def suspect(self, generation: Generation, by: str, now: float) -> None:
        """Note that *by* waits to hear, or is finding out, whether the token is good."""
        fingerprint = generation.token.fingerprint
        with self._lock:
            self._suspected_by.setdefault(fingerprint, set()).add(by)
            self._doubted_at[fingerprint] = now

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

    def limit(self, generation: Generation, limit: Limit, epoch: float) -> bool:
        """Note a usage limit met at *epoch* and tell whether it is news; it is again when an earlier one had ended."""
        with self._lock:
            known = self._lasting(generation, epoch)
            alike = [old for old in known.values() if old.model == limit.model]
            is_news = not any(limit.type is None or old.type == limit.type for old in alike)
            was = known.get((limit.model, limit.type))
            if was is None or limit.is_told or not was.is_told:
                known[limit.model, limit.type] = limit
            if is_news:
                self._answered.pop(generation.number, None)
            return is_news

    def limit_of(self, generation: Generation, model: str | None, epoch: float) -> Limit | None:
        """Tell the limit that a task for *model* would meet at *epoch*, the one that lasts longest."""
        with self._lock:
            known = self._lasting(generation, epoch)
            return max((limit for limit in known.values() if limit.concerns(model)), key=_until, default=None)

    def any_limit_of(self, generation: Generation, epoch: float) -> Limit | None:
        """Tell the limit to show: of the account if there is one, else of a model."""
        if limit := self.limit_of(generation, None, epoch):
            return limit
        with self._lock:
            return max(self._lasting(generation, epoch).values(), key=_until, default=None)

    def forget_limits(self, generation: Generation) -> None:
        """Forget usage limits and that the account cannot pay, because somebody who may know more asks for it."""
        with self._lock:
            self._limits.pop(generation.token.fingerprint, None)
        if self.trouble_of(generation) is TokenTrouble.BILLING:
            self.accept(generation, served=True)

    # -- who has been told

    def nobody_answered(self, generation: Generation | None) -> bool:
        """Whether no caller has been told yet of the trouble or limit that this generation has met last."""
        return generation is None or generation.number not in self._answered

    def answered(self, generation: Generation | None) -> None:
        """Note that a caller was told."""
        if generation is None:
            return
        with self._lock:
            self._answered[generation.number] = None
            while len(self._answered) > ANSWERED_KEPT:
                del self._answered[next(iter(self._answered))]

    def _pause(self, generation: Generation, trouble: TokenTrouble, now: float) -> _Pause:
        return self._pauses.setdefault(generation.token.fingerprint, _first_pause(trouble, now))

    def _lasting(self, generation: Generation, epoch: float) -> dict[tuple[str | None, str | None], Limit]:
        known = self._limits.setdefault(generation.token.fingerprint, {})
        for key in [key for key, limit in known.items() if limit.until <= epoch]:
            del known[key]
        return known


def _first_pause(trouble: TokenTrouble, now: float) -> _Pause:
    seconds = BILLING_RETRY_SECONDS if trouble is TokenTrouble.BILLING else FIRST_RETRY_SECONDS
    return _Pause(now + seconds, seconds)


def _until(limit: Limit) -> float:
    return limit.until
