"""
What a client raises: one class for each ``error_class``, in families that a backend treats alike.

    ClientError
    ├── Unreachable                 nobody answered; the execution, if it was admitted, goes on
    ├── DeadlineExceeded            the caller's own time is over; the execution goes on
    ├── UnexpectedAnswer            somebody answered who is no supervisor
    └── ProblemError                a supervisor said no, and why: ``problem``
        ├── TokenFailed             another token can cure it
        │   ├── AuthFailed          auth: the API refused the token, or it expired
        │   ├── BillingExhausted    billing
        │   └── RateLimited         rate_limit: a usage limit of the account; ``resets_at``
        ├── NoToken                 no_token: nothing in the secret file that can be used
        ├── ApiFailed               later it may work
        │   ├── Overloaded          overloaded
        │   ├── UpstreamFailed      upstream
        │   └── NetworkFailed       network
        ├── ExecutionFailed         error, and a class that this version does not know
        │   ├── TimedOut            timeout
        │   │   └── Stalled         stalled
        │   ├── TooManyTurns        max_turns
        │   ├── OutputTooLong       max_output
        │   ├── LostResult          lost_result
        │   ├── Killed              signal
        │   │   └── OutOfMemory     oom
        │   ├── SpawnFailed         spawn
        │   └── Interrupted         interrupted: ended by a shutdown; the same id resumes it
        ├── TurnedAway              nothing was started
        │   ├── Busy                busy
        │   └── Draining            draining
        └── RequestRefused          the same request gets the same answer
            ├── InvalidRequest      invalid_request
            │   └── ModelUnusable   model
            ├── AccessDenied        access
            ├── NotFound            not_found
            │   └── ResultNotKept   not_found, code no_retained_result: it has ended, its answer is gone
            ├── MethodNotAllowed    method
            ├── TooLarge            too_large
            ├── Conflict            conflict: other work under this id
            └── NotWritable         not_writable

A cancelled execution is no failure: it is an answer, with the status ``cancelled``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from agent_runtime.errors import AgentRuntimeError, ErrorClass

NO_RETAINED_RESULT = "no_retained_result"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """
    A body of ``application/problem+json``, as far as it could be read.

    Attributes:
        error_class: As it was sent; a newer supervisor may know classes that this version does not.
        resets_at: RFC 3339.
    """

    error_class: str
    status: int
    type: str | None = None
    title: str | None = None
    detail: str | None = None
    code: str | None = None
    execution_id: str | None = None
    metadata: dict[str, Any] | None = None
    token_generation: int | None = None
    token_stale: bool | None = None
    resets_at: str | None = None


class ClientError(AgentRuntimeError):
    """Base of everything a client raises."""


class Unreachable(ClientError):
    """
    Nobody answered for as long as the client was told to try.

    Attributes:
        execution_id: To ask for later: it may have been admitted. None where no execution was asked for.
    """

    def __init__(self, reason: str, execution_id: str | None = None) -> None:
        super().__init__(reason, execution_id)
        self.reason = reason
        self.execution_id = execution_id

    def __str__(self) -> str:
        return f"the supervisor cannot be reached: {self.reason}"


class DeadlineExceeded(ClientError):
    """
    The time the caller gave is over; the execution goes on, and its answer will be kept.

    Attributes:
        execution_id: To ask for later.
    """

    def __init__(self, execution_id: str) -> None:
        super().__init__(execution_id)
        self.execution_id = execution_id

    def __str__(self) -> str:
        return "the deadline of the call is over; the execution goes on"


class UnexpectedAnswer(ClientError):
    """What answered is no supervisor, or one that does not speak this interface."""

    def __init__(self, status_code: int, path: str) -> None:
        super().__init__(status_code, path)
        self.status_code = status_code
        self.path = path

    def __str__(self) -> str:
        return f"{self.path} was answered with {self.status_code}, but not as a supervisor does"


class ProblemError(ClientError):
    """
    A supervisor said no, and why.

    Attributes:
        retry_after_seconds: When it is worth asking again, where the answer said so.
    """

    def __init__(self, problem: Problem, retry_after_seconds: float | None = None) -> None:
        # All arguments, so that a queue of jobs can pickle it.
        super().__init__(problem, retry_after_seconds)
        self.problem = problem
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return self.problem.detail or self.problem.title or self.problem.error_class

    @property
    def status(self) -> int:
        """The HTTP status it came with."""
        return self.problem.status

    @property
    def execution_id(self) -> str | None:
        """The execution it is about, where one was admitted."""
        return self.problem.execution_id


class TokenFailed(ProblemError):
    """Another token can cure it: write one, and ask again."""


class AuthFailed(TokenFailed):
    """The API refused the token, or it expired."""

    error_class = ErrorClass.AUTH


class BillingExhausted(TokenFailed):
    """The account's credit is used up."""

    error_class = ErrorClass.BILLING


