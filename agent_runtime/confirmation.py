"""Find out whether a token that was refused once is dead: by asking the API, or by what was seen."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING

from agent_runtime.ladder import Confirmation
from agent_runtime.probe import ProbeVerdict

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from agent_runtime.events import EventLog
    from agent_runtime.generations import Generation
    from agent_runtime.probe import Probe
    from agent_runtime.standing import Standing

log = logging.getLogger(__name__)

PROBE = "probe"
"""Who tries a token, where it is the API that is asked; an execution that tries one has its id."""


class Confirmer:
    """
    Turn a refusal that one attempt met into what is known of its token.

    However many attempts meet the same refusal at once, the API is asked once and the generation is refused once.

    Args:
        probe: None: never ask.
    """

    def __init__(self, standing: Standing, probe: Probe | None, events: EventLog) -> None:
        self._standing = standing
        self._probe = probe
        self._events = events
        self._later: set[asyncio.Task[Confirmation]] = set()
        self._asking: dict[str, asyncio.Task[ProbeVerdict]] = {}

    async def confirm(
        self, generation: Generation, *, by: str | None, may_condemn: bool, rule: str, model: str | None
    ) -> Confirmation:
        """
        Say what is known of *generation* after a refusal, asking at most once at a time.

        Args:
            by: Who asks: the token stays suspect until it has been told, see :meth:`Standing.unsuspect`; None: it is
                not in use any more, and nobody waits for what is found out.
            may_condemn: What was seen is enough without the API's word: it came before a tool could have forged it.
        """
        if self._standing.is_refused(generation):
            self._standing.refuse(generation, time.monotonic())
            return Confirmation.CONFIRMED
        if by is not None:
            self._standing.suspect(generation, by, time.monotonic())
        verdict = await self.ask(generation, model)
        if verdict is ProbeVerdict.VALID:
            self.accepted(generation)
            return Confirmation.GOOD
        if verdict is ProbeVerdict.REFUSED or may_condemn:
            self.refused(generation, rule if verdict is not ProbeVerdict.REFUSED else PROBE)
            return Confirmation.CONFIRMED
        # Another's evidence may have condemned it meanwhile.
        return Confirmation.CONFIRMED if self._standing.is_refused(generation) else Confirmation.OPEN

    def begin(self, confirming: Coroutine[Any, Any, Confirmation]) -> asyncio.Task[Confirmation]:
        """Let a confirmation run to its end, whether or not somebody goes on waiting for it."""
        task = asyncio.ensure_future(confirming)
        self._later.add(task)
        task.add_done_callback(self._later.discard)
        return task

    async def ask(self, generation: Generation, model: str | None = None) -> ProbeVerdict:
        """Ask the API about the token; who asks while somebody else does gets the same answer."""
        if self._probe is None:
            return ProbeVerdict.UNKNOWN
        fingerprint = generation.token.fingerprint
        asking = self._asking.get(fingerprint)
        if asking is None:
            asking = asyncio.ensure_future(self._probe.ask(generation.token, model=model))
            self._asking[fingerprint] = asking
            asking.add_done_callback(lambda _: self._asking.pop(fingerprint, None))
        # Shielded: that one asker goes away must not take the answer from the others.
        verdict = await asyncio.shield(asking)
        log.info("probe: fingerprint=%s verdict=%s", fingerprint, verdict, extra={"generation": generation.number})
        return verdict

    def suspects(self, generation: Generation) -> bool:
        """Make a token suspect, a refused one too, so that nobody new begins with it; :meth:`try_again` must follow."""
        standing, now = self._standing, time.monotonic()
        if standing.is_refused(generation) and not standing.begin_try(generation, _prober(generation), now):
            return False
        standing.suspect(generation, _prober(generation), now)
        return True

    async def try_again(self, generation: Generation) -> None:
        """Ask about a token of which nobody waits to hear, made suspect before."""
        standing = self._standing
        was_refused = standing.is_refused(generation)
        try:
            verdict = await self.ask(generation)
            if verdict is ProbeVerdict.REFUSED:
                self.refused(generation, PROBE)
            elif verdict is ProbeVerdict.VALID:
                self.accepted(generation)
            elif was_refused:
                standing.leave_to_execution(generation)
        finally:
            standing.end_try(_prober(generation))
            standing.unsuspect(_prober(generation))

    def refused(self, generation: Generation, rule: str) -> None:
        """Take it that the API refuses this token; told once."""
        if self._standing.refuse(generation, time.monotonic()):
            fingerprint = generation.token.fingerprint
            extra = {"generation": generation.number}
            log.error("token refused: fingerprint=%s rule=%s", fingerprint, rule, extra=extra)
            self._events.publish("token.refused", generation=generation.number, fingerprint=fingerprint, rule=rule)

    def accepted(self, generation: Generation, since: float = math.inf) -> None:
        """Take it that the API accepts this token; *since* as for :meth:`Standing.accept`."""
        was_refused = self._standing.is_refused(generation)
        if self._standing.accept(generation, since) and was_refused:
            fingerprint = generation.token.fingerprint
            log.info("token accepted again: fingerprint=%s", fingerprint, extra={"generation": generation.number})


def _prober(generation: Generation) -> str:
    """Name who asks about one generation: that it has done says nothing of another."""
    return f"{PROBE}.{generation.number}"
