"""
The bodies of answers that no other module has a type for, as the OpenAPI document describes them.

The client reads answers into the same types.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from agent_runtime.errors import ErrorClass
from agent_runtime.model.records import ExecutionRecord, Instant, Metadata, Subscriptable, Usage
from agent_runtime.model.state import DiskState, NotReady, Outcome, Phase, TokenState
from agent_runtime.model.tokens import TokenKind
from agent_runtime.model.usage import ModelUsage
from agent_runtime.secret.mount import SourceKind
from agent_runtime.secret.token_forms import PLAIN_TOKEN
from agent_runtime.store.usage import UsedBy


class Accepted(msgspec.Struct, kw_only=True, tag_field="status", tag="accepted"):
    """The execution goes on; ask for its result later."""

    execution_id: str


class ExecutionPage(Subscriptable, msgspec.Struct, kw_only=True):
    """
    Records, newest first.

    Attributes:
        next_cursor: Send it as ``cursor`` for the next page; null: this was the last one.
    """

    executions: list[ExecutionRecord]
    next_cursor: str | None


class NamedUsage(ModelUsage, frozen=True, kw_only=True):
    """
    What was used of one model, or with one subscription.

    Attributes:
        name: The model's or the subscription's name; ``other``: all beyond the first 64 names; null: the secret file
            did not name its subscription.
    """

    name: str | None


class UsageReport(Subscriptable, msgspec.Struct, kw_only=True):
    """
    What the executions have used whose records are kept.

    Attributes:
        by: Whether ``usage`` has one row for each subscription or for each model.
        since: Attempts that ended at this time or later count, and running ones; null: all attempts.
        total: The sum of the rows in ``usage``.
        usage: One row for each name, the highest cost first.
    """

    by: UsedBy
    since: Instant | None
    total: ModelUsage
    usage: list[NamedUsage]


class RunningExecution(Subscriptable, msgspec.Struct, kw_only=True):
    """
    An execution that has a slot.

    Attributes:
        pid: Process id of the CLI of the latest attempt.
        slot: The slot's number, from 1.
        usage: Resources that the execution's processes use now; all 0 in the first second.
    """

    execution_id: str
    pid: int | None
    started_at: Instant | None
    metadata: Metadata
    slot: int | None
    usage: Usage
    title: str | None
    labels: dict[str, str]


class RunningExecutions(Subscriptable, msgspec.Struct, kw_only=True):
    """
    Executions that run, wait, or ended lately.

    Attributes:
        pending_ids: Ids of queued and parked executions.
        recently_completed_ids: Ids of executions that ended in the last 15 minutes.
    """

    executions: list[RunningExecution]
    pending_ids: list[str]
    recently_completed_ids: list[str]


class ExecutionStatus(Subscriptable, msgspec.Struct, kw_only=True):
    """
    Whether an execution runs, and how it ended.

    Attributes:
        returncode: Exit code of the latest attempt's CLI; negative: killed by that signal; null: not known, or the
            attempt has not ended.
    """

    execution_id: str
    running: bool
    returncode: int | None
    outcome: Outcome | None
    error_class: ErrorClass | None
    started_at: Instant | None
    metadata: Metadata
    title: str | None
    labels: dict[str, str]


class Termination(Subscriptable, msgspec.Struct, kw_only=True):
    """The end of an execution; nothing of it is left."""

    status: Literal["terminated", "already_finished"]
    execution_id: str
    returncode: int | None


class DrainState(Subscriptable, msgspec.Struct, kw_only=True):
    """
    Whether new executions are admitted.

    Attributes:
        unfinished: Executions that run or wait.
    """

    draining: bool
    unfinished: int


class TokenReport(Subscriptable, msgspec.Struct, kw_only=True):
    """
    The token's state; never the token.

    Attributes:
        source: How the secret file is mounted.
        generation: Rises by one whenever the token changes.
        fingerprint: First 12 hex digits of the token's SHA-256.
        error: What is wrong with the file's present content; with state ``ready`` the last good token is in use.
        limited_until: When the usage limit ends, where the API said so.
        limit_type: The kind of limit in the API's words, such as ``five_hour``.
        limit_model: The model that the limit is for; null: the whole account.
        held_by: For the number of each generation, how many running attempts have its token. An attempt that a newer
            token reaches counts for the newer one. An old token is out of use when its number is gone.
    """

    state: TokenState
    source: SourceKind | None
    generation: int | None
    fingerprint: str | None
    kind: TokenKind | None
    loaded_at: Instant | None
    expires_at: Instant | None
    subscription: str | None
    error: str | None
    last_refused_generation: int | None
    limited_until: Instant | None
    limit_type: str | None
    limit_model: str | None
    held_by: dict[str, int]


class NewToken(msgspec.Struct, kw_only=True):
    """
    A token to be written to the secret file before it is read again, or nothing: then it is only read again.

    Attributes:
        token: The token itself. If the file holds it already, nothing is written, and a file that cannot be written is
            no error.
        remove_api_key: Changes nothing: children are never given a key beside the token.
    """

    token: Annotated[str, msgspec.Meta(pattern=PLAIN_TOKEN)] | msgspec.UnsetType = msgspec.UNSET
    remove_api_key: bool | None = None


class Reloaded(Subscriptable, msgspec.Struct, kw_only=True, omit_defaults=True):
    """
    The result of reading the secret file again.

    Attributes:
        reloaded: Whether the file holds another token than before.
        error: Why the file's content is not used and the token before stays in use for a while; absent: it is used.
    """

    status: Literal["success"]
    reloaded: bool
    generation: int | None
    state: TokenState
    error: str | None = None


class Alive(msgspec.Struct, tag_field="status", tag="ok"):
    """The process answers."""


class Ready(msgspec.Struct, tag_field="status", tag="ready"):
    """A task sent now would be admitted, if there is room."""


class Unready(NotReady, frozen=True, tag_field="status", tag="unready"):
    """
    A task sent now would be turned away.

    Attributes:
        reason: ``draining``, ``no_cli``, or ``token_`` and the token's state.
    """


class HealthInBrief(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The answer to callers that do not send the access key."""

    status: Literal["ok", "degraded"]


