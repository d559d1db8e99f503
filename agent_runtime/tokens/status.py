"""The troubles of tokens (refused, blocked, billing, limited), and when a token in trouble may be tried again."""

from __future__ import annotations

import math
import threading

import msgspec

from agent_runtime.model.state import TokenTrouble
from agent_runtime.secret.generations import Generation, GenerationLedger

FIRST_RETRY_SECONDS = 60.0
LONGEST_RETRY_SECONDS = 600.0
BILLING_RETRY_SECONDS = 600.0
"""How long the token of an account that cannot pay is not tried. Then an execution tries it: the probe is free."""

PROBED = frozenset({TokenTrouble.REFUSED, TokenTrouble.BLOCKED})
"""The troubles that an answer of the probe can clear."""

UNKNOWN_LIMIT_SECONDS = 60.0
"""How long a limit is assumed to last if the API did not report its end."""

MOST_REPORTED = 64


class _Pause(msgspec.Struct):
    """
    When a token in trouble may be tried again.

    Attributes:
        retry_at: The end of the pause, monotonic seconds.
        seconds: The length of the pause.
        tried_by: Id of the execution, or of the probe's check, that tries the token now; None: nothing does.
        by_execution: The probe was undecided, so an execution may try the token.
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
        model: The model it is for; None: the whole account.
        until: Epoch seconds.
        has_known_end: The API reported *until*; otherwise it is a guess.
    """

    type: str | None
    model: str | None
    until: float
    has_known_end: bool = True

    def lasts(self, epoch: float) -> bool:
        """Whether the limit lasts at *epoch*; not if a guessed end is so far off that the clock was set back."""
        return epoch < self.until and (self.has_known_end or self.until - epoch <= UNKNOWN_LIMIT_SECONDS)

    def concerns(self, model: str | None) -> bool:
        """Whether a task for *model* meets the limit; a task that names no model meets only limits of the account."""
        return self.model is None or (model is not None and self.model in model)


