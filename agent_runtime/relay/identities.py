"""The identities that may use the relay: one for each attempt, valid until the attempt ends."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.delivery.delivery import HeldRequest
    from agent_runtime.model.tokens import TokenKind
    from agent_runtime.secret.generations import Generation

PLACEHOLDER_PREFIX = "relay-"
_PLACEHOLDER_BYTES = 16


class Identity:
    """
    The identity of one attempt, shown in its requests; every method may be called from any thread.

    The child sends the placeholder as its token. The agent's tools can read the placeholder: it identifies the attempt
    and is no secret.

    Args:
        generation: The generation that the attempt begins with. A later one is used only if its token is of the same
            kind, because the kind decides what else the CLI sends.
        hold_seconds: The attempt's CLI waits at least this long for the first byte of an answer.

    Attributes:
        pid: The CLI's pid; None: the CLI has not started.
        open_requests: How many requests are being answered; only the relay's own thread changes the number.
        on_hold: Called in the relay's thread with each request that is to be held; None: no request is held.
        on_release: Called with a request that is held no longer.
        on_silence: Called when the API did not begin to answer a request for a message in time.
        served: The generation of the last request for a message that the API answered with success.
    """

    def __init__(self, generation: Generation, hold_seconds: float) -> None:
        self.placeholder = PLACEHOLDER_PREFIX + secrets.token_hex(_PLACEHOLDER_BYTES)
        self.hold_seconds = hold_seconds
        self.pid: int | None = None
        self.open_requests = 0
        self.served = generation
        self.on_hold: Callable[[HeldRequest], None] | None = None
        self.on_release: Callable[[HeldRequest], None] = lambda _hold: None
        self.on_silence: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._newest = generation
        self._carried = (generation, time.monotonic())

    @property
    def kind(self) -> TokenKind:
        """The kind of token that the attempt can use."""
        return self._newest.token.kind

    def choose(self, current: Generation | None) -> Generation:
        """Return the generation for the next request: *current* if newer and of the same kind, else the last chosen."""
        with self._lock:
            if current is not None and current.token.kind is self.kind and current.number > self._newest.number:
                self._newest = current
            return self._newest

    def carried(self) -> tuple[Generation, float]:
        """Return the generation of the request that was answered last, and the monotonic time when its use began."""
        return self._carried

    def record_answer(self, generation: Generation) -> None:
        """Record that a request with this generation was answered."""
        with self._lock:
            if generation.number != self._carried[0].number:
                self._carried = (generation, time.monotonic())


class Identities:
    """The identities of the running attempts; every method may be called from any thread."""

    def __init__(self) -> None:
        self._by_digest: dict[bytes, Identity] = {}

    def add(self, identity: Identity) -> None:
        """Add the identity of an attempt."""
        self._by_digest[_digest(identity.placeholder)] = identity

    def remove(self, identity: Identity) -> None:
        """Remove an identity: the relay refuses its placeholder from now on."""
        self._by_digest.pop(_digest(identity.placeholder), None)

    def find(self, credentials: list[str]) -> Identity | None:
        """Return the identity whose placeholder is among *credentials*; None: there is none."""
        # Looked up by hash: comparing the texts would take longer, the more of a guess is right.
        found = (self._by_digest.get(_digest(text)) for text in credentials)
        return next(filter(None, found), None)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
