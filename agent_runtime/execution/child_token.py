"""Which token a running child has, and which one its API errors are about."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from msgspec.structs import replace

from agent_runtime.delivery.delivery import Delivered, HeldRequest
from agent_runtime.delivery.reload_check import ReloadBehaviour
from agent_runtime.evidence.detector import Detection
from agent_runtime.execution.attempt_data import Answered, AttemptEvent, Reached
from agent_runtime.model.state import TokenTrouble
from agent_runtime.secret.file import SecretFile
from agent_runtime.secret.generations import Generation

SETTLED_SECONDS = 1.0
"""For this long after a newer generation reached a child, a refusal may be that of a request with the older one."""


class ChildToken:
    """
    Follow which generations a spawned child has, and which one each API error is about.

    Every method but :meth:`charge` and :meth:`record_answer` may be called from any thread. Times are in monotonic
    seconds.

    Attributes:
        charged: The generation that the last API error is held against; before any, the one delivered at the spawn.
    """

    def __init__(
        self, delivered: Delivered, delivered_at: float, secret: SecretFile, publish: Callable[[AttemptEvent], object]
    ) -> None:
        self.charged = delivered.generation
        self._delivered = delivered
        self._secret = secret
        self._publish = publish
        self._lock = threading.Lock()
        self._held: list[tuple[Generation, float]] = [(delivered.generation, delivered_at)]
        self._waiting: Generation | None = None  # delivered, and not re-read by the child yet
        self._can_receive: Generation | None = None  # delivered, even if it is not known whether the child re-reads
        self._repeats = False  # the CLI repeats a refused request, and re-reads its file for each repetition
        self._answered = 0  # number of the last generation whose answer was published

    @property
    def newest(self) -> Generation:
        """The newest generation the child has."""
        return self._held[-1][0]

    @property
    def in_use(self) -> Generation:
        """The generation in the request that the model begins to answer now; without a relay the newest."""
        relayed = self._delivered.relayed
        return self.newest if relayed is None else relayed.served

    @property
    def is_in_doubt(self) -> bool:
        """Whether the child may have a newer generation than :attr:`newest`, because its behaviour is not known yet."""
        return self._delivered.reload_behaviour() is None and self._can_receive is not None

    def carried_at(self, now: float) -> tuple[Generation, float]:
        """
        Return the generation that a request answered at *now* has carried, and since when the child has had it.

        The generation of the spawn counts from the first request on, a newer one only after :data:`SETTLED_SECONDS`.
        """
        if self._delivered.relayed is not None:
            return self._delivered.relayed.carried()
        for generation, since in reversed(self._held[1:]):
            if since <= now - SETTLED_SECONDS:
                return generation, since
        return self._held[0]

    def follow_secret(self) -> None:
        """
        Check whether the secret file's generation has reached the child; publish :class:`Reached` if it newly has.

        A CLI that reads its file after a refusal only is followed by :meth:`charge`.
        """
        if (loaded := self._secret.status.generation) is not None:
            self.record_loaded(loaded, time.monotonic())

    def record_loaded(self, generation: Generation, now: float) -> None:
        """Record that the supervisor loaded *generation*; publish :class:`Reached` if the child has it from now on."""
        with self._lock:
            if generation.number > self.newest.number and self._delivered.can_receive(generation):
                self._can_receive = generation
            if not self._delivered.is_reached_by(generation):
                return
            if self._waiting is None or generation.number > self._waiting.number:
                self._waiting = generation
        # A CLI that reads again only after a refusal does not have it yet, unless it repeats a refused request.
        if self._repeats or self._delivered.reload_behaviour() is not ReloadBehaviour.ON_REFUSAL:
            self.record_reread(now)

    def record_reread(self, now: float) -> None:
        """Record that the child reads its file again now; publish :class:`Reached` if it finds a newer generation."""
        with self._lock:
            found, self._waiting = self._waiting, None
            if found is None or found.number <= self.newest.number:
                return
            self._held.append((found, now))
            self._publish(Reached(found, time.time()))  # with the lock: the next one must not be published before it

    def record_answer(self, read_at: float) -> None:
        """Publish, once for each generation, that the API has answered a request that carried it."""
        self._repeats = False
        generation, since = self.carried_at(read_at)
        if generation.number != self._answered:
            self._answered = generation.number
            self._publish(Answered(generation, since))

    def charge(self, detection: Detection, read_at: float) -> Detection | None:
        """Charge an API error to a generation; return the error if it has to end the attempt."""
        if detection.rule.is_evidence and self._delivered.reload_behaviour() is not ReloadBehaviour.NEVER:
            # Otherwise a newer token that was written just now, and is not noticed yet, would cost the attempt.
            self._secret.poll()
        self.follow_secret()
        if _is_repeated(detection):
            self._repeats = True
            self.record_reread(time.monotonic())
        self.charged, _ = self.carried_at(read_at)
        if not detection.rule.is_evidence:
            return None
        if self.is_in_doubt:
            # It is not known which of two generations was refused: the next attempt finds out.
            detection = replace(detection, may_condemn=False)
        if not detection.is_final and self.newest is not self.charged:
            return None  # the CLI's own retry carries the newer token, and decides
        return detection

    def can_recover(self, detection: Detection) -> bool:
        """Whether the child repeats its request by itself, and would do so with a newer token if one were loaded."""
        loaded, behaviour = self._secret.status.generation, self._delivered.reload_behaviour()
        is_newest = loaded is None or loaded.number <= self.newest.number
        rereads = behaviour in {ReloadBehaviour.ON_REFUSAL, ReloadBehaviour.ON_REQUEST}
        return _is_repeated(detection) and not detection.is_final and rereads and is_newest


class RepeatedRequest(HeldRequest, kw_only=True):
    """
    A refused request that the CLI repeats by itself, with a newer token as soon as that is in its file.

    It is held like a request at the relay, but a release only ends the wait: nothing can keep the CLI from repeating
    the request. The CLI gives up by itself, and reports it, so the wait has no limit.

    Attributes:
        body: The line that reports the refusal.
        on_end: Called once, from the thread that ends the wait.
    """

    on_end: Callable[[HeldRequest], None]

    def release(self, *, replays: bool) -> None:  # noqa: ARG002 - the CLI decides
        """End the wait."""
        if not self.is_over:
            self.is_over = True
            self.on_end(self)


def _is_repeated(detection: Detection) -> bool:
    """Whether older CLIs repeat the request after such an error, with the token that is then in their file."""
    return detection.rule.trouble is TokenTrouble.REFUSED and detection.status in {401, None}
