"""Which token may be used now, for whom, and who has been told about it."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

from agent_runtime.change import Change
from agent_runtime.errors import NoToken, TokenLimited, TokenUnusable
from agent_runtime.secret_file import SecretState

if TYPE_CHECKING:
    from agent_runtime.events import EventLog
    from agent_runtime.generations import Generation
    from agent_runtime.secret_file import SecretFile, SecretStatus
    from agent_runtime.standing import Limit, Standing

log = logging.getLogger(__name__)

EXPIRES_SOON_SECONDS = 15 * 60
ANSWERED_KEPT = 64
_REFUSED = "the API refused this token; write a new one to the secret file"
_EXPIRED = "the token has expired; write a new one to the secret file"


class TokenDesk:
    """
    Put together what the secret file and the API's answers say of the token in use.

    :meth:`may_use` is asked from attempts' threads, everything else on the event loop's thread.
    """

    def __init__(self, secret: SecretFile, standing: Standing, events: EventLog) -> None:
        self.secret = secret
        self.standing = standing
        self.changed = Change()
        self._events = events
        self._answered: dict[int, None] = {}
        self._told: tuple[object, ...] = ()
        self._warned_of_expiry: int | None = None

    @property
    def current(self) -> Generation | None:
        """The generation that a child spawned now would carry, as far as it is known."""
        return self.secret.status.generation

    @property
    def state(self) -> str:
        """The state of the token, in the contract's words."""
        status = self.secret.status
        generation = status.generation
        if generation is None:
            return str(status.state)
        if status.is_expired(time.time()):
            return "expired"
        if self.standing.is_refused(generation):
            return "refused"
        if self.standing.is_suspect(generation):
            return "suspect"
        return "limited" if self.standing.any_limit_of(generation, time.time()) else "ready"

    @property
    def limit(self) -> Limit | None:
        """The limit that the token in use has met, if it lasts."""
        generation = self.current
        return self.standing.any_limit_of(generation, time.time()) if generation is not None else None

    @property
    def holds_new_executions(self) -> bool:
        """Whether it is being found out if the token in use is good: then nobody new begins."""
        generation = self.current
        return generation is not None and self.standing.is_suspect(generation)

    def require(self, model: str | None = None) -> Generation:
        """
        Tell the generation that an execution admitted now would use.

        Raises:
            NoToken: There is none.
            TokenUnusable: The API refused it, or it expired.
            TokenLimited: Its usage limit lasts, for *model* at least.
        """
        status = self.secret.status
        generation = status.generation
        if generation is None:
            raise NoToken(f"no usable token: {status.error or 'the secret file is missing'}")
        self._require_unexpired(generation)
        if self.standing.retry_after_seconds(generation, time.monotonic()) > 0:
            raise TokenUnusable(_REFUSED)
        self._require_unlimited(generation, model)
        return generation

    def may_use(self, generation: Generation, model: str | None = None) -> None:
        """
        Judge a generation at the spawn, from any thread: admission may be minutes ago.

        Raises:
            TokenUnusable: The API refused it, or it expired.
            TokenLimited: Its usage limit lasts.
        """
        self._require_unexpired(generation)
        if self.standing.is_refused(generation) and not self.standing.begin_try(generation, time.monotonic()):
            raise TokenUnusable(_REFUSED)
        self._require_unlimited(generation, model)

    def is_newer_usable(self, generation: Generation | None, model: str | None) -> bool:
        """Whether a generation newer than *generation* is loaded and could be spawned with now."""
        current = self.current
        if current is None or (generation is not None and current.number <= generation.number):
            return False
        if current.expires_at is not None and current.expires_at <= time.time():
            return False
        return not self.standing.is_refused(current) and self.standing.limit_of(current, model, time.time()) is None

    def nobody_answered(self, generation: Generation | None) -> bool:
        """Whether no execution has told its caller yet that this generation cannot be used."""
        return generation is None or generation.number not in self._answered

    def answered(self, generation: Generation | None) -> None:
        """Note that a caller was told."""
        if generation is not None:
            self._answered[generation.number] = None
            while len(self._answered) > ANSWERED_KEPT:
                del self._answered[next(iter(self._answered))]

    def limited(self, generation: Generation, limit: Limit) -> None:
        """Take a usage limit into account; told once."""
        if self.standing.limit(generation, limit):
            log.warning("token limited: generation=%d type=%s model=%s", generation.number, limit.type, limit.model)
            self._events.publish(
                "token.limited",
                generation=generation.number,
                fingerprint=generation.token.fingerprint,
                limit_type=limit.type,
                model=limit.model,
                limited_until=limit.until if limit.is_told else None,
            )
        self.changed.tell()

    def secret_changed(self, status: SecretStatus) -> None:
        """Take a new status of the secret file: what is news becomes an event."""
        generation = status.generation
        news = (status.state, generation.number if generation else None, status.error)
        if news != self._told:
            was_number = self._told[1] if self._told else None
            self._told = news
            if status.state is not SecretState.READY or status.error:
                self._events.publish("token.invalid", state=str(status.state), error=status.error)
            if generation is not None and generation.number != was_number:
                log.info(
                    "token loaded: generation=%d fingerprint=%s kind=%s",
                    generation.number,
                    generation.token.fingerprint,
                    generation.token.kind,
                )
                self._events.publish(
                    "token.loaded",
                    generation=generation.number,
                    fingerprint=generation.token.fingerprint,
                    kind=str(generation.token.kind),
                    subscription=generation.subscription,
                )
        self.warn_of_expiry()
        self.changed.tell()

    def warn_of_expiry(self) -> None:
        """Say once per generation that it expires soon; asked now and then."""
        generation = self.current
        if generation is None or generation.expires_at is None or generation.number == self._warned_of_expiry:
            return
        left = generation.expires_at - time.time()
        if left <= EXPIRES_SOON_SECONDS:
            self._warned_of_expiry = generation.number
            log.warning("token expires in %d seconds: generation=%d", max(0, left), generation.number)
            self._events.publish("token.expires_soon", generation=generation.number, expires_at=generation.expires_at)

    @staticmethod
    def _require_unexpired(generation: Generation) -> None:
        if generation.expires_at is not None and generation.expires_at <= time.time():
            raise TokenUnusable(_EXPIRED)

    def _require_unlimited(self, generation: Generation, model: str | None) -> None:
        now = time.time()
        if limit := self.standing.limit_of(generation, model, now):
            raise TokenLimited(
                "the account's usage limit is reached",
                retry_after_seconds=max(1, math.ceil(limit.until - now)),
                resets_at=limit.until if limit.is_told else None,
            )
