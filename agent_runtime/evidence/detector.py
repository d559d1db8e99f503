"""
What an attempt's lines say about the API: refused tokens, limits, overload, network.

Two channels tell it. On stderr the CLI reports every API error it meets, on every version, with the status and the
API's own body (``--debug-to-stderr``). On stdout newer versions have frames for their retries and for giving up. One
channel qualifies the other: a frame says ``authentication_failed`` for any 403, and only the body on stderr tells a
revoked token from a gateway's quota.

Never read as evidence: what a tool, a model, a prompt, an MCP server or a sub-agent's conversation says.

Source: ``tests/recorded/``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from agent_runtime.claude.frames import SYNTHETIC_MODEL
from agent_runtime.errors import ErrorClass
from agent_runtime.evidence.error_bodies import STATUS_BY_TYPE
from agent_runtime.evidence.matching import ApiError, names_another_model
from agent_runtime.evidence.phrases import LIMIT_BY_WORDS, MODEL_BY_LIMIT
from agent_runtime.evidence.reset_times import end_of_limit
from agent_runtime.evidence.rules import rule_for
from agent_runtime.evidence.text import (
    error_in_sentence,
    error_in_stderr,
    is_foreign_entry,
    is_own_entry,
    is_prompt_entry,
    time_of_entry,
)
from agent_runtime.model.state import TokenTrouble

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.claude.frames import Frame
    from agent_runtime.evidence.matching import Rule

_TROUBLE_BY_CLASS = {
    ErrorClass.AUTH: TokenTrouble.REFUSED,
    ErrorClass.BILLING: TokenTrouble.BILLING,
    ErrorClass.RATE_LIMIT: TokenTrouble.LIMITED,
}

_STATUSES_BY_WORD: dict[str | None, set[int | None]] = {
    "authentication_failed": {401, 403},
    "oauth_org_not_allowed": {401, 403},
    "rate_limit": {429},
    "billing_error": {400, 402, 403, 429},
    "model_not_found": {400, 403, 404},
}
"""What a frame without a status may be about. Source: how Claude Code 2.1.30 to 2.1.332 words an answer of the API."""

_SAID_WITHOUT_ASKING = frozenset({"authentication_failed", "oauth_org_not_allowed"})
"""What the CLI says also before it has asked anybody: "Not logged in"."""

_SAME_LENGTH = 60

QUOTES_NEWLINES_SINCE = (2, 1, 114)
"""
From this version on no entry of the CLI's debug log spans several lines, also while it starts.

