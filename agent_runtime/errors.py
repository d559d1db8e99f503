"""
The exceptions of this package, and the error classes that callers see.

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

An *execution* ends with no exception but with an :class:`ErrorClass` in its record. That class is the one table of
statuses, titles and sentences.

Backends switch the agent's subscription on 429 and 503 and on words such as "401" or "oauth" in an error text, so those
are reserved for confirmed refusals: see :data:`RESERVED_WORDS`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple, Self

GO_ON = "send the same execution_id again to go on"


class _Traits(NamedTuple):
    ends_execution: bool = True
    cured_by_token: bool = False
    retry_seconds: int | None = None


_USUAL = _Traits()
_CURED_BY_TOKEN = _Traits(cured_by_token=True)
_RETRIED = _Traits(retry_seconds=30)
_REFUSAL = _Traits(ends_execution=False)
_REFUSED_FOR_NOW = _Traits(ends_execution=False, retry_seconds=5)


class ErrorClass(StrEnum):
    """
    What went wrong, in the words of the HTTP interface: one row each.

    Attributes:
        status: The HTTP status.
        heading: The title of the problem.
        sentence: Its usual detail: the fact, and after a semicolon what to do.
        ends_execution: An execution can fail with it.
        cured_by_token: Another token cures it, and its texts may say so.
        retry_seconds: When a task that failed or was turned away with it is worth sending again; None: not known.
    """

    status: int
    heading: str
    sentence: str
    ends_execution: bool
    cured_by_token: bool
    retry_seconds: int | None

    def __new__(  # noqa: D102 - the columns of a row
        cls, value: str, status: int = 500, heading: str = "", sentence: str = "", traits: _Traits = _USUAL
    ) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.status, member.heading, member.sentence = status, heading, sentence
        member.ends_execution, member.cured_by_token, member.retry_seconds = traits
        return member

    # fmt: off
    AUTH = ("auth", 503, "The API refused the token",
        "the API refused the token (401 or a revoked credential); write a new one to the secret file", _CURED_BY_TOKEN)
    NO_TOKEN = ("no_token", 500, "No usable token",
        "there is no usable token; write one to the secret file")
    BILLING = ("billing", 503, "Credit exhausted",
        "the account's credit balance is exhausted; switch to another subscription or add funds", _CURED_BY_TOKEN)
    RATE_LIMIT = ("rate_limit", 429, "Usage limit reached",
        "the account's usage limit is reached; write another account's token, or wait for the reset", _CURED_BY_TOKEN)
    OVERLOADED = ("overloaded", 502, "API overloaded",
        "the API is overloaded or throttling; try again later", _RETRIED)
    UPSTREAM = ("upstream", 502, "API failed",
        "the API failed; try again later", _RETRIED)
    NETWORK = ("network", 502, "API not reachable",
        "the API could not be reached; look at the network, the proxy and ANTHROPIC_BASE_URL", _RETRIED)
    LOST_RESULT = ("lost_result", 502, "Result lost",
        f"the CLI ended without a result; {GO_ON}")
    TIMEOUT = ("timeout", 504, "Timed out",
        "the execution took longer than its timeout; give it more with timeout_seconds")
    STALLED = ("stalled", 504, "No progress",
        "there was no sign of life for too long; send it again, or raise the timeout that is named")
    MAX_TURNS = ("max_turns", 422, "Too many turns",
        "the execution took more turns than max_turns allows; raise it, or divide the task")
    MAX_OUTPUT = ("max_output", 422, "Output too long",
        "the model wrote up to its limit; ask for less at once, or send it again to go on")
    MAX_BUDGET = ("max_budget", 422, "Budget spent",
        "the execution spent the budget it was given; raise it, or divide the task")
    SCHEMA = ("schema", 422, "Schema not met",
        "no answer met the schema after several tries; make the schema simpler, or the task clearer")
    MODEL = ("model", 400, "Model not usable",
        "the model is unknown or not supported; name another in the field model")
    INVALID_REQUEST = ("invalid_request", 400, "Invalid request",
        "the API did not accept the request; change the task before it is sent again")
    SIGNAL = ("signal", 500, "Killed by a signal",
        f"the CLI was killed by a signal from elsewhere; {GO_ON}")
    OOM = ("oom", 500, "Out of memory",
        "the CLI or one of its tools ran out of memory; give it more, or run fewer at once")
    SPAWN = ("spawn", 500, "Could not start the CLI",
        "the CLI could not start; run it by hand in this container to see why")
    INTERRUPTED = ("interrupted", 500, "Interrupted by shutdown",
        f"the supervisor was shut down; {GO_ON} with the session")
    ERROR = ("error", 500, "Failed",
        "the CLI reported an error; its stream says more")
    BUSY = ("busy", 409, "Busy",
        "all slots and queue places are taken; send it again later", _REFUSED_FOR_NOW)
    DRAINING = ("draining", 409, "Draining",
        "no new executions are let in here; ask another agent", _REFUSED_FOR_NOW)
    ACCESS = ("access", 401, "Access key needed",
        "no or a wrong access key; send it as a bearer token or in the access header", _REFUSAL)
    NOT_FOUND = ("not_found", 404, "Not found",
        "there is no such execution or path; /openapi.json lists all paths", _REFUSAL)
    METHOD = ("method", 405, "Method not allowed",
        "this path does not take this method; the header Allow names those it takes", _REFUSAL)
    TOO_LARGE = ("too_large", 413, "Too large",
        "the body is too long; send less, or raise AGENT_RUNTIME_BODY_LIMIT", _REFUSAL)
    CONFLICT = ("conflict", 409, "Conflict",
        "this execution_id is known for another body; choose another id", _REFUSAL)
    STORAGE = ("storage", 409, "Record cannot be read",
        "the record store does not work; look at the disk of the data directory", _REFUSED_FOR_NOW)
    NOT_WRITABLE = ("not_writable", 409, "Not writable",
        "the secret file cannot be written from here; write it where it is mounted from", _REFUSAL)
    CANCELLED = ("cancelled", 200, "Cancelled",
        "the execution was cancelled", _REFUSAL)
    # fmt: on


UNREADABLE_STATUS = 500
"""Status of ``storage`` where a caller asked for a record; its row has the status for a task that is turned away."""

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


def is_reserved(text: str) -> bool:
    """Whether a backend would take *text* for a reason to switch the token."""
    lowered = text.lower()
    return any(word in lowered for word in RESERVED_WORDS)


def plain_detail(error_class: ErrorClass, text: str) -> str:
    """
    Return *text* without reserved words, unless the class may use them.

    Texts of other programs, and names of files and users, may hold reserved words by chance.
    """
    if error_class.cured_by_token or not is_reserved(text):
        return text
    masked = re.sub(f"(?i){'|'.join(RESERVED_WORDS)}", "\N{HORIZONTAL ELLIPSIS}", text)
    return "its text cannot be shown; the log says more" if is_reserved(masked) else masked


class AgentRuntimeError(Exception):
    """
    Base of everything this package raises; the message is safe to show to a caller.

    Attributes:
        code: A finer distinction than the error class, for programs; None: there is none.
    """

    error_class: ErrorClass = ErrorClass.ERROR
    code: str | None = None

    @property
    def status(self) -> int:
        """The HTTP status of the answer."""
        return self.error_class.status


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
    """The disk cannot read or write a record; a record that cannot be read is never taken for one that is missing."""

    error_class = ErrorClass.STORAGE

    @property
    def status(self) -> int:
        """The status for a caller who asked for a record."""
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

    NAMED = "no conversation found under the id in resume_session_id; send the task without it to begin a new session"
    """The message where the task itself names the session."""
    OURS = (
        "no conversation found in the session of this execution: the CLI has not kept it; send the same execution_id "
        "again to begin anew"
    )


class NotWritable(RequestRefused):
    """The secret file cannot be written from inside this container."""

    error_class = ErrorClass.NOT_WRITABLE


class TooLarge(RequestRefused):
    """The request body is longer than is accepted."""

    error_class = ErrorClass.TOO_LARGE


class AdmissionError(AgentRuntimeError):
    """
    A task was turned away before anything was spawned for it.

    Attributes:
        retry_after_seconds: When it is worth asking again: by default as its error class says; None: not known.
        resets_at: When a usage limit ends, epoch seconds; None: the API did not say, or it is not the reason.
        token_generation: The generation in use, where it is the reason; else None.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: int | None = None,
        resets_at: float | None = None,
        token_generation: int | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds or self.error_class.retry_seconds
        self.resets_at = resets_at
        self.token_generation = token_generation


class Busy(AdmissionError):
    """Slots and queue are full; retry here later."""

    error_class = ErrorClass.BUSY


class Draining(AdmissionError):
    """This container is going away; retry elsewhere."""

    error_class = ErrorClass.DRAINING


class MayHaveRun(AdmissionError):
    """The record of this id cannot be read, so the task may have run already."""

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
    """A usage limit of the account lasts."""

    error_class = ErrorClass.RATE_LIMIT


class IllegalTransition(AgentRuntimeError):
    """A transition that the table of phases does not have: a bug in this package, never the caller's fault."""