class RateLimited(TokenFailed):
    """A usage limit of the account lasts."""

    error_class = ErrorClass.RATE_LIMIT

    @property
    def resets_at(self) -> datetime | None:
        """When it ends, where the API said so."""
        try:
            return datetime.fromisoformat(self.problem.resets_at or "")
        except ValueError:
            return None


class NoToken(ProblemError):
    """There is nothing in the secret file that can be used."""

    error_class = ErrorClass.NO_TOKEN


class ApiFailed(ProblemError):
    """The API, or the way to it, failed; later it may work."""


class Overloaded(ApiFailed):
    """The API is overloaded, or throttles."""

    error_class = ErrorClass.OVERLOADED


class UpstreamFailed(ApiFailed):
    """The API answered with an error of its own."""

    error_class = ErrorClass.UPSTREAM


class NetworkFailed(ApiFailed):
    """The API could not be reached."""

    error_class = ErrorClass.NETWORK


class ExecutionFailed(ProblemError):
    """The execution ended without success."""


class TimedOut(ExecutionFailed):
    """Its total time was over."""

    error_class = ErrorClass.TIMEOUT


class Stalled(TimedOut):
    """It gave no sign of life for too long."""

    error_class = ErrorClass.STALLED


class TooManyTurns(ExecutionFailed):
    """It took more turns than it was allowed."""

    error_class = ErrorClass.MAX_TURNS


class OutputTooLong(ExecutionFailed):
    """The model wrote up to its limit before it was done."""

    error_class = ErrorClass.MAX_OUTPUT


class LostResult(ExecutionFailed):
    """The CLI ended without a result."""

    error_class = ErrorClass.LOST_RESULT


class Killed(ExecutionFailed):
    """A signal from elsewhere ended the CLI."""

    error_class = ErrorClass.SIGNAL


class OutOfMemory(Killed):
    """The kernel ended the CLI for want of memory."""

    error_class = ErrorClass.OOM


class SpawnFailed(ExecutionFailed):
    """The CLI could not be started."""

    error_class = ErrorClass.SPAWN


class Interrupted(ExecutionFailed):
    """A shutdown ended it; the same id resumes it."""

    error_class = ErrorClass.INTERRUPTED


class TurnedAway(ProblemError):
    """Nothing was started."""


class Busy(TurnedAway):
    """Slots and queue are full; retry here later."""

    error_class = ErrorClass.BUSY


class Draining(TurnedAway):
    """This supervisor is going away; retry elsewhere, or here when it is back."""

    error_class = ErrorClass.DRAINING


class RequestRefused(ProblemError):
    """The request is at fault; sending it again unchanged gets the same answer."""


class InvalidRequest(RequestRefused):
    """A field cannot be used."""

    error_class = ErrorClass.INVALID_REQUEST


class ModelUnusable(InvalidRequest):
    """The model is unknown, or not for this account."""

    error_class = ErrorClass.MODEL


class AccessDenied(RequestRefused):
    """No access key, or a wrong one."""

    error_class = ErrorClass.ACCESS


class NotFound(RequestRefused):
    """Nothing is known under this id."""

    error_class = ErrorClass.NOT_FOUND


class ResultNotKept(NotFound):
    """The execution has ended, but its answer is not kept."""


class MethodNotAllowed(RequestRefused):
    """The supervisor does not know this call: most likely it is older than this client."""

    error_class = ErrorClass.METHOD


class TooLarge(RequestRefused):
    """The request is longer than is accepted."""

    error_class = ErrorClass.TOO_LARGE


class Conflict(RequestRefused):
    """The id is known for other work."""

    error_class = ErrorClass.CONFLICT


class NotWritable(RequestRefused):
    """The secret file cannot be written from where the supervisor is."""

    error_class = ErrorClass.NOT_WRITABLE


def _leaves(family: type[ProblemError]) -> list[type[ProblemError]]:
    """List a class and all that are derived from it."""
    return [family, *(leaf for child in family.__subclasses__() for leaf in _leaves(child))]


FAILURES: dict[str, type[ProblemError]] = {
    str(leaf.error_class): leaf for leaf in reversed(_leaves(ProblemError)) if "error_class" in vars(leaf)
} | {str(ErrorClass.ERROR): ExecutionFailed}
"""The exception for each ``error_class``."""


def failure(problem: Problem, retry_after_seconds: float | None = None) -> ProblemError:
    """Choose the exception that says what *problem* says."""
    if problem.code == NO_RETAINED_RESULT:
        return ResultNotKept(problem, retry_after_seconds)
    return FAILURES.get(problem.error_class, ExecutionFailed)(problem, retry_after_seconds)
