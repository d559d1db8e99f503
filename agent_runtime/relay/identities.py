"""Who may use the relay: one identity for each attempt, dead when the attempt ends."""

from __future__ import annotations

import hashlib
import hmac
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
    One attempt at the relay; every method may be called from any thread.

    The child shows the placeholder as its token. The agent's tools can read it: it says who asks, it is no secret.

    Args:
        generation: The one that the attempt begins with; only generations of its kind are used for it, because the
            kind decides what else the CLI sends.

        hold_seconds: How long its CLI waits for the first byte of an answer, at least.

    Attributes:
        pid: The process of its CLI; None: it has not started.
        open_requests: How many are under way; only the relay's own thread changes it.
        on_hold: Called in the relay's thread with each request that is held; None: none is.
        on_release: Called when it is held no longer.
        on_silence: Called when the API did not begin to answer a message in time.
        served: The generation of the last request for a message that the API has fulfilled.
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
        """The kind of token that it can use."""
        return self._newest.token.kind

    def choose(self, current: Generation | None) -> Generation:
        """Return the generation for the next request: the current one if its kind fits, else the last that did."""
        with self._lock:
            if current is not None and current.token.kind is self.kind and current.number > self._newest.number:
                self._newest = current
            return self._newest

    def carried(self) -> tuple[Generation, float]:
        """Return the generation of the request that was answered last, and since when it is used (monotonic)."""
        return self._carried

    def answered(self, generation: Generation) -> None:
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
        """End an identity: nobody can use it any more."""
        self._by_digest.pop(_digest(identity.placeholder), None)

    def find(self, presented: list[str]) -> Identity | None:
        """Return the identity whose placeholder is among what a request shows; how long that takes tells nothing."""
        for text in presented:
            # Looked up by a hash, so that no comparison ends earlier for a better guess.
            identity = self._by_digest.get(_digest(text))
            if identity is not None and hmac.compare_digest(identity.placeholder.encode(), text.encode("latin-1")):
                return identity
        return None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
