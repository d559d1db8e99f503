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

from agent_runtime.errors import ErrorClass
from agent_runtime.evidence_phrases import LIMIT_BY_WORDS, MODEL_BY_LIMIT
from agent_runtime.evidence_rules import STATUS_BY_TYPE, ApiError, rule_for
from agent_runtime.evidence_text import (
    end_of_limit,
    error_in_sentence,
    error_in_stderr,
    is_foreign_entry,
    is_own_entry,
    is_prompt_entry,
    time_of_entry,
)
from agent_runtime.frames import SYNTHETIC_MODEL
from agent_runtime.state import TokenTrouble

if TYPE_CHECKING:
    from agent_runtime.evidence_rules import Rule
    from agent_runtime.frames import Frame

_TROUBLE_BY_CLASS = {
    ErrorClass.AUTH: TokenTrouble.REFUSED,
    ErrorClass.BILLING: TokenTrouble.BILLING,
    ErrorClass.RATE_LIMIT: TokenTrouble.LIMITED,
}

QUOTES_NEWLINES_SINCE = (2, 1, 114)
"""
From this version on no entry of the CLI's debug log spans several lines, also while it starts.

Source: 1.0.128, 2.0.76 and 2.1.30 write entries as they are until the first prompt; 2.1.114 and 2.1.330 quote them.
"""


class Channel(StrEnum):
    """Where the CLI said it."""

    STDOUT = "stdout"
    STDERR = "stderr"


class Sighting(msgspec.Struct, frozen=True):
    """
    An API error that the CLI itself reported.

    Attributes:
        rule: The id of the rule that recognised it: see :mod:`agent_runtime.evidence_rules`.
        is_evidence: The API refused the token: the attempt must be stopped now.
        condemns: It may count against the generation; false for what only the CLI says, such as "Not logged in".
        trouble: What it says is wrong with the token or its account; None: nothing.
        is_final: The CLI has given up; false for its retries.
        status: The HTTP status, where one is known.
        limit_type: Which usage limit, in the API's words, such as ``five_hour``.
        limit_model: The model the limit is of; None: the whole account.
        resets_at: When the limit ends, epoch seconds.
        retry_after_seconds: When the CLI itself would try again.
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

    def or_sharper(self, earlier: Sighting | None) -> Sighting:
        """
        Return what is known after this sighting: itself, or *earlier* where that says more about the same failure.

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
                limit_type=self.limit_type or earlier.limit_type,
                limit_model=self.limit_model or earlier.limit_model,
                resets_at=self.resets_at or earlier.resets_at,
            )
        return self


class _Limit(msgspec.Struct, frozen=True):
    type: str | None
    resets_at: float | None


