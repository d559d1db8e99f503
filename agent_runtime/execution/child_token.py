"""Which token a running child has, and which one its API errors are about."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from agent_runtime.delivery.held_tokens import HeldGenerations
from agent_runtime.execution.attempt_data import Answered, AttemptEvent, Reached
from agent_runtime.model.state import TokenTrouble

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.delivery.delivery import Delivered, HeldRequest
    from agent_runtime.evidence.detector import Detection
    from agent_runtime.secret.file import SecretFile
    from agent_runtime.secret.generations import Generation


class ChildToken:
    """
    Follow which generations a spawned child has, and which one each API error is about.

    Attributes:
        charged: The generation that the last API error is held against; before any, the one delivered at the spawn.
    """

    def __init__(
        self, delivered: Delivered, delivered_at: float, secret: SecretFile, publish: Callable[[AttemptEvent], object]
    ) -> None:
        self.charged = delivered.generation
        self._held = HeldGenerations(delivered, delivered_at)
        self._secret = secret
        self._publish = publish
        self._answered = 0

    @property
    def newest(self) -> Generation:
        """The newest generation the child has."""
        return self._held.newest

    @property
    def in_use(self) -> Generation:
        """The generation in the request that the model begins to answer now."""
        return self._held.in_use

    def follow_secret(self) -> None:
        """
        Check whether the secret file's generation has reached the child; publish :class:`Reached` if it newly has.

        Called from any thread. A CLI that reads its file after a refusal only is followed by :meth:`charge`.
        """
        if (loaded := self._secret.status.generation) is not None:
            self._reached(self._held.record_loaded(loaded, time.monotonic()))

    def record_answer(self, read_at: float) -> None:
        """Publish, once for each generation, that the API has answered a request that carried it."""
        self._held.record_answer()
        generation, since = self._held.carried_at(read_at)
        if generation.number != self._answered:
            self._answered = generation.number
            self._publish(Answered(generation, since))

    def charge(self, detection: Detection, read_at: float) -> Detection | None:
        """Charge an API error to a generation; return the error if it has to end the attempt."""
        if detection.is_evidence and self._held.can_be_reached:
            # Otherwise a newer token that was written just now, and is not noticed yet, would cost the attempt.
            self._secret.poll()
        self.follow_secret()
        if _is_repeated(detection):
            self._reached(self._held.record_refusal(time.monotonic()))
        self.charged, _ = self._held.carried_at(read_at)
        if not detection.is_evidence:
            return None
        if self._held.is_suspect:
            # It is not known which of two generations was refused: the next attempt finds out.
            detection = replace(detection, condemns=False)
        if not detection.is_final and self._held.newest is not self.charged:
            return None  # the CLI's own retry carries the newer token, and decides
        return detection

    def can_recover(self, detection: Detection) -> bool:
        """Whether the child repeats its request by itself, and would do so with a newer token if one were loaded."""
        loaded = self._secret.status.generation
        is_newest = loaded is None or loaded.number <= self._held.newest.number
        return _is_repeated(detection) and not detection.is_final and self._held.rereads and is_newest

    def _reached(self, generation: Generation | None) -> None:
        if generation is not None:
            self._publish(Reached(generation, time.time()))


class RepeatedRequest(msgspec.Struct, eq=False):
    """
    A refused request that the CLI repeats by itself, with a newer token as soon as that is in its file.

    It is held like a request at the relay, see :class:`~agent_runtime.delivery.delivery.HeldRequest`, but a release
    only ends the wait: nothing can keep the CLI from repeating the request.

    Attributes:
        body: The line that reports the refusal.
        on_end: Called once, from the thread that ends the wait.
    """

    detection: Detection
    body: bytes
    generation: Generation
    on_end: Callable[[HeldRequest], None]
    limit_seconds: float = math.inf  # the CLI gives up by itself, and reports it
    is_over: bool = False

    def release(self, *, replays: bool) -> None:  # noqa: ARG002 - the CLI decides
        """End the wait."""
        if not self.is_over:
            self.is_over = True
            self.on_end(self)


def _is_repeated(detection: Detection) -> bool:
    """Whether older CLIs repeat the request after such an error, with the token that is then in their file."""
    return detection.trouble is TokenTrouble.REFUSED and detection.status in {401, None}
