"""The identity by which an attempt uses the relay; it is valid until the attempt ends."""

from __future__ import annotations

import hashlib
import secrets
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
    The identity of one attempt, shown in its requests; only the relay's own thread changes it, any other may read it.

    The child sends the placeholder as its token. The agent's tools can read the placeholder: it identifies the attempt
    and is no secret.

    Args:
        generation: The generation that the attempt begins with. A later one is used only if its token is of the same
            kind, because the kind decides what else the CLI sends.
        hold_seconds: The attempt's CLI waits at least this long for the first byte of an answer.

    Attributes:
        pid: The CLI's pid, set by the attempt, as the functions are; None: the CLI has not started.
        open_requests: How many requests are being answered.
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
        self._newest = generation
        self._carried = (generation, time.monotonic())

    @property
    def kind(self) -> TokenKind:
        """The kind of token that the attempt can use."""
        return self._newest.token.kind

    def choose(self, current: Generation | None) -> Generation:
        """Return the generation for the next request: *current* if newer and of the same kind, else the last chosen."""
        if current is not None and current.token.kind is self.kind and current.number > self._newest.number:
            self._newest = current
        return self._newest

    def carried(self) -> tuple[Generation, float]:
        """Return the generation of the request that was answered last, and the monotonic time when its use began."""
        return self._carried

    def record_answer(self, generation: Generation) -> None:
        """Record that a request with this generation was answered."""
        if generation.number != self._carried[0].number:
            self._carried = (generation, time.monotonic())


def digest_of(placeholder: str) -> bytes:
    """Return the hash by which an identity is found: comparing texts takes longer, the more of a guess is right."""
    return hashlib.sha256(placeholder.encode("utf-8", "surrogateescape")).digest()
