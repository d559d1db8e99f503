"""
The record of an execution, as it is stored and as callers see it.

Inside, instants are seconds since the epoch (:data:`EpochSeconds`); callers see them as RFC 3339 in UTC, to the
millisecond.
"""

from __future__ import annotations

import functools
import re
from datetime import UTC, datetime
from typing import Annotated, Any, overload

import msgspec

from agent_runtime.errors import ErrorClass
from agent_runtime.model.state import Outcome, Phase, StopReason
from agent_runtime.model.usage import COST_DIGITS, ModelUsage, total_of

SUCCESS = 200

EpochSeconds = Annotated[float, msgspec.Meta(extra_json_schema={"format": "date-time"})]
"""An instant in a stored record; the JSON Schema is that of the text which callers see."""

Instant = Annotated[datetime, msgspec.Meta(tz=True)]
"""An instant in an answer: made by :func:`instant`, written by :func:`to_json`; a text without zone is not read."""

CONTEXT_WINDOW = 200_000
LONG_CONTEXT_WINDOW = 1_000_000
LONG_CONTEXT_MARK = "[1m]"
"""Source: https://code.claude.com/docs/en/model-config, "Extended context", read 2026-11."""

COMPACT_EVENTS_KEPT = 100

_LAST_SECOND = 253_402_300_799.0
"""The end of the year 9999: later instants cannot be written in RFC 3339."""
EPOCH_SECONDS_PATTERN = r"[0-9]{1,11}(\.[0-9]{1,9})?"
_RFC_3339 = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+ -][0-9]{2}:[0-9]{2})"


def context_window_of(model: str | None) -> int:
    """Return a model's context window in tokens, judged by its name alone."""
    return LONG_CONTEXT_WINDOW if model is not None and LONG_CONTEXT_MARK in model.lower() else CONTEXT_WINDOW


