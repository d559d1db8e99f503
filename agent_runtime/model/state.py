"""
The states of an execution, of the token, and of the supervisor.

An execution has three enums, because they answer three questions: where is it now, why did the supervisor end it, how
did it end.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from agent_runtime.errors import ErrorClass, IllegalTransition


class Phase(StrEnum):
    """Where an execution is now."""

    QUEUED = "queued"
    RUNNING = "running"
    PARKED = "parked"
    STOPPING = "stopping"
    FINISHED = "finished"


class Step(StrEnum):
    """A step that moves an execution from one phase to the next."""

    SPAWNED = "spawned"
    STOP_REQUESTED = "stop_requested"
    REQUEUED = "requeued"
    PARKED = "parked"
    ENDED = "ended"


TRANSITIONS: dict[Phase, dict[Step, Phase]] = {
    Phase.QUEUED: {Step.SPAWNED: Phase.RUNNING, Step.PARKED: Phase.PARKED, Step.ENDED: Phase.FINISHED},
    Phase.RUNNING: {
        Step.STOP_REQUESTED: Phase.STOPPING,
        Step.REQUEUED: Phase.QUEUED,
        Step.PARKED: Phase.PARKED,
        Step.ENDED: Phase.FINISHED,
    },
    Phase.STOPPING: {Step.REQUEUED: Phase.QUEUED, Step.PARKED: Phase.PARKED, Step.ENDED: Phase.FINISHED},
    Phase.PARKED: {Step.REQUEUED: Phase.QUEUED, Step.ENDED: Phase.FINISHED},
    Phase.FINISHED: {Step.REQUEUED: Phase.QUEUED},
}
"""A pair that is absent is an illegal transition. A finished execution is queued when its id is posted again."""


def transition(phase: Phase, step: Step) -> Phase:
    """
    Return the next phase.

    Raises:
        IllegalTransition: *step* cannot be taken from *phase*.
    """
    try:
        return TRANSITIONS[phase][step]
    except KeyError:
        raise IllegalTransition(f"cannot go on from {phase} by {step}") from None


class StopReason(StrEnum):
    """The reason for which the supervisor ended an attempt; of several reasons the first counts."""

    REFUSED = "refused"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    INIT_TIMEOUT = "init_timeout"
    FIRST_MESSAGE_TIMEOUT = "first_message_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    TOOL_TIMEOUT = "tool_timeout"
    RELAY_TIMEOUT = "relay_timeout"
    PERMISSION_MODE = "permission_mode"
    AGENT_MISSING = "agent_missing"
    SHUTDOWN = "shutdown"
    BACKGROUND_TIMEOUT = "background_timeout"
    LINGERED = "lingered"


class TokenTrouble(StrEnum):
    """A reason for which the API does not serve a token or its account; each is a state of the token."""

    REFUSED = "refused"
    """The credential itself is not accepted."""
    BLOCKED = "blocked"
    """The account is on hold, disabled, or must do something before it may be used."""
    BILLING = "billing"
    """The account cannot pay: no credit, a spent budget."""
    LIMITED = "limited"
    """A usage limit lasts; it ends by itself."""


class TokenState(StrEnum):
    """The state of the token in use, as callers see it."""

    MISSING = "missing"
    INVALID = "invalid"
    READY = "ready"
    SUSPECT = "suspect"
    REFUSED = "refused"
    BLOCKED = "blocked"
    BILLING = "billing"
    LIMITED = "limited"
    EXPIRED = "expired"


CLASS_BY_TROUBLE: dict[TokenTrouble, ErrorClass] = {
    TokenTrouble.REFUSED: ErrorClass.AUTH,
    TokenTrouble.BLOCKED: ErrorClass.AUTH,
    TokenTrouble.BILLING: ErrorClass.BILLING,
    TokenTrouble.LIMITED: ErrorClass.RATE_LIMIT,
}
"""The error class of each trouble of the token."""

TROUBLE_BY_CLASS: dict[ErrorClass, TokenTrouble] = {
    ErrorClass.AUTH: TokenTrouble.REFUSED,
    ErrorClass.BILLING: TokenTrouble.BILLING,
    ErrorClass.RATE_LIMIT: TokenTrouble.LIMITED,
}
"""The error classes that another token can cure, each with the token's trouble where nothing more is known."""

STALLS = {
    StopReason.INIT_TIMEOUT,
    StopReason.FIRST_MESSAGE_TIMEOUT,
    StopReason.IDLE_TIMEOUT,
    StopReason.TOOL_TIMEOUT,
    StopReason.RELAY_TIMEOUT,
}
"""The reasons that are deadlines for silence, unlike ``timeout``, the deadline of the whole execution."""


class Outcome(StrEnum):
    """How an execution ended."""

    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"


CLASS_BY_STOP: dict[StopReason, ErrorClass] = {
    StopReason.REFUSED: ErrorClass.AUTH,
    StopReason.CANCELLED: ErrorClass.CANCELLED,
    StopReason.TIMEOUT: ErrorClass.TIMEOUT,
    StopReason.PERMISSION_MODE: ErrorClass.ERROR,
    StopReason.AGENT_MISSING: ErrorClass.INVALID_REQUEST,
    StopReason.SHUTDOWN: ErrorClass.INTERRUPTED,
    **dict.fromkeys(STALLS, ErrorClass.STALLED),
}
"""
The error class of each stop reason, unless the API's last error says more. ``lingered`` and ``background_timeout``
have none: an attempt that ends by them has a result.
"""


class Verification(StrEnum):
    """The result of verifying the token that an attempt ended with."""

    CONFIRMED = "confirmed"
    """The token is refused, blocked or unpaid, or its limit lasts."""
    GOOD = "good"
    """The API accepted the token when it was asked again."""
    OPEN = "open"
    """Undecided: neither the probe nor the evidence settles it."""


class NotReady(msgspec.Struct, frozen=True):
    """Why a task sent now would be turned away, with the reason that ``/readyz`` gives."""

    reason: str
    detail: str


class DiskState(msgspec.Struct, frozen=True, kw_only=True):
    """
    The disk that holds records and transcripts.

    Attributes:
        free_bytes: Free space; null: unknown.
        error: Why a record cannot be written, or read, now.
        damage: What was found to be lost or damaged since the start, a sentence each.
        set_aside: Names of damaged files of records in the data directory; delete them when you need them no more.
        transcripts_without_record: How many transcripts have no record. A task with the id of such a transcript is
            turned away (409 ``storage``), because it may have run.
    """

    free_bytes: int | None
    error: str | None
    damage: list[str] = []
    set_aside: list[str] = []
    transcripts_without_record: int = 0