class HealthToken(msgspec.Struct, kw_only=True):
    """The token, in brief."""

    state: TokenState
    generation: int | None
    error: str | None


class HealthSlots(msgspec.Struct, kw_only=True):
    """
    How many executions may run at once, and how many do.

    Attributes:
        unkillable: Slots that are taken by processes which could not be ended.
    """

    total: int
    busy: int
    unkillable: int


class HealthQueue(msgspec.Struct, kw_only=True):
    """How many new executions may wait for a slot, and how many do."""

    limit: int
    length: int


class HealthPlaces(msgspec.Struct, kw_only=True):
    """How many connections or streams are open, and how many may be."""

    open: int
    limit: int


class HealthDelivery(msgspec.Struct, kw_only=True):
    """
    How a token reaches a child.

    Attributes:
        reason: Why this way was chosen.
        setting: The configured value.
    """

    delivery: str
    reason: str
    setting: str


class HealthContainment(msgspec.Struct, kw_only=True):
    """
    How the processes of an attempt are contained.

    Attributes:
        setting: The configured value.
        lacking: For the name of each better layer, why it cannot be used here.
    """

    layer: str
    setting: str
    lacking: dict[str, str]


class HealthConfinement(msgspec.Struct, kw_only=True):
    """
    What keeps the secret and the supervisor out of the agents' reach.

    Attributes:
        mode: The mode in effect now.
        reached: What a child tried to reach when the supervisor started, and whether it could; empty with mode ``off``.
        lacking: For each mode that was asked for, or would be better, why it is not in effect.
    """

    mode: Literal["off", "user", "landlock"]
    setting: str
    reached: dict[str, bool]
    lacking: dict[str, str]


class Health(Subscriptable, msgspec.Struct, kw_only=True):
    """
    The state of the supervisor: token, slots, queue, disk and what hinders it, on one page.

    Attributes:
        reasons: Why the supervisor is degraded, a sentence each; empty where it is not.
        hostname: The container's host name.
        task_fields: The fields that this version knows in a task, for fleets with several versions.
        active_tasks: How many executions have a slot.
        usage: Resources that the processes of all executions use now.
        consecutive_failures: Executions that failed since the last one that did not.
        loop_lag_seconds: How long a ready task waits for its turn now.
    """

    status: Literal["ok", "degraded"]
    reasons: list[str]
    hostname: str
    version: str
    unready: NotReady | None
    token: HealthToken
    slots: HealthSlots
    queue: HealthQueue
    task_fields: list[str]
    active_tasks: int
    usage: Usage
    last_task_at: Instant | None
    consecutive_failures: int
    draining: bool
    connections: HealthPlaces
    streams: HealthPlaces
    delivery: HealthDelivery
    containment: HealthContainment
    confinement: HealthConfinement
    disk: DiskState
    loop_lag_seconds: float
    uptime_seconds: float


class StreamState(msgspec.Struct, kw_only=True):
    """
    Sent first, and on every change of the execution's state.

    Attributes:
        held: As in the record; absent where it is false.
    """

    state: Phase
    outcome: Outcome | None
    error_class: ErrorClass | None
    held: bool | msgspec.UnsetType = msgspec.UNSET


class StreamGap(msgspec.Struct, kw_only=True):
    """
    Sent where lines of the transcript are missing.

    Attributes:
        first: The number of the first missing line.
        last: The number of the last missing line.
    """

    first: int
    last: int
    reason: Literal["not kept", "not written yet"]


class StreamEnd(msgspec.Struct, kw_only=True, tag="stream_end"):
    """Sent last: nothing more will come."""

    outcome: Outcome | None
    error_class: ErrorClass | None


class EventsEnd(msgspec.Struct, tag="stream_end"):
    """Sent last: the supervisor ends."""
