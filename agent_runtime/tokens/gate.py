"""The gate: which token may be used now."""

from __future__ import annotations

import logging
import math
import time

from agent_runtime.errors import AdmissionError, NoToken, TokenLimited, TokenUnpaid, TokenUnusable
from agent_runtime.evidence.detector import Detection
from agent_runtime.evidence.verdict import BLOCKED_SENTENCE, limit_sentence
from agent_runtime.model.state import TokenState, TokenTrouble, Verification
from agent_runtime.notifier import Notifier
from agent_runtime.secret.file import SecretFile
from agent_runtime.secret.generations import Generation
from agent_runtime.telemetry.events import EventLog
from agent_runtime.tokens.status import PROBED, UNKNOWN_LIMIT_SECONDS, Limit, TokenStatuses

log = logging.getLogger(__name__)

_UNPAID = (
    "the account cannot pay (credit or a budget is spent); write another account's token to the secret file, or add "
    "funds and have the token reloaded"
)
_UNUSABLE: dict[TokenTrouble, tuple[type[AdmissionError], str]] = {
    TokenTrouble.REFUSED: (TokenUnusable, "the API refused this token; write a new one to the secret file"),
    TokenTrouble.BLOCKED: (TokenUnusable, BLOCKED_SENTENCE),
    TokenTrouble.BILLING: (TokenUnpaid, _UNPAID),
}
_EXPIRED = "the token has expired; write a new one to the secret file"