class Witness:
    """
    Read one attempt's lines for API errors that the CLI itself reports; fed with each line once, in order.

    Guarantee: never raises, whatever the bytes; costs a few microseconds for a line that is none of its business.
    """

    def __init__(self) -> None:
        self._starting = True
        self._foreign_since: str | None = None
        self._told: ApiError | None = None
        self._limit: _Limit | None = None

    def stderr(self, line: bytes, *, finished: bool = True) -> Sighting | None:
        """
        Look at a line of stderr.

        While the CLI starts, older versions print what an MCP server writes as it is, newlines and all: a line in there
        can have the very form of an API error. It is believed only when its time is later than that of the MCP server's
        entry, or when the CLI has said something else itself in between.

        Args:
            finished: Whether the newline is there. Of a line that may go on only what no end could change is believed:
                a status together with the API's own type for it.
        """
        error = error_in_stderr(line)
        if error is None:
            if self._starting and finished:
                self._watch_start(line)
            return None
        if not finished and error.type is None:
            return None
        if self._foreign_since is not None and not "" < self._foreign_since < time_of_entry(line):
            return None
        if finished:
            self._told = error
        return self._sighting(error, Channel.STDERR, is_final=False)

    def stdout(self, frame: Frame) -> Sighting | None:
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

    def _system(self, frame: Frame) -> Sighting | None:
        if frame.subtype == "init":
            version = _version(frame.claude_code_version)
            if version is not None and version >= QUOTES_NEWLINES_SINCE:
                self._starting = False
                self._foreign_since = None
        elif frame.subtype == "api_retry":
            error = ApiError(status=_status(frame.error_status), word=frame.error)
            if error.status is None and error.word in {None, "unknown", "authentication_failed"}:
                error = replace(error, word=None, text="API Error: Connection error.")  # there was no answer
            delay = frame.retry_delay_ms
            sighting = self._sighting(self._qualified(error), Channel.STDOUT, is_final=False)
            return replace(sighting, retry_after_seconds=None if delay is None else delay / 1000)
        return None

    def _assistant(self, frame: Frame) -> Sighting | None:
        message = frame.message
        if message is None or message.model is None:
            return None
        if message.model != SYNTHETIC_MODEL:
            self._told = None  # the model goes on: what was reported before is over
            return None
        if frame.error is None:
            return None
        return self._sighting(self._qualified(_reported(frame, frame.text)), Channel.STDOUT, is_final=True)

    def _result(self, frame: Frame) -> Sighting | None:
        if not frame.is_error or frame.subtype == "error_max_turns":
            return None
        # Not its ``errors``: they hold whatever the CLI has logged, an MCP server's 401 too.
        error = _reported(frame, frame.result or "")
        sighting = self._sighting(self._qualified(error), Channel.STDOUT, is_final=True)
        if frame.api_error_status is None:
            # Nothing but a sentence: true or not, it is no word of the API.
            sighting = replace(sighting, condemns=False)
        return sighting

    def _rate_limit(self, frame: Frame) -> Sighting | None:
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
        return Sighting(
            rule="limit-event",
            channel=Channel.STDOUT,
            error_class=ErrorClass.RATE_LIMIT,
            status=429,
            limit_type=limit_type,
            limit_model=MODEL_BY_LIMIT.get(limit_type or ""),
            resets_at=info.resets_at,
        )

    # -- both

    def _qualified(self, error: ApiError) -> ApiError:
        """Add what stderr told about the same error and the frame leaves out."""
        told = self._told
        if told is None or error.type is not None:
            return error
        if error.status == told.status and error.status in {401, 403}:
            return replace(error, type=told.type, text=f"{error.text} \u00b7 {told.text}")
        if error.status is None and error.word == "authentication_failed" and told.status in {401, 403}:
            return replace(error, status=told.status, type=told.type, text=f"{error.text} \u00b7 {told.text}")
        return error

    def _sighting(self, error: ApiError, channel: Channel, *, is_final: bool) -> Sighting:
        if error.status is None and error.type is not None:
            error = replace(error, status=STATUS_BY_TYPE.get(error.type))
        rule = rule_for(error)
        sighting = Sighting(
            rule=rule.id,
            channel=channel,
            error_class=rule.error_class,
            is_evidence=rule.is_evidence,
            condemns=rule.condemns,
            trouble=_TROUBLE_BY_CLASS.get(rule.error_class),
            is_final=is_final,
            status=error.status,
        )
        return self._with_limit(sighting, error, rule)

    def _with_limit(self, sighting: Sighting, error: ApiError, rule: Rule) -> Sighting:
        if rule.error_class is ErrorClass.RATE_LIMIT:
            lowered = error.text.lower()
            named = next((limit for words, limit in LIMIT_BY_WORDS if words in lowered), None)
            resets_at = end_of_limit(error.text)
        elif self._limit is not None and error.status == 429:
            named = resets_at = None
            sighting = replace(sighting, rule="limit-event", error_class=ErrorClass.RATE_LIMIT)
        else:
            return sighting
        limit = self._limit or _Limit(named, resets_at)
        limit_type = limit.type or named
        return replace(
            sighting,
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
        word=frame.error,
        detail=frame.api_error,
        text=spoken.text,
    )


def _status(value: int | None) -> int | None:
    return value if value is not None and 100 <= value < 600 else None


def _version(text: str | None) -> tuple[int, ...] | None:
    numbers = (text or "").split("-")[0].split(".")
    return tuple(map(int, numbers)) if all(number.isascii() and number.isdigit() for number in numbers) else None
