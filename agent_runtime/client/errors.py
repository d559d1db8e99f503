"""
The errors of the client: one class for each way to react, each error with the ``error_class`` of the supervisor.

    ClientError
    ├── TokenFailed      another token cures it: auth, billing, rate_limit, no_token
    ├── TurnedAway       nothing was started; ask again later: busy, draining, storage
    ├── RequestRefused   the same request gets the same answer: invalid_request, model, access, not_found, method,
    │                    too_large, conflict, not_writable
    ├── ApiFailed        the API, or the way to it, failed; later it may work: overloaded, upstream, network
    ├── ExecutionFailed  the execution ended without success: timeout, stalled, max_turns, max_output, max_budget,
    │                    schema, lost_result, signal, oom, spawn, interrupted, error
    └── Unreachable      no supervisor answered; an admitted execution goes on: unreachable, deadline, unexpected

A cancelled execution is an answer with the status ``cancelled``, no error.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

import msgspec

from agent_runtime.errors import AgentRuntimeError


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """
    A problem document (RFC 9457) as far as it could be read, or the client's own words in the same form.

    Attributes:
        error_class: As it was sent; a newer supervisor may know classes that this version does not.
        status: The HTTP status; 0: no answer came.
        code: More specific than the class: ``no_retained_result`` (``not_found``: the execution has ended, its answer
            is not stored), ``session_unknown`` (``conflict``), ``not_sent`` (``unreachable``: nothing has arrived).
        resets_at: When the usage limit ends, RFC 3339.
    """

    error_class: str = "error"
    status: int = 0
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
    """
    Base of the errors that a client raises.

    Attributes:
        error_class: As in the problem.
        retry_after_seconds: After what time to ask again; None: the answer did not say.
    """

    error_class: str  # type: ignore[assignment] # a newer supervisor may send one that is not in the enum

    def __init__(self, problem: Problem, retry_after_seconds: float | None = None) -> None:
        super().__init__(problem, retry_after_seconds)  # all arguments, so that a queue of jobs can pickle it
        self.problem = problem
        self.error_class = problem.error_class
        self.retry_after_seconds = retry_after_seconds

    @classmethod
    def because(cls, error_class: str, detail: str, *, status: int = 0, code: str | None = None) -> Self:
        """Build an error that the client itself found, without a supervisor's problem document."""
        return cls(Problem(error_class=error_class, detail=detail, status=status, code=code))

    def about(self, execution_id: str) -> Self:
        """Return the same error with the id of the execution it is about."""
        return type(self)(msgspec.structs.replace(self.problem, execution_id=execution_id), self.retry_after_seconds)

    def __str__(self) -> str:
        return self.problem.detail or self.problem.title or self.error_class

    @property
    def status(self) -> int:
        """The HTTP status of the answer; 0: no answer came."""
        return self.problem.status

    @property
    def execution_id(self) -> str | None:
        """The id of the execution that the error is about; None: no execution can have been admitted."""
        return self.problem.execution_id

    @property
    def generation(self) -> int | None:
        """The number of the token's generation; None: not known."""
        return self.problem.token_generation

    @property
    def resets_at(self) -> datetime | None:
        """When the usage limit ends; None: not known."""
        try:
            return datetime.fromisoformat(self.problem.resets_at or "")
        except ValueError:
            return None


class TokenFailed(ClientError):
    """The token is refused, unpaid, at its limit, or missing: write another token, and ask again."""


class TurnedAway(ClientError):
    """Nothing was started: ask again later."""


class RequestRefused(ClientError):
    """The request is at fault; sending it again unchanged gets the same answer."""


class ApiFailed(ClientError):
    """The API, or the way to it, failed; later it may work."""


class ExecutionFailed(ClientError):
    """The execution ended without success."""


class Unreachable(ClientError):
    """No supervisor answered in time; an execution that was admitted goes on, and its answer will be stored."""


_CLASSES: dict[type[ClientError], str] = {
    TokenFailed: "auth billing rate_limit no_token",
    TurnedAway: "busy draining storage",
    RequestRefused: "invalid_request model access not_found method too_large conflict not_writable",
    ApiFailed: "overloaded upstream network",
    ExecutionFailed: "timeout stalled max_turns max_output max_budget schema lost_result signal oom spawn interrupted "
    "error",
}
FAMILIES = {name: family for family, names in _CLASSES.items() for name in names.split()}
"""The family of each ``error_class`` that a supervisor sends."""

_BY_STATUS = {422: ExecutionFailed, 429: TokenFailed, 502: ApiFailed, 503: TokenFailed}
"""The family of an unknown ``error_class``, by status; supervisors use 429 and 503 only for the token."""


def failure(problem: Problem, retry_after_seconds: float | None = None) -> ClientError:
    """Build the client's error from a problem document."""
    family = FAMILIES.get(problem.error_class) or _BY_STATUS.get(problem.status)
    if family is None and problem.status < 500:
        family = RequestRefused if retry_after_seconds is None else TurnedAway
    return (family or ExecutionFailed)(problem, retry_after_seconds)
