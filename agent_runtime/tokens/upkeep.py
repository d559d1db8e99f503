"""What follows a change of the secret file, an accepted token, or the end of a token's pause."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from agent_runtime.secret.file import SecretState, SecretStatus
from agent_runtime.secret.generations import Generation
from agent_runtime.settings import Settings
from agent_runtime.telemetry.counters import Counts
from agent_runtime.telemetry.events import EventLog
from agent_runtime.tokens.gate import TokenGate
from agent_runtime.tokens.verifier import RefusalVerifier

log = logging.getLogger(__name__)

EXPIRES_SOON_SECONDS = 15 * 60


class TokenUpkeep(msgspec.Struct, eq=False):
    """
    Keep the gate, the slots and the running attempts up to date with the token in use, and publish its changes.

    All methods run on the event loop's thread.

    Attributes:
        grant_slots: Called when new executions may begin again.
        follow_secret: Called to make all running attempts consider the secret file's generation.
        spawn: Runs a coroutine as a task of the supervisor, by name.
    """

    settings: Settings
    gate: TokenGate
    verifier: RefusalVerifier
    counts: Counts
    events: EventLog
    grant_slots: Callable[[], None]
    follow_secret: Callable[[], None]
    spawn: Callable[[Coroutine[Any, Any, None], str], None]
    _newest_number: int = 0
    _published: tuple[SecretState | None, int | None, str | None] = (None, None, None)
    _warned_of_expiry: int | None = None

    def record_accepted(self, generation: Generation, since: float) -> None:
        """Record that the API answered a request of an attempt that got its token at *since* (monotonic seconds)."""
        self.verifier.note_accepted(generation, since, served=True)
        self._token_may_be_usable()

    def secret_changed(self, status: SecretStatus) -> None:
        """Process a new status of the secret file."""
        generation = status.generation
        self._publish_change(status)
        if generation is not None and generation.number > self._newest_number:
            self._newest_number = generation.number
            self.counts.observe_load(generation)
            self.follow_secret()
            if self.settings.probe == "on_load":
                self._begin_probe(generation)
        self._warn_of_expiry()
        self._token_may_be_usable()

    async def poll(self) -> SecretStatus:
        """Read the secret file now: a backend that writes a token and posts at once can be ahead of the watcher."""
        status = await asyncio.to_thread(self.gate.secret.poll)
        self.secret_changed(status)
        return status

    async def reload(self) -> None:
        """Read the secret file now, forget limits and an unpaid account, and try a token in trouble at once."""
        await asyncio.to_thread(self.gate.secret.settle)
        status, statuses = await self.poll(), self.gate.statuses
        if (generation := status.generation) is not None:
            statuses.forget_limits(generation)
            if statuses.trouble_of(generation) is not None:
                statuses.retry_now(generation)
                if self.verifier.begin_check(generation):
                    await self._probe(generation)
            self.gate.changed.notify()

    def each_second(self) -> None:
        """Warn of a token that expires soon, and let the probe try a refused or blocked one whose pause is over."""
        self._warn_of_expiry()
        self.follow_secret()  # by now it may have been shown that the CLI re-reads its file
        generation = self.gate.current
        if self.settings.probe == "off" or generation is None:
            return
        if self.gate.statuses.is_due(generation, time.monotonic()):
            self._begin_probe(generation)

    def _publish_change(self, status: SecretStatus) -> None:
        """Publish and count what is new in a status of the secret file: a fault, or another generation."""
        generation = status.generation
        now = (status.state, None if generation is None else generation.number, status.error)
        before, self._published = self._published, now
        if now == before:
            return
        if status.state is not SecretState.READY or status.error:
            self.events.publish("token.invalid", state=str(status.state), error=status.error)
            if status.unusable is not None:
                self.counts.count("secret_read_errors", status.unusable.fault)
        if generation is not None and generation.number != before[1]:
            fingerprint, kind = generation.token.fingerprint, generation.token.kind
            extra = {"generation": generation.number}
            log.info("token loaded: fingerprint=%s kind=%s", fingerprint, kind, extra=extra)
            self.events.publish(
                "token.loaded",
                generation=generation.number,
                fingerprint=fingerprint,
                kind=str(kind),
                subscription=generation.subscription,
            )

    def _warn_of_expiry(self) -> None:
        """Warn once per generation that it expires soon."""
        generation = self.gate.current
        if generation is None or generation.expires_at is None or generation.number == self._warned_of_expiry:
            return
        left = generation.expires_at - time.time()
        if left <= EXPIRES_SOON_SECONDS:
            self._warned_of_expiry = generation.number
            log.warning("token expires in %d seconds", max(0, left), extra={"generation": generation.number})
            self.events.publish("token.expires_soon", generation=generation.number, expires_at=generation.expires_at)

    def _begin_probe(self, generation: Generation) -> None:
        # The token is claimed before the task runs, so that an execution posted in between waits.
        if self.verifier.begin_check(generation):
            self.spawn(self._probe(generation), "probe")

    async def _probe(self, generation: Generation) -> None:
        try:
            await self.verifier.try_again(generation)
        finally:
            self._token_may_be_usable()

    def _token_may_be_usable(self) -> None:
        self.grant_slots()
        self.gate.changed.notify()
