"""Verification of a refusal: by asking the API, or by the evidence alone."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine
from typing import Any

from agent_runtime.model.state import TokenTrouble, Verification
from agent_runtime.secret.generations import Generation
from agent_runtime.telemetry.events import EventLog
from agent_runtime.tokens.probe import Probe, ProbeVerdict
from agent_runtime.tokens.status import PROBED, TokenStatuses

log = logging.getLogger(__name__)

PROBE_RULE = "probe"
"""The rule id, in logs and events, of a trouble that the probe found; evidence has the id of the rule that matched."""


class RefusalVerifier:
    """
    Decide from what one attempt met whether its token is refused or blocked, or its account cannot pay.

    However many attempts meet the same trouble at once, the API is asked once and the generation is marked once.

    Args:
        probe: None: the API is never asked.
    """

    def __init__(self, statuses: TokenStatuses, probe: Probe | None, events: EventLog) -> None:
        self._statuses = statuses
        self._probe = probe
        self._events = events
        self._verifying: set[asyncio.Task[Verification]] = set()
        self._asking: dict[str, asyncio.Task[ProbeVerdict]] = {}

    async def verify(
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
        Return what is known of *generation* after an attempt met *trouble*; ask the API where that can decide.

        A 200 to the probe clears a refusal or a block. It shows nothing about an account that cannot pay, so for such
        an account the probe is asked only if the evidence is not enough.

        Args:
            by: Id of the execution; the token stays suspect until :meth:`TokenStatuses.clear_suspicion`. None: the
                token is not in use any more, so no execution waits for the result.
            may_condemn: The evidence is enough by itself, because it came before a tool could have forged it.
            rule: Id of the rule that matched the evidence.
            model: The model that the probe's request names.
        """
        statuses = self._statuses
        known = statuses.trouble_of(generation)
        if known is not None and (known is trouble or not may_condemn):
            self.mark(generation, known, rule)
            return Verification.CONFIRMED
        if by is not None:
            statuses.mark_suspect(generation, by, time.monotonic())
        verdict = ProbeVerdict.UNKNOWN
        if trouble in PROBED or not may_condemn:
            verdict = await self.ask(generation, model)
        self.note_verdict(generation, verdict)
        if may_condemn and verdict is ProbeVerdict.UNKNOWN:
            self.mark(generation, trouble, rule)
        # The evidence of another attempt may have condemned the token meanwhile.
        if statuses.trouble_of(generation) is not None:
            return Verification.CONFIRMED
        if by is not None:
            statuses.clear_suspicion(by)  # evidence that may be forged must not hold up others
        return Verification.GOOD if verdict is ProbeVerdict.VALID and trouble in PROBED else Verification.OPEN

    def start(self, verifying: Coroutine[Any, Any, Verification]) -> asyncio.Task[Verification]:
        """Start a verification as a task that runs to its end even if its execution stops waiting for it."""
        task = asyncio.ensure_future(verifying)
        self._verifying.add(task)
        task.add_done_callback(self._verifying.discard)
        return task

    async def ask(self, generation: Generation, model: str | None = None) -> ProbeVerdict:
        """Ask the API about the token; callers that ask at the same time share one request."""
        if self._probe is None:
            return ProbeVerdict.UNKNOWN
        fingerprint = generation.token.fingerprint
        asking = self._asking.get(fingerprint)
        if asking is None:
            asking = asyncio.ensure_future(self._asked(self._probe, generation, model))
            self._asking[fingerprint] = asking
            asking.add_done_callback(lambda _: self._asking.pop(fingerprint, None))
        # Shielded: a caller that is cancelled must not take the answer from the others.
        verdict = await asyncio.shield(asking)
        log.info("probe: fingerprint=%s verdict=%s", fingerprint, verdict, extra={"generation": generation.number})
        return verdict

    async def _asked(self, probe: Probe, generation: Generation, model: str | None) -> ProbeVerdict:
        """Send the probe's request, and mark a trouble that it finds before another caller can send one."""
        verdict = await probe.ask(generation.token, model=model)
        if verdict is not ProbeVerdict.VALID:
            self.note_verdict(generation, verdict)
        return verdict

    def note_verdict(self, generation: Generation, verdict: ProbeVerdict, since: float = math.inf) -> None:
        """Record what the probe's verdict says about the token; *since* as for :meth:`TokenStatuses.accept`."""
        if verdict is ProbeVerdict.VALID:
            self.note_accepted(generation, since)
        elif verdict is not ProbeVerdict.UNKNOWN:
            self.mark(generation, TokenTrouble(verdict), PROBE_RULE)

    def begin_check(self, generation: Generation) -> bool:
        """Mark the token suspect and claim the right to try it; if True is returned, :meth:`try_again` must follow."""
        statuses, now = self._statuses, time.monotonic()
        trouble = statuses.trouble_of(generation)
        if trouble not in {None, *PROBED} or not statuses.begin_try(generation, _prober(generation), now):
            return False
        statuses.mark_suspect(generation, _prober(generation), now)
        return True

    async def try_again(self, generation: Generation) -> None:
        """Ask the API about a token that :meth:`begin_check` has claimed."""
        statuses = self._statuses
        try:
            verdict = await self.ask(generation)
            self.note_verdict(generation, verdict)
            if verdict is ProbeVerdict.UNKNOWN:
                statuses.leave_to_execution(generation)
        finally:
            statuses.end_try(_prober(generation))
            statuses.clear_suspicion(_prober(generation))

    def mark(self, generation: Generation, trouble: TokenTrouble, rule: str) -> None:
        """Mark the token refused, blocked or unpaid, and publish an event if that is new."""
        if self._statuses.mark(generation, trouble, time.monotonic()):
            fingerprint = generation.token.fingerprint
            extra = {"generation": generation.number}
            log.error("token %s: fingerprint=%s rule=%s", trouble, fingerprint, rule, extra=extra)
            self._events.publish(f"token.{trouble}", generation=generation.number, fingerprint=fingerprint, rule=rule)

    def note_accepted(self, generation: Generation, since: float = math.inf, *, served: bool = False) -> None:
        """Record that the API accepts this token; the arguments are those of :meth:`TokenStatuses.accept`."""
        had_trouble = self._statuses.trouble_of(generation) is not None
        if self._statuses.accept(generation, since, served=served) and had_trouble:
            fingerprint = generation.token.fingerprint
            log.info("token accepted again: fingerprint=%s", fingerprint, extra={"generation": generation.number})


def _prober(generation: Generation) -> str:
    """
    Return the name under which the probe claims the right to try a generation; an execution claims it by its id.

    There is one name for each generation, so that different generations are tried independently.
    """
    return f"probe.{generation.number}"