class Subscriptable:
    """A structure whose fields can be read as items, too (``token["state"]``), as from the dicts of version 0.1.0."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        return msgspec.structs.asdict(self)[name]  # type: ignore[arg-type]  # every class with it is a structure


class Answer(msgspec.Struct, frozen=True):
    """
    The answer that every caller of an execution gets.

    Attributes:
        headers: Headers besides the content type; ``Retry-After`` is for the present caller and is not stored.
    """

    status_code: int
    body: bytes
    headers: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def media_type(self) -> str:
        """The content type: plain JSON of a success, else a problem document."""
        return "application/json" if self.status_code == SUCCESS else "application/problem+json"


class EvidenceRecord(msgspec.Struct, kw_only=True):
    """
    The line, frame or answer that said that the API refused the token, and so ended an attempt.

    Attributes:
        rule: Id of the rule that matched.
        stream: Where the error was reported: ``stdout``, ``stderr``, or ``wire`` (the relay read the API's answer).
        line: The beginning of the line, or of the answer's body, redacted.
        seconds_to_signal: From reading the line to the signal; None: the child was gone already, the relay read the
            answer, or the request was held before the attempt was ended.
    """

    rule: str
    stream: str
    line: str
    seconds_to_signal: float | None = None


class TokenRecord(Subscriptable, msgspec.Struct, kw_only=True):
    """
    A token that reached an attempt, and when.

    Attributes:
        subscription: As the secret file named it.
        usage_by_model: What the attempt has used with this token, by model. The CLI names only the cost of a whole
            attempt, so that cost is split among the attempt's tokens; see :func:`~agent_runtime.model.usage.split`.
    """

    generation: int
    fingerprint: str
    delivered_at: EpochSeconds
    subscription: str | None = None
    usage_by_model: dict[str, ModelUsage] = msgspec.field(default_factory=dict)


class Usage(msgspec.Struct, kw_only=True):
    """
    Resources that an execution's processes use at one moment; of a finished one its total and its peaks.

    They are sampled once a second while they run, so an execution of less than that has no peaks.

    Attributes:
        cpu_seconds: Processor time of all its processes, those that have ended included, over all attempts.
        memory_bytes: Sum of what is resident (RSS); pages that processes share count for each.
        pss_bytes: The same with shared pages divided among those that share them; 0 where that cannot be read.
        open_files: Open descriptors, as far as they may be counted.
    """

    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    pss_bytes: int = 0
    processes: int = 0
    open_files: int = 0

    def plus(self, other: Usage) -> Usage:
        """Return the sum of two usages that were measured at the same time."""
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})

    def with_peaks_of(self, other: Usage) -> Usage:
        """Return the higher value of each field, but the processor time of *other*."""
        highest = {name: max(getattr(self, name), getattr(other, name)) for name in self.__struct_fields__}
        return Usage(**{**highest, "cpu_seconds": other.cpu_seconds})


class AttemptRecord(Subscriptable, msgspec.Struct, kw_only=True):
    """
    One CLI process.

    Attributes:
        exit_code: As :attr:`subprocess.Popen.returncode`; None: still running, or not known.
        survivors: How many processes that the CLI had started could not be ended after the CLI had ended.
    """

    pid: int | None = None
    tokens: list[TokenRecord] = msgspec.field(default_factory=list)
    started_at: EpochSeconds | None = None
    ended_at: EpochSeconds | None = None
    exit_code: int | None = None
    stop_reason: StopReason | None = None
    evidence: EvidenceRecord | None = None
    survivors: int = 0

    @property
    def cost_usd(self) -> float:
        """The cost that the attempt's ``result`` frames named; 0: there was none, or it named no cost."""
        return round(sum(total_of(token.usage_by_model).cost_usd for token in self.tokens), COST_DIGITS)


class CompactEvent(msgspec.Struct, kw_only=True):
    """
    The CLI replaced the beginning of a conversation by a summary, to make room.

    Attributes:
        trigger: ``auto`` or ``manual``; None: the CLI did not say.
        pre_tokens: Length of the conversation before, in tokens.
        post_tokens: Length of the conversation after, in tokens; null: the CLI did not say (before 2.1.114).
        duration_ms: How long making the summary took; null: as above.
    """

    trigger: str | None = None
    pre_tokens: int | None = None
    post_tokens: int | None = None
    duration_ms: float | None = None


class Metadata(Subscriptable, msgspec.Struct, kw_only=True):
    """
    Counts of an execution, and facts about its request and its record.

    Counts begin at 0 and are never null: backends add them up and divide by them. They are totals of all attempts, and
    grow while an attempt runs.

    Attributes:
        cost_usd: As the CLI has computed it; an attempt that ended without a ``result`` adds 0.
        duration_ms: How long the attempts took, each as the CLI says, else from its start to its end.
        input_tokens: Without the tokens that were written to, or read from, the prompt cache.
        usage_by_model: The same counts by model: at most 64 models, the rest as ``other``.
        context_tokens: Length of the prompt of the last request of the run's own conversation.
        estimated: Some of the usage was counted from the CLI's messages, because an attempt ended without a ``result``,
            or went on after it. The counts are then never too high. They can lack the cost of that part, and requests
            of which the CLI prints nothing.
        context_window: The model's, in tokens; until the CLI says it, 1000000 for a model whose name says
            ``[1m]``, else 200000.
        session_id: The same as ``session_id`` of the record.
        compact_events: The first 100.
        background_tasks_pending_at_exit: Tasks the last process had not ended when it ended itself.
        stop_reason: Why the model ended its last message, in the API's words: ``max_tokens`` for an answer that is cut.
        sent_as_text: The message was sent as plain text, because the CLI took it, or would have taken it, for one of
            the CLI's own commands.
        background_ended: The run had its answer, and work that still went on in the background was ended.
        attempts: How many CLI processes the execution has had.
        resumes: How often the execution went on in a further attempt after its token was in trouble: refused, blocked,
            unpaid or at a usage limit.
        session_restarted: A session that could not be used any more was given up for a new one.
        ignored_fields: Names in the request that nothing reads.
        retained: False: the record could not be written, and may be unknown after a restart; or its transcript could
            not be written or read.
    """

    cost_usd: float = 0.0
    duration_ms: float = 0.0
    num_turns: int = 0
    tool_count: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_tokens: int = 0
    cache_read_tokens: int = 0
    usage_by_model: dict[str, ModelUsage] = msgspec.field(default_factory=dict)
    context_tokens: int = 0
    estimated: bool = False
    context_window: int = CONTEXT_WINDOW
    session_id: str | None = None
    compact_events: list[CompactEvent] = msgspec.field(default_factory=list)
    background_tasks_pending_at_exit: int = 0
    model_name: str | None = None
    token_generation: int | None = None
    token_fingerprint: str | None = None
    stop_reason: str | None = None
    sent_as_text: bool = False
    background_ended: bool = False
    attempts: int = 0
    resumes: int = 0
    session_restarted: bool = False
    cli_version: str | None = None
    ignored_fields: list[str] = msgspec.field(default_factory=list)
    retained: bool = True

    @property
    def totals(self) -> dict[str, float]:
        """The counts of what was used, by field name, and ``estimated``."""
        return {name: getattr(self, name) for name in (*ModelUsage.__struct_fields__, "duration_ms", "estimated")}


class ExecutionRecord(Subscriptable, msgspec.Struct, kw_only=True):
    """
    All that is known of an execution; only its owner changes it.

    Attributes:
        held: The execution is running, and a request of its CLI waits until its token, or a newer one, can be used. The
            request waits at the relay, or the CLI repeats it by itself.
        detail: What went wrong, for a person.
        started_at: When its first attempt was spawned.
        session_id: The CLI's session that the execution ran in last, or that the request names.
        cwd: The directory that the execution runs in, relative to the workspace; null: the workspace itself.
        env_names: Names of the variables that the request sets; the values are not kept.
        resumable: The session holds progress, a text of the model or a finished tool call: after a failure or a
            cancellation the same request, posted again, continues there. null: not known yet, as in a new session that
            the API has not answered in.
        title: As the request says.
        labels: As the request says.
        prompt: First 200 characters of the message, without tokens; null: prompts are not shown.
        request_digest: Equal for requests that ask for the same; not shown.
        cost_before_usd: What the id had cost, in US dollars, when its present work began: the budget of the task covers
            only the cost since then; not shown.
    """

    execution_id: str
    state: Phase = Phase.QUEUED
    held: bool = False
    outcome: Outcome | None = None
    error_class: ErrorClass | None = None
    detail: str | None = None
    created_at: EpochSeconds
    started_at: EpochSeconds | None = None
    ended_at: EpochSeconds | None = None
    session_id: str | None = None
    resumable: bool | None = None
    cwd: str | None = None
    env_names: list[str] = msgspec.field(default_factory=list)
    attempts: list[AttemptRecord] = msgspec.field(default_factory=list)
    metadata: Metadata = msgspec.field(default_factory=Metadata)
    usage: Usage = msgspec.field(default_factory=Usage)
    title: str | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    prompt: str | None = None
    request_digest: str = ""
    cost_before_usd: float = 0.0


class _Earlier(msgspec.Struct):
    metadata: dict[str, Any]


_RECORD = msgspec.json.Decoder(ExecutionRecord)


def read_record(encoded: bytes) -> ExecutionRecord:
    """
    Read a record that this version or an earlier one has written.

    In records of 0.1.0 and earlier an unknown count is null; here it becomes the default.

    Raises:
        msgspec.DecodeError: *encoded* is no record.
    """
    try:
        record = _RECORD.decode(encoded)
    except msgspec.ValidationError:
        earlier = msgspec.json.decode(encoded, type=_Earlier).metadata
        metadata = {name: value for name, value in earlier.items() if value is not None}
        metadata.setdefault("context_window", context_window_of(metadata.get("model_name")))
        record = msgspec.convert({**msgspec.json.decode(encoded), "metadata": metadata}, ExecutionRecord)
    record.metadata.session_id = record.session_id
    return record


def record_json(record: ExecutionRecord, *, prompts: bool = True) -> bytes:
    """Encode what callers see of a record; *prompts*: with the start of its message."""
    # Only what differs is made anew: a list shows hundreds of records, each of dozens of fields.
    fields = msgspec.structs.asdict(record)
    del fields["request_digest"], fields["cost_before_usd"]
    fields["created_at"] = rfc3339(record.created_at)
    fields["started_at"], fields["ended_at"] = _text(record.started_at), _text(record.ended_at)
    fields["attempts"] = [_with_texts(attempt) for attempt in record.attempts]
    if not prompts:  # even if the record was made when they were shown
        fields["prompt"] = None
    return to_json(fields)


def _with_texts(attempt: AttemptRecord) -> AttemptRecord:
    tokens = [msgspec.structs.replace(token, delivered_at=rfc3339(token.delivered_at)) for token in attempt.tokens]
    started_at, ended_at = _text(attempt.started_at), _text(attempt.ended_at)
    return msgspec.structs.replace(attempt, tokens=tokens, started_at=started_at, ended_at=ended_at)


def _text(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(seconds)


class _Instant(datetime):
    """A class of its own, because msgspec writes a plain datetime with none or six digits of a second's fraction."""


@overload
def instant(seconds: float) -> datetime: ...
@overload
def instant(seconds: None) -> None: ...


def instant(seconds: float | None) -> datetime | None:
    """Return seconds since the epoch as an :data:`Instant` of an answer; None stays None."""
    if seconds is None:
        return None
    whole, microseconds = divmod(round(seconds * 1e6), 1_000_000)
    return _Instant.fromtimestamp(whole, UTC).replace(microsecond=microseconds)


def to_json(answer: Any) -> bytes:
    """Encode an answer, with its instants as :func:`rfc3339` writes them."""
    return msgspec.json.encode(answer, enc_hook=_text_of)


def _text_of(at: object) -> str:
    if not isinstance(at, datetime):
        raise TypeError(f"an answer cannot hold a {type(at).__name__}")
    return f"{at.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def rfc3339(seconds: float) -> str:
    """Write an instant as RFC 3339 in UTC, to the millisecond."""
    whole, microseconds = divmod(round(seconds * 1e6), 1_000_000)
    return f"{_second(whole)}.{microseconds // 1000:03}Z"


def epoch_seconds(text: str) -> float | None:
    """Read an instant that is RFC 3339 or a number of seconds since the epoch; None: it is neither."""
    if re.fullmatch(EPOCH_SECONDS_PATTERN, text):
        return float(text)
    try:
        # The plus of an offset becomes a blank in a URL if it was not quoted.
        at = datetime.fromisoformat(text.upper().replace(" ", "+")) if re.fullmatch(_RFC_3339, text) else None
        return None if at is None else min(max(0.0, at.timestamp()), _LAST_SECOND)
    except (ValueError, OverflowError):
        return None


@functools.lru_cache(maxsize=1024)
def _second(whole: int) -> str:
    # Cached: most instants that are shown together lie within few seconds.
    return datetime.fromtimestamp(whole, UTC).replace(tzinfo=None).isoformat()
