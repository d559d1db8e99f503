"""Post events to a backend, one after the other, without delaying anything else."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
from typing import TYPE_CHECKING

import httpx

from agent_runtime import __version__
from agent_runtime.http_client import checked_url, client_for
from agent_runtime.telemetry.events import POSTED, Event, EventLog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent_runtime.model.tokens import Token

logger = logging.getLogger(__name__)

SIGNATURE_HEADER = "X-Agent-Runtime-Signature"
TIMEOUT_SECONDS = 5.0
PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""The pauses between the tries of one event. After the last try it is given up, so that it delays no others."""

LAST_SECONDS = 1.0
"""How long the shutdown waits for events that have not been posted yet."""


def signature(body: bytes, key: Token) -> str:
    """Sign *body*, so that a holder of the access key can verify its origin."""
    return "sha256=" + hmac.new(key.secret.encode(), body, hashlib.sha256).hexdigest()


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.error("events are posted no more: a fault of the supervisor", exc_info=error)


class Webhook:
    """
    Post each event that a backend has to act on, in order, and again until the backend takes it or it is given up.

    The event log is the queue: while the backend does not answer, executions go on and the oldest events are lost.

    Args:
        key_reader: Called before every try; returns the present access key, None if there is none.
        environ: Variables that name proxies and CAs.
        pauses_seconds: Pauses between the tries of an event: so many tries follow the first one.

    Raises:
        ValueError: *url* is no http or https URL.
    """

    def __init__(
        self,
        url: str,
        key_reader: Callable[[], Token | None],
        log: EventLog,
        *,
        environ: Mapping[str, str] | None = None,
        pauses_seconds: Sequence[float] = PAUSES_SECONDS,
    ) -> None:
        self._url = checked_url(url)
        self._key_reader = key_reader
        self._log = log
        self._environ = os.environ if environ is None else environ
        self._pauses_seconds = pauses_seconds
        self._position = log.last_id
        self._warned_of_missing_key = False
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Webhook to {self._url.host}>"

    def start(self) -> None:
        """Begin to post the events that happen from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="webhook")
        self._task.add_done_callback(_ended)

    async def stop(self) -> None:
        """Try each remaining event once, for a second altogether, and end; to be called after the log is closed."""
        if self._task is None:
            return
        self._stopping.set()
        await asyncio.wait({self._task}, timeout=LAST_SECONDS)
        self._task.cancel()
        await asyncio.wait({self._task})
        left = sum(event.type in POSTED for event in self._next())
        if left:
            logger.warning("events not posted before the end: %d", left)

    async def _run(self) -> None:
        while True:
            closed = self._log.closed
            events = self._next()
            if not events:
                if closed:
                    return
                await self._log.wait(self._position)
                continue
            event = events[0]
            if event.type in POSTED:
                await self._post(event)
            self._position = event.id

    def _next(self) -> list[Event]:
        """Return the events still to be posted, and log how many have fallen out of the log meanwhile."""
        events, _ = self._log.after(self._position)
        if events and (missed := events[0].id - 1 - self._position):
            self._position += missed
            logger.warning("events lost before they could be posted: %d", missed)
        return events

    async def _post(self, event: Event) -> None:
        body = event.json
        for pause in (*self._pauses_seconds, None):
            reason = await self._try(body)
            if not reason:
                return
            logger.info("event not taken: id=%d type=%s reason=%s", event.id, event.type, reason)
            if pause is None or self._stopping.is_set():
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
        logger.warning("event given up: id=%d type=%s reason=%s", event.id, event.type, reason)

    async def _try(self, body: bytes) -> str:
        """Post once; return the reason of a failure, empty on success."""
        try:
            async with (
                asyncio.timeout(TIMEOUT_SECONDS),
                client_for(self._url, self._environ, timeout_seconds=TIMEOUT_SECONDS) as client,
                client.stream("POST", self._url, headers=self._headers(body), content=body) as response,
            ):
                return "" if response.is_success else str(response.status_code)
        except (httpx.HTTPError, OSError, ValueError) as error:
            # Only the error's type: its text may quote the URL, and that may hold a password.
            return type(error).__name__

    def _headers(self, body: bytes) -> dict[str, str]:
        headers = {"content-type": "application/json", "user-agent": f"agent-runtime/{__version__}"}
        key = self._key_reader()
        if key is not None:
            self._warned_of_missing_key = False
            return headers | {SIGNATURE_HEADER: signature(body, key)}
        if not self._warned_of_missing_key:
            self._warned_of_missing_key = True
            logger.warning("events are posted without a signature: there is no access key")
        return headers