class TokenGate:
    """
    Decide from the secret file and the API's answers whether the token in use may be used.

    :meth:`require_for_spawn` and :meth:`mark_suspect` are called from attempts' threads, all else on the event loop's.

    Args:
        probes: The probe tries refused and blocked tokens again. Otherwise, or if it is undecided, an execution does.

    Attributes:
        changed: Notified when executions that wait for a token should look at its state again.
    """

    def __init__(self, secret: SecretFile, statuses: TokenStatuses, events: EventLog, *, probes: bool) -> None:
        self.secret = secret
        self.statuses = statuses
        self.changed = Notifier()
        self._events = events
        self._probes = probes

    @property
    def current(self) -> Generation | None:
        """The generation that a child spawned now would carry, as far as it is known."""
        return self.secret.status.generation

    @property
    def state(self) -> TokenState:
        """
        The state of the token, in the contract's words; where several apply, the first of this list.

        ``missing``, ``invalid``, ``expired``; the latest of ``refused``, ``blocked`` and ``billing``; ``suspect``,
        ``limited``, ``ready``.
        """
        status = self.secret.status
        generation = status.generation
        if generation is None:
            return TokenState(status.state)
        if generation.has_expired(time.time()):
            return TokenState.EXPIRED
        if trouble := self.statuses.trouble_of(generation):
            return TokenState(trouble)
        if self.statuses.is_suspect(generation):
            return TokenState.SUSPECT
        return TokenState.READY if self.limit is None else TokenState.LIMITED

    @property
    def limit(self) -> Limit | None:
        """The usage limit that the token in use has met and that still lasts; None: there is none."""
        generation = self.current
        return self.statuses.longest_limit(generation, time.time()) if generation is not None else None

    @property
    def is_verifying(self) -> bool:
        """Whether it is being verified that the token in use is good: new executions wait for the result."""
        generation = self.current
        return generation is not None and self.statuses.is_suspect(generation)

    @property
    def unready(self) -> tuple[str, str] | None:
        """Why the token keeps an execution admitted now from starting, as a word and a sentence; None: it does not."""
        try:
            self.require()
        except AdmissionError as error:
            return f"token_{self.state}", str(error)
        if self.is_verifying:
            return "token_suspect", "the supervisor is verifying whether the token is good"
        return None

    def require(self, model: str | None = None) -> Generation:
        """
        Return the generation that an execution admitted now would use.

        Raises:
            NoToken: The secret file gives no token.
            TokenUnusable: The API refused the token, its account is blocked, or it expired.
            TokenUnpaid: The account cannot pay.
            TokenLimited: A usage limit of the account, or of *model*, lasts.
        """
        status = self.secret.status
        generation = status.generation
        if generation is None:
            reason = status.error or "the secret file is missing"
            raise NoToken(f"no usable token: {reason}; write one, or let agent-runtime doctor say why")
        self._require_unexpired(generation)
        if self._is_closed(generation) or self.statuses.retry_after_seconds(generation, time.monotonic()) > 0:
            raise self._unusable(generation)
        self._require_unlimited(generation, model)
        return generation

    def require_for_spawn(self, generation: Generation, model: str | None, by: str) -> None:
        """
        Raise unless *generation* may still be used at the spawn, since admission may be minutes ago; from any thread.

        A generation in trouble whose pause is over may be used by one execution, until :meth:`TokenStatuses.end_try`.

        Args:
            by: The execution's id.

        Raises:
            TokenUnusable: The API refused the token, its account is blocked, or it expired.
            TokenUnpaid: The account cannot pay.
            TokenLimited: A usage limit of the account, or of *model*, lasts.
        """
        self._require_unexpired(generation)
        self._require_unlimited(generation, model)
        if self._is_closed(generation) or not self.statuses.begin_try(generation, by, time.monotonic()):
            raise self._unusable(generation)

    def mark_suspect(self, generation: Generation, by: str) -> None:
        """
        Mark *generation*, which an attempt saw refused just now, so that no new execution uses it; from any thread.

        The refusal is verified when that attempt has ended, at the latest after the stop grace. The generation stays
        suspect until then, or until :meth:`TokenStatuses.clear_suspicion`.

        Args:
            by: Id of the attempt's execution.
        """
        current = self.current
        is_in_use = current is not None and current.number == generation.number
        if is_in_use and self.statuses.trouble_of(generation) is None:
            self.statuses.mark_suspect(generation, by, time.monotonic())

    def is_newer_usable(self, generation: Generation | None, model: str | None) -> bool:
        """Whether a generation newer than *generation* is loaded and could be spawned with now."""
        current = self.current
        return self.is_usable(model) and (
            generation is None or (current is not None and current.number > generation.number)
        )

    def is_good_again(self, generation: Generation, model: str | None) -> bool:
        """Whether *generation* is still, or again, the one in use and could be spawned with now."""
        current = self.current
        return current is not None and current.token == generation.token and self.is_usable(model)

    def is_usable(self, model: str | None) -> bool:
        """Whether an execution for *model* could be spawned with the generation in use, as far as is known."""
        current = self.current
        return (
            current is not None
            and not current.has_expired(time.time())
            and self.statuses.trouble_of(current) is None
            and self.limit_for(current, model) is None
        )

    def limit_for(self, generation: Generation, model: str | None) -> Limit | None:
        """Return the limit that an execution for *model* would meet now."""
        return self.statuses.limit_for(generation, model, time.time())

    def verify_limit(
        self, generation: Generation, detection: Detection | None, model: str | None, *, may_be_forged: bool
    ) -> tuple[Verification, float | None]:
        """
        Record a usage limit that an attempt met, unless a tool may have forged it.

        A limit that may be forged is confirmed only if the same was recorded before.

        Args:
            model: What the execution that met it runs with.

        Returns:
            What is known, and the end of the limit (epoch seconds) where that is known.
        """
        if may_be_forged or detection is None:
            if (known := self.limit_for(generation, model)) is None:
                return Verification.OPEN, None
            return Verification.CONFIRMED, known.until if known.has_known_end else None
        now, resets_at = time.time(), detection.resets_at
        if resets_at is not None and resets_at <= now:
            resets_at = None
        until = resets_at or now + UNKNOWN_LIMIT_SECONDS
        self.note_limit(generation, Limit(detection.limit_type, detection.limit_model, until, resets_at is not None))
        return Verification.CONFIRMED, resets_at

    def note_limit(self, generation: Generation, limit: Limit) -> None:
        """Record a usage limit, and publish an event if it is new."""
        if self.statuses.note_limit(generation, limit, time.time()):
            extra = {"generation": generation.number}
            log.warning("token limited: type=%s model=%s", limit.type, limit.model, extra=extra)
            self._events.publish(
                "token.limited",
                generation=generation.number,
                fingerprint=generation.token.fingerprint,
                limit_type=limit.type,
                model=limit.model,
                limited_until=limit.until if limit.has_known_end else None,
            )
        self.changed.notify()

    def _is_closed(self, generation: Generation) -> bool:
        """Whether no execution may try this token, because it is in trouble and the probe will try it."""
        is_probed = self._probes and self.statuses.trouble_of(generation) in PROBED
        return is_probed and not self.statuses.is_left_to_execution(generation)

    def _unusable(self, generation: Generation) -> AdmissionError:
        # Another thread may have cleared the trouble since; then the error reports what was true a moment ago.
        trouble = self.statuses.trouble_of(generation) or TokenTrouble.REFUSED
        kind, sentence = _UNUSABLE[trouble]
        return kind(sentence, token_generation=generation.number)

    @staticmethod
    def _require_unexpired(generation: Generation) -> None:
        if generation.has_expired(time.time()):
            raise TokenUnusable(_EXPIRED, token_generation=generation.number)

    def _require_unlimited(self, generation: Generation, model: str | None) -> None:
        if limit := self.limit_for(generation, model):
            resets_at = limit.until if limit.has_known_end else None
            raise TokenLimited(
                limit_sentence(resets_at),
                retry_after_seconds=max(1, math.ceil(limit.until - time.time())),
                resets_at=resets_at,
                token_generation=generation.number,
            )
