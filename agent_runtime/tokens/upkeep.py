"""What follows a change of the secret file, an accepted token, or the end of a token's pause."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from agent_runtime.secret.file import SecretStatus
    from agent_runtime.secret.generations import Generation
    from agent_runtime.settings import Settings
    from agent_runtime.telemetry.counters import Counts
    from agent_runtime.tokens.gate import TokenGate
    from agent_runtime.tokens.verifier import RefusalVerifier


class TokenUpkeep:
    """
    Keep the gate, the slots and the running attempts up to date with the token in use.

    All methods run on the event loop's thread.

    Args:
        grant_slots: Called when new executions may begin again.
        follow_secret: Called to make all running attempts consider the secret file's generation.
        spawn: Runs a coroutine as a task of the supervisor, by name.
    """

    def __init__(
        self,
        settings: Settings,
        gate: TokenGate,
        verifier: RefusalVerifier,
        counts: Counts,
        *,
        grant_slots: Callable[[], None],
        follow_secret: Callable[[], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        self._settings = settings
        self._gate = gate
        self._verifier = verifier
        self._grant_slots = grant_slots
        self._counts = counts
        self._follow_secret = follow_secret
        self._spawn = spawn
        self._newest_number = 0

    def record_accepted(self, generation: Generation, since: float) -> None:
        """Record that the API answered a request of an attempt that got its token at *since* (monotonic seconds)."""
        self._verifier.note_accepted(generation, since, served=True)
        self._token_may_be_usable()

    def secret_changed(self, status: SecretStatus) -> None:
        """Process a new status of the secret file."""
        generation = status.generation
        if self._gate.secret_changed(status) and status.unusable is not None:
            self._counts.count("secret_read_errors", status.unusable.fault)
        if generation is not None and generation.number > self._newest_number:
            self._newest_number = generation.number
            self._counts.observe_load(generation)
            self._follow_secret()
            if self._settings.probe == "on_load":
                self._begin_probe(generation)
        self._grant_slots()

    async def poll(self) -> SecretStatus:
        """Read the secret file now: a backend that writes a token and posts at once can be ahead of the watcher."""
        status = await asyncio.to_thread(self._gate.secret.poll)
        self.secret_changed(status)
        return status

    async def reload(self) -> None:
        """Read the secret file now, forget limits and an unpaid account, and try a token in trouble at once."""
        await asyncio.to_thread(self._gate.secret.settle)
        status, statuses = await self.poll(), self._gate.statuses
        if (generation := status.generation) is not None:
            statuses.forget_limits(generation)
            if statuses.trouble_of(generation) is not None:
                statuses.retry_now(generation)
                if self._verifier.begin_check(generation):
                    await self._probe(generation)
            self._gate.changed.notify()

    def each_second(self) -> None:
        """Warn of a token that expires soon, and let the probe try a refused or blocked one whose pause is over."""
        self._gate.warn_of_expiry()
        self._follow_secret()  # by now it may have been shown that the CLI re-reads its file
        generation = self._gate.current
        if self._settings.probe == "off" or generation is None:
            return
        if self._gate.statuses.is_due(generation, time.monotonic()):
            self._begin_probe(generation)

    def _begin_probe(self, generation: Generation) -> None:
        # The token is claimed before the task runs, so that an execution posted in between waits.
        if self._verifier.begin_check(generation):
            self._spawn(self._probe(generation), "probe")

    async def _probe(self, generation: Generation) -> None:
        try:
            await self._verifier.try_again(generation)
        finally:
            self._token_may_be_usable()

    def _token_may_be_usable(self) -> None:
        self._grant_slots()
        self._gate.changed.notify()