Source: 1.0.128, 2.0.76 and 2.1.30 write entries as they are until the first prompt; 2.1.114 and 2.1.330 quote them.
"""


class Channel(StrEnum):
    """Where the CLI said it."""

    STDOUT = "stdout"
    STDERR = "stderr"


class Detection(msgspec.Struct, frozen=True):
    """
    An API error that the CLI itself reported.

    Attributes:
        rule: The id of the rule that recognised it: see :mod:`agent_runtime.evidence.rules`.
        is_evidence: It is about the token or its account: the attempt must be stopped now.
        condemns: It may count against the generation; false for what only the CLI says, such as "Not logged in".
        trouble: What it says is wrong with the token or its account; None: nothing.
        is_final: The CLI has given up; false for its retries.
        status: The HTTP status, where one is known.
        limit_type: Which usage limit, in the API's words, such as ``five_hour``.
        limit_model: The model the limit is of; None: the whole account.
        resets_at: When the limit ends, epoch seconds.
        retry_after_seconds: When the CLI itself would try again.
        advice: What the caller is told instead of the sentence of the class.
    """

    rule: str
    channel: Channel
    error_class: ErrorClass
    is_evidence: bool = False
    condemns: bool = False
    trouble: TokenTrouble | None = None
    is_final: bool = False
    status: int | None = None
    limit_type: str | None = None
    limit_model: str | None = None
    resets_at: float | None = None
    retry_after_seconds: float | None = None
    advice: str | None = None

    def or_sharper(self, earlier: Detection | None) -> Detection:
        """
        Return what is known after this detection: itself, or *earlier* where that says more about the same failure.

        The two channels are read in any order, so a line about a retry may come after the frame of giving up.
        """
        if earlier is None or self.is_evidence:
            return self
        if self.error_class is ErrorClass.ERROR or (earlier.is_final and not self.is_final):
            return earlier
        if earlier.error_class is ErrorClass.RATE_LIMIT and self.error_class in {
            ErrorClass.RATE_LIMIT,
            ErrorClass.OVERLOADED,
        }:
            return replace(
                self,
                rule=earlier.rule if self.error_class is ErrorClass.OVERLOADED else self.rule,
                error_class=ErrorClass.RATE_LIMIT,
                trouble=TokenTrouble.LIMITED,
                limit_type=self.limit_type or earlier.limit_type,
                limit_model=self.limit_model or earlier.limit_model,
                resets_at=self.resets_at or earlier.resets_at,
            )
        return self


class _Limit(msgspec.Struct, frozen=True):
    type: str | None
    resets_at: float | None


class Detector:
    """
    Read one attempt's lines for API errors that the CLI itself reports; fed with each line once, in order.

    Guarantee: never raises, whatever the bytes; costs a few microseconds for a line that is none of its business.

    Args:
        now: The time, in epoch seconds; the ends of limits are told relative to it.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._starting = True
        self._foreign_since: str | None = None
        self._told: ApiError | None = None
        self._told_aside = False
        self._given_up: tuple[str, ApiError] | None = None
        self._limit: _Limit | None = None
        self._models: set[str] = set()
        self._model_has_spoken = False

    def stderr(self, line: bytes, *, finished: bool = True) -> Detection | None:
        """
        Look at a line of stderr.

        While the CLI starts, older versions print what an MCP server writes as it is, newlines and all: a line in there
        can have the very form of an API error. It is believed only when its time is later than that of the MCP server's
        entry, or when the CLI has said something else itself in between.

        A refusal of one model is none of the run's where it is not the run's model, or where nobody can tell and the
        run's own has answered before: then a sub-agent asked, or the CLI for itself, with a small model. The run's own
        request is reported in frames, too.

        Args:
            finished: Whether the newline is there. Of a line that may go on only what no end could change is believed:
                a body that is there, with the type of the error.
        """
        error = error_in_stderr(line)
        if error is None:
            if self._starting and finished:
                self._watch_start(line)
            return None
        if not finished and (error.type is None or not error.is_whole):
            return None
        if self._foreign_since is not None and not "" < self._foreign_since < time_of_entry(line):
            return None
        detection = self._detection(error, Channel.STDERR, is_final=False)
        is_aside = detection.error_class is ErrorClass.MODEL and self._is_aside(error)
        if finished:
            self._told, self._told_aside = error, is_aside
        return None if is_aside else detection

    def stdout(self, frame: Frame) -> Detection | None:
        """Look at a frame."""
        if frame.parent_tool_use_id is not None:
            return None
        match frame.type:
            case "assistant":
                return self._assistant(frame)
            case "system":
                return self._system(frame)
            case "result":
                return self._result(frame)
            case "rate_limit_event":
                return self._rate_limit(frame)
        return None

    # -- stderr

    def _watch_start(self, line: bytes) -> None:
        if is_foreign_entry(line):
            self._foreign_since = time_of_entry(line)
        elif is_own_entry(line):
            self._foreign_since = None
            self._starting = not is_prompt_entry(line)

    # -- stdout

    def _system(self, frame: Frame) -> Detection | None:
        if frame.subtype == "init":
            if frame.model is not None:
                self._models.add(frame.model)
            version = _version(frame.claude_code_version)
            if version is not None and version >= QUOTES_NEWLINES_SINCE:
                self._starting = False
                self._foreign_since = None
        elif frame.subtype == "api_retry":
            error = ApiError(status=_status(frame.error_status), word=frame.error)
            if error.status is None and error.word in {None, "unknown", "authentication_failed"}:
                error = replace(error, word=None, text="API Error: Connection error.")  # there was no answer
            delay = frame.retry_delay_ms
            detection = self._detection(self._qualified(error), Channel.STDOUT, is_final=False)
            return replace(detection, retry_after_seconds=None if delay is None else delay / 1000)
        return None

    def _assistant(self, frame: Frame) -> Detection | None:
        message = frame.message
        if message is None or message.model is None:
            return None
        if message.model != SYNTHETIC_MODEL:
            # The model goes on: what was reported before is over.
            self._told = self._given_up = None
            self._models.add(message.model)
            self._model_has_spoken = True
            return None
        if frame.error is None:
            return None
        error = self._qualified(_reported(frame, frame.text))
        self._given_up = (frame.text, error)
        return self._detection(error, Channel.STDOUT, is_final=True)

    def _result(self, frame: Frame) -> Detection | None:
        if not frame.is_error or frame.subtype == "error_max_turns":
            return None
        # Not its ``errors``: they hold whatever the CLI has logged, an MCP server's 401 too.
        error = _reported(frame, frame.result or "")
        if self._given_up is not None and frame.result == self._given_up[0]:
            # Said once more, without the word and, in older versions, without all else.
            said = self._given_up[1]
            error = replace(said, status=error.status or said.status, type=error.type or said.type)
        else:
            error = self._qualified(error)
        detection = self._detection(error, Channel.STDOUT, is_final=True)
        if frame.api_error_status is None:
            # Nothing but a sentence: true or not, it is no word of the API.
            detection = replace(detection, condemns=False)
        return detection

    def _rate_limit(self, frame: Frame) -> Detection | None:
        info = frame.rate_limit_info
        if info is None:
            return None
        if info.status != "rejected" or info.is_using_overage:
            self._limit = None
            return None
        if info.rate_limit_type is None and info.resets_at is None:
            return None  # a throttle: nothing says what limit, or until when
        limit_type = info.rate_limit_type
        if limit_type is not None and not (
            limit_type.isascii() and limit_type.isidentifier() and len(limit_type) <= 40
        ):
            limit_type = "other"  # the API's names are plain words; what is none is not repeated
        self._limit = _Limit(limit_type, info.resets_at)
        return Detection(
            rule="limit-event",
            channel=Channel.STDOUT,
            error_class=ErrorClass.RATE_LIMIT,
            trouble=TokenTrouble.LIMITED,
            status=429,
            limit_type=limit_type,
            limit_model=MODEL_BY_LIMIT.get(limit_type or ""),
            resets_at=info.resets_at,
        )

    # -- both

    def _qualified(self, error: ApiError) -> ApiError:
        """Add what stderr told about the same error and the frame leaves out."""
        told = self._told
        if told is None or error.type not in {None, told.type}:
            return error
        statuses = {error.status}
        if error.status is None:
            is_in_doubt = self._told_aside and error.word in _SAID_WITHOUT_ASKING
            statuses = set() if is_in_doubt else _STATUSES_BY_WORD.get(error.word, set())
        if told.status not in statuses or not _say_the_same(error.message, told.message):
            return error
        return replace(
            error,
            status=told.status,
            type=told.type,
            code=told.code,
            text=f"{error.text} \u00b7 {told.text}",
            message=told.message,
        )

    def _is_aside(self, error: ApiError) -> bool:
        """Tell whether the refusal of a model is not of the run's own request."""
        another = names_another_model(error.message or error.text, self._models)
        return self._model_has_spoken if another is None else another

    def _detection(self, error: ApiError, channel: Channel, *, is_final: bool) -> Detection:
        if error.status is None and error.type is not None:
            error = replace(error, status=STATUS_BY_TYPE.get(error.type))
        rule = rule_for(error)
        detection = Detection(
            rule=rule.id,
            channel=channel,
            error_class=rule.error_class,
            is_evidence=rule.is_evidence,
            condemns=rule.condemns,
            trouble=TokenTrouble.BLOCKED if rule.blocks else _TROUBLE_BY_CLASS.get(rule.error_class),
            is_final=is_final,
            status=error.status,
            advice=rule.advice,
        )
        return self._with_limit(detection, error, rule)

    def _with_limit(self, detection: Detection, error: ApiError, rule: Rule) -> Detection:
        if rule.error_class is ErrorClass.RATE_LIMIT:
            lowered = error.text.lower()
            named = next((limit for words, limit in LIMIT_BY_WORDS if words in lowered), None)
            resets_at = end_of_limit(error.text, self._now())
        elif self._limit is not None and error.status == 429 and not rule.is_evidence:
            named = resets_at = None
            detection = replace(
                detection, rule="limit-event", error_class=ErrorClass.RATE_LIMIT, trouble=TokenTrouble.LIMITED
            )
        else:
            return detection
        limit = self._limit or _Limit(named, resets_at)
        limit_type = limit.type or named
        return replace(
            detection,
            limit_type=limit_type,
            limit_model=MODEL_BY_LIMIT.get(limit_type or ""),
            resets_at=limit.resets_at or resets_at,
        )


def _reported(frame: Frame, text: str) -> ApiError:
    """Put together what a frame of giving up says; what it has no field for may stand in its sentence."""
    spoken = error_in_sentence(text)
    return ApiError(
        status=_status(frame.api_error_status) or spoken.status,
        type=frame.api_error_type or spoken.type,
        code=frame.api_error_code or spoken.code,
        word=frame.error,
        detail=frame.api_error,
        text=spoken.text,
        message=spoken.message,
    )


def _say_the_same(shown: str | None, told: str | None) -> bool:
    """Tell whether the message in a frame may be the one on stderr; where either is missing it may."""
    begin = (shown or "").strip()[:_SAME_LENGTH]
    return not begin or not told or begin in told or told.strip()[:_SAME_LENGTH] in (shown or "")


def _status(value: int | None) -> int | None:
    return value if value is not None and 100 <= value < 600 else None


def _version(text: str | None) -> tuple[int, ...] | None:
    numbers = (text or "").split("-")[0].split(".")
    return tuple(map(int, numbers)) if all(number.isascii() and number.isdigit() for number in numbers) else None