class TokenStatuses:
    """
    What is known of each token, by its fingerprint: a refused token that returns is still refused.

    The *ledger* stores troubles, except limits, over restarts. It does not store pauses: a new process begins with the
    first pause. *now* is in monotonic seconds, *epoch* in epoch seconds. The methods may be called from any thread.
    """

    def __init__(self, ledger: GenerationLedger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._pauses: dict[str, _Pause] = {}
        self._suspected_by: dict[str, set[str]] = {}
        self._suspected_at: dict[str, float] = {}
        self._limits: dict[str, dict[tuple[str | None, str | None], Limit]] = {}
        self._reported: dict[int, None] = {}

    # -- refused, blocked, billing

    @property
    def last_refused_generation(self) -> int | None:
        """The highest generation that was refused and has not been accepted since."""
        return self._ledger.last_refused_generation

    def trouble_of(self, generation: Generation) -> TokenTrouble | None:
        """Return the trouble of this token that has not been cleared: refused, blocked, billing or None."""
        return self._ledger.trouble_of(generation.token)

    def retry_after_seconds(self, generation: Generation, now: float) -> float:
        """Return how long until a token in trouble may be tried again; 0 for a token without trouble."""
        if (trouble := self.trouble_of(generation)) is None:
            return 0.0
        with self._lock:
            pause = self._pause(generation, trouble, now)
            return max(pause.retry_at - now, 1.0 if pause.tried_by is not None else 0.0)

    def mark(self, generation: Generation, trouble: TokenTrouble, now: float) -> bool:
        """Record a trouble; return whether it is new. If a try met the same trouble again, the pause doubles."""
        is_new = self.trouble_of(generation) is not trouble
        fingerprint = generation.token.fingerprint
        with self._lock:
            if is_new:
                self._pauses[fingerprint] = _first_pause(trouble, now)
                self._reported.pop(generation.number, None)
            elif (pause := self._pause(generation, trouble, now)).retry_at <= now:
                pause.seconds = min(pause.seconds * 2, LONGEST_RETRY_SECONDS)
                pause.retry_at = now + pause.seconds
                pause.tried_by, pause.by_execution = None, False
            self._suspected_by.pop(fingerprint, None)
            self._suspected_at[fingerprint] = now
        self._ledger.mark(generation, trouble)
        return is_new

    def begin_try(self, generation: Generation, by: str, now: float) -> bool:
        """Claim the right to try a token until :meth:`end_try`; return False in a pause or while another has it."""
        if (trouble := self.trouble_of(generation)) is None:
            return True
        with self._lock:
            pause = self._pause(generation, trouble, now)
            if pause.tried_by is not None or now < pause.retry_at:
                return False
            pause.tried_by = by
            return True

    def end_try(self, by: str) -> None:
        """Give the right to try back if *by* still holds it, which means that the try was undecided."""
        with self._lock:
            for pause in self._pauses.values():
                if pause.tried_by == by:
                    pause.tried_by = None

    def leave_to_execution(self, generation: Generation) -> None:
        """Permit an execution to try a token in trouble about which the probe was undecided."""
        with self._lock:
            if pause := self._pauses.get(generation.token.fingerprint):
                pause.by_execution = True

    def is_left_to_execution(self, generation: Generation) -> bool:
        """Whether an execution may try this token, because the probe was undecided."""
        pause = self._pauses.get(generation.token.fingerprint)
        return pause is not None and pause.by_execution

    def is_due(self, generation: Generation, now: float) -> bool:
        """Whether it is time for the probe to try a token in trouble again."""
        if self.trouble_of(generation) not in PROBED or self.is_left_to_execution(generation):
            return False
        return self.retry_after_seconds(generation, now) <= 0

    def retry_now(self, generation: Generation) -> None:
        """End the pause of a token in trouble, since a backend has asked for a try at once."""
        if (trouble := self.trouble_of(generation)) is not None:
            with self._lock:
                self._pause(generation, trouble, -math.inf).retry_at = -math.inf

    def accept(self, generation: Generation, since: float = math.inf, *, served: bool = False) -> bool:
        """
        Record that the API answered a request made with this token; return whether that clears every trouble.

        Args:
            since: When the sender of the request got the token, monotonic seconds. A request that may have been sent
                before the token became suspect shows nothing.
            served: The model answered, so the account can pay. An answer to the probe, which is free, does not show it.
        """
        fingerprint = generation.token.fingerprint
        with self._lock:
            if since < self._suspected_at.get(fingerprint, -math.inf):
                return False
            self._suspected_by.pop(fingerprint, None)
            if not served and self.trouble_of(generation) is TokenTrouble.BILLING:
                return False
            self._suspected_at.pop(fingerprint, None)
            self._pauses.pop(fingerprint, None)
        self._ledger.clear(generation.token)
        return True

    # -- suspect

    def mark_suspect(self, generation: Generation, by: str, now: float) -> None:
        """Record that *by*, an execution or the probe's check, verifies or will verify whether the token is good."""
        fingerprint = generation.token.fingerprint
        with self._lock:
            self._suspected_by.setdefault(fingerprint, set()).add(by)
            self._suspected_at[fingerprint] = now

    def clear_suspicion(self, by: str) -> None:
        """Record that *by*, an execution or the probe's check, no longer verifies any token."""
        with self._lock:
            for fingerprint, holders in list(self._suspected_by.items()):
                holders.discard(by)
                if not holders:
                    del self._suspected_by[fingerprint]

    def is_suspect(self, generation: Generation) -> bool:
        """Whether it is being verified that this token is good."""
        return generation.token.fingerprint in self._suspected_by

    def is_known_by_others(self, generation: Generation, by: str) -> bool:
        """Whether this token is in trouble, or an execution other than *by* verifies whether it is."""
        with self._lock:
            holders = self._suspected_by.get(generation.token.fingerprint, set())
            return bool(holders - {by}) or self.trouble_of(generation) is not None

    # -- limited

    def note_limit(self, generation: Generation, limit: Limit, epoch: float) -> bool:
        """Record a usage limit met at *epoch*; return whether it is new, that is, no such limit lasted already."""
        with self._lock:
            known = self._lasting(generation, epoch)
            alike = [old for old in known.values() if old.model == limit.model]
            is_new = not any(limit.type is None or old.type == limit.type for old in alike)
            was = known.get((limit.model, limit.type))
            if was is None or limit.has_known_end or not was.has_known_end:
                known[limit.model, limit.type] = limit
            if is_new:
                self._reported.pop(generation.number, None)
            return is_new

    def limit_for(self, generation: Generation, model: str | None, epoch: float) -> Limit | None:
        """Return the limit with the latest end that a task for *model* would meet at *epoch*, or None."""
        with self._lock:
            known = self._lasting(generation, epoch)
            return max((limit for limit in known.values() if limit.concerns(model)), key=_until, default=None)

    def longest_limit(self, generation: Generation, epoch: float) -> Limit | None:
        """Return the limit to show: the one of the account with the latest end, else that of any model; or None."""
        if limit := self.limit_for(generation, None, epoch):
            return limit
        with self._lock:
            return max(self._lasting(generation, epoch).values(), key=_until, default=None)

    def forget_limits(self, generation: Generation) -> None:
        """Forget usage limits and that the account cannot pay, since a backend has asked for it."""
        with self._lock:
            self._limits.pop(generation.token.fingerprint, None)
        if self.trouble_of(generation) is TokenTrouble.BILLING:
            self.accept(generation, served=True)

    # -- which troubles callers have been told

    def is_unreported(self, generation: Generation | None) -> bool:
        """Whether no caller has been answered yet with the latest trouble or limit of this generation."""
        return generation is None or generation.number not in self._reported

    def note_reported(self, generation: Generation | None) -> None:
        """Record that a caller was answered with the trouble or limit of this generation."""
        if generation is None:
            return
        with self._lock:
            self._reported[generation.number] = None
            while len(self._reported) > MOST_REPORTED:
                del self._reported[next(iter(self._reported))]

    def _pause(self, generation: Generation, trouble: TokenTrouble, now: float) -> _Pause:
        return self._pauses.setdefault(generation.token.fingerprint, _first_pause(trouble, now))

    def _lasting(self, generation: Generation, epoch: float) -> dict[tuple[str | None, str | None], Limit]:
        known = self._limits.setdefault(generation.token.fingerprint, {})
        for key in [key for key, limit in known.items() if not limit.lasts(epoch)]:
            del known[key]
        return known


def _first_pause(trouble: TokenTrouble, now: float) -> _Pause:
    seconds = BILLING_RETRY_SECONDS if trouble is TokenTrouble.BILLING else FIRST_RETRY_SECONDS
    return _Pause(now + seconds, seconds)


def _until(limit: Limit) -> float:
    return limit.until
