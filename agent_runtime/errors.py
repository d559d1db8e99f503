"""
Everything this package raises, and what a caller is told.

    AgentRuntimeError
    ├── SettingsInvalid                    a variable or flag is wrong; exit code 2
    ├── CannotStart                        the supervisor cannot run here; exit code 3
    ├── SecretUnreadable                   the secret file holds nothing that can be used
    ├── SpawnFailed                 500    the operating system would not start the CLI
    ├── StoreUnavailable            500    the disk does not give or take a record
    ├── RequestRefused                     the caller's request is at fault
    │   ├── InvalidRequest          400    a field is missing, of the wrong type, or out of range
    │   ├── AccessDenied            401    no or a wrong access key
    │   ├── NotFound                404    unknown id or path
    │   ├── MethodNotAllowed        405
    │   ├── Conflict                409    another body under a known id
    │   │   └── SessionUnknown      409    the CLI does not know the session that the task names
    │   ├── NotWritable             409    the secret file cannot be written from here
    │   └── TooLarge                413
    ├── AdmissionError                     turned away before anything was spawned
    │   ├── Busy                    409    slots and queue are full; retry here later
    │   ├── Draining                409    this container is going away; retry elsewhere
    │   ├── MayHaveRun              409    the record of this execution cannot be read; retry here later
    │   ├── NoToken                 500    no token file, or none that can be used
    │   ├── TokenUnusable           503    the API refused this generation, its account is blocked, or it expired
    │   ├── TokenUnpaid             503    the account cannot pay
    │   └── TokenLimited            429    a usage limit of the account lasts
    └── IllegalTransition           500    a bug in this package, never the caller's fault

What an *execution* ends with is no exception but an :class:`ErrorClass` in its record; both meet in
:data:`STATUS_BY_CLASS`, the one place that says which HTTP status a class has.

Backends switch the agent's subscription on 429 and 503 and on words such as "401" or "oauth" in an error text, so those
are kept for confirmed refusals: see :data:`RESERVED_WORDS`.
"""

from __future__ import annotations

import re
from enum import StrEnum


class ErrorClass(StrEnum):
    """What went wrong, in the words of the HTTP interface."""

    AUTH = "auth"
    NO_TOKEN = "no_token"
    BILLING = "billing"
    RATE_LIMIT = "rate_limit"
    OVERLOADED = "overloaded"
    UPSTREAM = "upstream"
    NETWORK = "network"
    LOST_RESULT = "lost_result"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    MAX_TURNS = "max_turns"
    MAX_OUTPUT = "max_output"
    MAX_BUDGET = "max_budget"
    SCHEMA = "schema"
    MODEL = "model"
    INVALID_REQUEST = "invalid_request"
    SIGNAL = "signal"
    OOM = "oom"
    SPAWN = "spawn"
    INTERRUPTED = "interrupted"
    ERROR = "error"
    BUSY = "busy"
    DRAINING = "draining"
    ACCESS = "access"
    NOT_FOUND = "not_found"
    METHOD = "method"
    TOO_LARGE = "too_large"
    CONFLICT = "conflict"
    STORAGE = "storage"
    NOT_WRITABLE = "not_writable"
    CANCELLED = "cancelled"


STATUS_BY_CLASS: dict[ErrorClass, int] = {
    ErrorClass.AUTH: 503,
    ErrorClass.NO_TOKEN: 500,
    ErrorClass.BILLING: 503,
    ErrorClass.RATE_LIMIT: 429,
    ErrorClass.OVERLOADED: 502,
    ErrorClass.UPSTREAM: 502,
    ErrorClass.NETWORK: 502,
    ErrorClass.LOST_RESULT: 502,
    ErrorClass.TIMEOUT: 504,
    ErrorClass.STALLED: 504,
    ErrorClass.MAX_TURNS: 422,
    ErrorClass.MAX_OUTPUT: 422,
    ErrorClass.MAX_BUDGET: 422,
    ErrorClass.SCHEMA: 422,
    ErrorClass.MODEL: 400,
    ErrorClass.INVALID_REQUEST: 400,
    ErrorClass.SIGNAL: 500,
    ErrorClass.OOM: 500,
    ErrorClass.SPAWN: 500,
    ErrorClass.INTERRUPTED: 500,
    ErrorClass.ERROR: 500,
    ErrorClass.BUSY: 409,
    ErrorClass.DRAINING: 409,
    ErrorClass.ACCESS: 401,
    ErrorClass.NOT_FOUND: 404,
    ErrorClass.METHOD: 405,
    ErrorClass.TOO_LARGE: 413,
    ErrorClass.CONFLICT: 409,
    ErrorClass.STORAGE: 409,  # of a POST; elsewhere UNREADABLE_STATUS
    ErrorClass.NOT_WRITABLE: 409,
    ErrorClass.CANCELLED: 200,
}

UNREADABLE_STATUS = 500
"""Of ``storage`` where a record was asked for: it is not known whether there is one, and nothing was turned away."""

RESERVED_WORDS = (
    "401",
    "403",
    "429",
    "oauth",
    "unauthorized",
    "forbidden",
    "credential",
    "credit balance",
    "authenticat",
    "token expired",
)
"""
Words (lower case) a backend reads as "switch the token": no error text of another class may contain them.

Source: the rules of Abilityai/trinity's backend, 2026, which also has longer forms of these words; "429" is ours.
"""


