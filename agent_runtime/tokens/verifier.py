"""Find out whether what one attempt met holds for its token: by asking the API, or by what was seen."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING

from agent_runtime.model.state import TokenTrouble, Verification
from agent_runtime.tokens.probe import ProbeVerdict
from agent_runtime.tokens.status import PROBED

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from agent_runtime.secret.generations import Generation
    from agent_runtime.telemetry.events import EventLog
    from agent_runtime.tokens.probe import Probe
    from agent_runtime.tokens.status import TokenStatuses

log = logging.getLogger(__name__)

PROBE = "probe"
"""Who tries a token, where it is the API that is asked; an execution that tries one has its id."""

_TROUBLE_BY_VERDICT = {
    ProbeVerdict.REFUSED: TokenTrouble.REFUSED,
    ProbeVerdict.BLOCKED: TokenTrouble.BLOCKED,
    ProbeVerdict.BILLING: TokenTrouble.BILLING,
}


class RefusalVerifier:
    """
    Turn what one attempt met into what is known of its token: refused, blocked, or unable to pay.

    However many attempts meet the same at once, the API is asked once and the generation is marked once.

    Args:
        probe: None: never ask.
    """

    def __init__(self, statuses: TokenStatuses, probe: Probe | None, events: EventLog) -> None:
        self._statuses = statuses
        self._probe = probe
        self._events = events
        self._later: set[asyncio.Task[Verification]] = set()
        self._asking: dict[str, asyncio.Task[ProbeVerdict]] = {}

    async def confirm(
        self,
        generation: Generation,
        *,
        by: str | None,
        trouble: TokenTrouble,
        may_condemn: bool,
        rule: str,
        model: str | None,
    ) -> Verification:
        """
        Say what is known of *generation* after an attempt met *trouble*, asking at most once at a time.

        The probe's 200 clears a refusal or a block. It says nothing of an account that cannot pay, which is therefore
        not asked about where what was seen is enough.

        Args:
            by: Who asks: the token stays suspect until :meth:`TokenStatuses.unsuspect`; None: it is
                not in use any more, and nobody waits for what is found out.
            may_condemn: What was seen is enough without the API's word: it came before a tool could have forged it.
        """
        statuses = self._statuses
        known = statuses.trouble_of(generation)
        if known is not None and (known is trouble or not may_condemn):
            self.found(generation, known, rule)
            return Verification.CONFIRMED
        if by is not None:
            statuses.suspect(generation, by, time.monotonic())
        verdict = ProbeVerdict.UNKNOWN
        if trouble in PROBED or not may_condemn:
            verdict = await self.ask(generation, model)
        self.heed(generation, verdict)
        if may_condemn and verdict is ProbeVerdict.UNKNOWN:
            self.found(generation, trouble, rule)
        # Another's evidence may have condemned it meanwhile.
        if statuses.trouble_of(generation) is not None:
            return Verification.CONFIRMED
        if by is not None:
            statuses.unsuspect(by)  # what may be forged holds up nobody else
        return Verification.GOOD if verdict is ProbeVerdict.VALID and trouble in PROBED else Verification.OPEN

    def begin(self, confirming: Coroutine[Any, Any, Verification]) -> asyncio.Task[Verification]:
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

    def heed(self, generation: Generation, verdict: ProbeVerdict, since: float = math.inf) -> None:
        """Record what the probe's verdict says of the token; *since* as for :meth:`TokenStatuses.accept`."""
        if (trouble := _TROUBLE_BY_VERDICT.get(verdict)) is not None:
            self.found(generation, trouble, PROBE)
        elif verdict is ProbeVerdict.VALID:
            self.accepted(generation, since)

    def begin_check(self, generation: Generation) -> bool:
        """Make a token suspect, a refused one too, so that nobody new begins with it; :meth:`try_again` must follow."""
        statuses, now = self._statuses, time.monotonic()
        trouble = statuses.trouble_of(generation)
        if trouble not in {None, *PROBED} or not statuses.begin_try(generation, _prober(generation), now):
            return False
        statuses.suspect(generation, _prober(generation), now)
        return True

    async def try_again(self, generation: Generation) -> None:
        """Ask about a token of which nobody waits to hear, made suspect before."""
        statuses = self._statuses
        try:
            verdict = await self.ask(generation)
            self.heed(generation, verdict)
            if verdict is ProbeVerdict.UNKNOWN:
                statuses.leave_to_execution(generation)
        finally:
            statuses.end_try(_prober(generation))
            statuses.unsuspect(_prober(generation))

    def found(self, generation: Generation, trouble: TokenTrouble, rule: str) -> None:
        """Mark the token: its API refuses it, has blocked its account, or gets no money from it; told once."""
        if self._statuses.mark(generation, trouble, time.monotonic()):
            fingerprint = generation.token.fingerprint
            extra = {"generation": generation.number}
            log.error("token %s: fingerprint=%s rule=%s", trouble, fingerprint, rule, extra=extra)
            self._events.publish(f"token.{trouble}", generation=generation.number, fingerprint=fingerprint, rule=rule)

    def accepted(self, generation: Generation, since: float = math.inf, *, served: bool = False) -> None:
        """Record that the API accepts this token; the arguments are those of :meth:`TokenStatuses.accept`."""
        had_trouble = self._statuses.trouble_of(generation) is not None
        if self._statuses.accept(generation, since, served=served) and had_trouble:
            fingerprint = generation.token.fingerprint
            log.info("token accepted again: fingerprint=%s", fingerprint, extra={"generation": generation.number})


def _prober(generation: Generation) -> str:
    """Name who asks about one generation: that it has done says nothing of another."""
    return f"{PROBE}.{generation.number}"
