"""
What a client says and hears, apart from how it is carried: no I/O here, so that one logic serves two clients.

A call is a generator: it yields an :class:`Ask` or a :class:`Pause`, is sent what came of it, and returns its result or
raises. Who drives it (:mod:`~agent_runtime.client.asynchronous`, :mod:`~agent_runtime.client.synchronous`) decides
nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from agent_runtime.client.failures import Problem, UnexpectedAnswer, Unreachable, failure

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
LONGEST_RETRY_AFTER_SECONDS = 3600.0
REPLY_SECONDS = 15.0
PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What proxies say, and servers that go down, when it is not about the request. Supervisors say it as a problem."""

QUICK_TRIES = 3


@dataclass(frozen=True, slots=True)
class Ask:
    """
    A request to send.

    Attributes:
        reply_seconds: How long nothing may come before it counts as not answered.
    """

    method: str
    path: str
    content: bytes | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    reply_seconds: float = REPLY_SECONDS


@dataclass(frozen=True, slots=True)
class Pause:
    """A time to let pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """
    A complete answer.

    Attributes:
        headers: By lower-case name.
    """

    status_code: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def retry_after_seconds(self) -> float | None:
        """When it is worth asking again, if it says so in seconds."""
        value = self.headers.get("retry-after", "").strip()
        if value.isascii() and value.isdigit():
            return min(float(value[:9]), LONGEST_RETRY_AFTER_SECONDS)
        return None


@dataclass(frozen=True, slots=True)
class NoReply:
    """
    No complete answer came.

    Attributes:
        reason: For a person; never holds what was sent.
        was_sent: Whether the request may have arrived.
    """

    reason: str
    was_sent: bool = True


Talk = Generator[Ask | Pause, Reply | NoReply | None, T]


def ask(request: Ask) -> Talk[Reply | NoReply]:
    """Send *request* and return what came of it."""
    heard = yield request
    return NoReply("nothing was heard") if heard is None else heard


def problem_in(reply: Reply) -> Problem | None:
    """Read the supervisor's own words from an answer; None: it is not from a supervisor."""
    content = json_object(reply.body)
    if reply.status_code < 400 or content is None or not isinstance(content.get("error_class"), str):
        return None
    return problem_of(content, reply.status_code)


def problem_of(content: dict[str, Any], status_code: int) -> Problem:
    """Read a problem field by field: one that has another type than was agreed costs only itself."""
    if isinstance(detail := content.get("detail"), dict):  # AGENT_RUNTIME_ERROR_DETAIL=object
        content = {**content, "detail": detail.get("message")}
    known: dict[str, Any] = {}
    for spec in msgspec.structs.fields(Problem):
        try:
            known[spec.name] = msgspec.convert(content[spec.name], spec.type)
        except (KeyError, msgspec.ValidationError):
            continue
    return Problem(**{"error_class": "error", **known, "status": status_code})


def json_object(body: bytes) -> dict[str, Any] | None:
    """Read a JSON object; None: it is none."""
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def as_failure(reply: Reply, path: str) -> Exception | None:
    """
    Tell what an answer that is no success means.

    Returns:
        The exception to raise; None: it is nothing that lasts, so ask again.
    """
    if (problem := problem_in(reply)) is not None:
        return failure(problem, reply.retry_after_seconds)
    if reply.status_code in PASSING_STATUSES:
        return None
    return UnexpectedAnswer(reply.status_code, path)


class Patience:
    """
    Tell how long to pause before the next try, and when to give up.

    Pauses grow from try to try and are never the same for two clients, so that a supervisor that comes back is not met
    by all of them at once.

    Args:
        clock: Monotonic seconds.
        chance: From 0 to 1, another each time.
        trouble_seconds: How long it may go on without progress.
        total_seconds: How long it may take in all.
    """

    def __init__(
        self, clock: Callable[[], float], chance: Callable[[], float], trouble_seconds: float, total_seconds: float
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._trouble_seconds = trouble_seconds
        self._total_until = clock() + total_seconds
        self._trouble_until: float | None = None
        self._tries = 0
        self._waits = 0

    @property
    def left_seconds(self) -> float:
        """How much is left of the whole time; 0: none."""
        return max(0.0, self._total_until - self._clock())

    def reply_seconds(self, longest_seconds: float) -> float:
        """Tell how long a reply may take: not longer than there is time."""
        return max(0.001, min(longest_seconds, self.left_seconds))

    def progressed(self) -> None:
        """Note that all is well: trouble begins anew."""
        self._trouble_until = None
        self._tries = 0

    def pause_seconds(self, retry_after_seconds: float | None = None) -> float | None:
        """Tell how long to pause after trouble; None: it has lasted too long. The last pause is cut to fit."""
        now = self._clock()
        if self._trouble_until is None:
            self._trouble_until = now + self._trouble_seconds
        left = min(self._trouble_until, self._total_until) - now
        if left <= 0:
            return None
        growing: float = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(self._tries, 16))
        self._tries += 1
        return min(left, max(retry_after_seconds or 0.0, growing * (0.5 + self._chance() / 2)))

    def wait_seconds(self, longest_seconds: float) -> float:
        """Tell how long to wait before asking again for something that is under way."""
        growing: float = min(longest_seconds, FIRST_PAUSE_SECONDS * 1.3 ** min(self._waits, 64))
        self._waits += 1
        return min(self.left_seconds, growing)


def call(request: Ask) -> Talk[dict[str, Any]]:
    """
    Ask something that may be asked twice, a few times if need be, and return the JSON object it is answered with.

    Raises:
        ProblemError: The supervisor says no.
        UnexpectedAnswer: It is not a supervisor that answers.
        Unreachable: Nobody does.
    """
    reason = ""
    for number in range(QUICK_TRIES):
        if number:
            yield Pause(FIRST_PAUSE_SECONDS * number)
        heard = yield from ask(request)
        if isinstance(heard, NoReply):
            reason = heard.reason
            continue
        if heard.status_code < 300:
            content = json_object(heard.body)
            if content is not None:
                return content
            reason = "its answer cannot be read"
            continue
        error = as_failure(heard, request.path)
        if error is not None:
            raise error
        reason = f"it is answered with {heard.status_code}"
    raise Unreachable(reason)