SWITCHING_CLASSES = frozenset({ErrorClass.AUTH, ErrorClass.BILLING, ErrorClass.RATE_LIMIT})
"""Those that another token can cure, and whose texts may say so."""

_RESERVED = re.compile("|".join(map(re.escape, RESERVED_WORDS)), re.IGNORECASE)


def is_reserved(text: str) -> bool:
    """Whether a backend would take *text* for a reason to switch the token."""
    lowered = text.lower()
    return any(word in lowered for word in RESERVED_WORDS)


def plain_detail(error_class: ErrorClass, text: str) -> str:
    """
    Return *text* as an error of this class may say it.

    What other programs say, and the names of files and users, may hold reserved words by chance.
    """
    if error_class in SWITCHING_CLASSES or not is_reserved(text):
        return text
    masked = _RESERVED.sub("\N{HORIZONTAL ELLIPSIS}", text)
    return "its text cannot be shown; the log says more" if is_reserved(masked) else masked


class AgentRuntimeError(Exception):
    """
    Base of everything this package raises; the message is safe to show to a caller.

    Attributes:
        code: What else programs may tell it by, beside its class.
    """

    error_class: ErrorClass = ErrorClass.ERROR
    code: str | None = None

    @property
    def status(self) -> int:
        """The HTTP status the caller is told."""
        return STATUS_BY_CLASS[self.error_class]


class SettingsInvalid(AgentRuntimeError):
    """A variable or flag has a value that cannot be used; the message names the variable."""


class CannotStart(AgentRuntimeError):
    """The supervisor cannot run here: the port is taken, a directory is locked, and the like."""


class SecretUnreadable(AgentRuntimeError):
    """The secret file holds nothing that can be used; the message says why, never what it holds."""

    error_class = ErrorClass.NO_TOKEN


class SpawnFailed(AgentRuntimeError):
    """The operating system would not start the CLI; the message names the cause."""

    error_class = ErrorClass.SPAWN


class StoreUnavailable(AgentRuntimeError):
    """The disk does not give or take a record; what cannot be read is not unknown."""

    error_class = ErrorClass.STORAGE

    @property
    def status(self) -> int:
        """Not that of a task that is turned away."""
        return UNREADABLE_STATUS


class RequestRefused(AgentRuntimeError):
    """The caller's request is at fault; sending it again unchanged gets the same answer."""


class InvalidRequest(RequestRefused):
    """A field is missing, of the wrong type or out of range; the message names it."""

    error_class = ErrorClass.INVALID_REQUEST


class AccessDenied(RequestRefused):
    """No access key, or a wrong one."""

    error_class = ErrorClass.ACCESS


class NotFound(RequestRefused):
    """Nothing is known under this id or path."""

    error_class = ErrorClass.NOT_FOUND

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class MethodNotAllowed(RequestRefused):
    """The path exists, the method does not."""

    error_class = ErrorClass.METHOD


class Conflict(RequestRefused):
    """Another body was sent under a known execution id."""

    error_class = ErrorClass.CONFLICT


class SessionUnknown(Conflict):
    """The CLI knows no session of the id that the task names."""

    code = "session_unknown"


class NotWritable(RequestRefused):
    """The secret file cannot be written from inside this container."""

    error_class = ErrorClass.NOT_WRITABLE


class TooLarge(RequestRefused):
    """The request body is longer than is accepted."""

    error_class = ErrorClass.TOO_LARGE


class AdmissionError(AgentRuntimeError):
    """
    Turned away before anything was spawned.

    Attributes:
        retry_after_seconds: When it is worth asking again; None: not known.
        token_generation: The one in use, where it is the reason.
    """

    def __init__(
        self, message: str, *, retry_after_seconds: int | None = None, token_generation: int | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.token_generation = token_generation


class Busy(AdmissionError):
    """Slots and queue are full; retry here later."""

    error_class = ErrorClass.BUSY


class Draining(AdmissionError):
    """This container is going away; retry elsewhere."""

    error_class = ErrorClass.DRAINING


class MayHaveRun(AdmissionError):
    """What is known of this id cannot be read, so the task may have run already."""

    error_class = ErrorClass.STORAGE


class NoToken(AdmissionError):
    """There is no token file, or none that can be used."""

    error_class = ErrorClass.NO_TOKEN


class TokenUnusable(AdmissionError):
    """The API refused this generation, its account is blocked, or it expired."""

    error_class = ErrorClass.AUTH


class TokenUnpaid(AdmissionError):
    """The account cannot pay: no credit, a spent budget."""

    error_class = ErrorClass.BILLING


class TokenLimited(AdmissionError):
    """
    A usage limit of the account lasts.

    Attributes:
        resets_at: When it ends, epoch seconds, where the API said so.
    """

    error_class = ErrorClass.RATE_LIMIT

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: int | None,
        resets_at: float | None = None,
        token_generation: int | None = None,
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds, token_generation=token_generation)
        self.resets_at = resets_at


class IllegalTransition(AgentRuntimeError):
    """A bug in this package, never the caller's fault."""
