"""
Detect API errors in an attempt's lines: refused tokens, limits, overload, network.

There are two channels. On stderr every version of the CLI reports every API error with the status and the API's own
body (``--debug-to-stderr``). On stdout newer versions print frames for retries and for giving up. One channel qualifies
the other: a frame says ``authentication_failed`` for any 403, and only the body on stderr distinguishes a revoked token
from a gateway's quota.

Text of a tool, a model, a prompt, an MCP server or a sub-agent's conversation is never evidence.

Source: ``tests/recorded/``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from agent_runtime.claude.frames import SYNTHETIC_MODEL, Frame
from agent_runtime.claude.log_entries import LogEntry
from agent_runtime.claude.run_stats import version_in
from agent_runtime.errors import ErrorClass
from agent_runtime.evidence.api_errors import STATUS_BY_TYPE, ApiError, error_in_entry, error_in_sentence
from agent_runtime.evidence.matching import Rule, names_another_model
from agent_runtime.evidence.phrases import LIMIT_BY_WORDS, MODEL_BY_LIMIT
from agent_runtime.evidence.reset_times import end_of_limit
from agent_runtime.evidence.rules import rule_for

_STATUSES_BY_WORD: dict[str | None, set[int | None]] = {
    "authentication_failed": {401, 403},
    "oauth_org_not_allowed": {401, 403},
    "rate_limit": {429},
    "billing_error": {400, 402, 403, 429},
    "model_not_found": {400, 403, 404},
}
"""Possible HTTP statuses for the word of a frame that has no status. Source: Claude Code 2.1.30 to 2.1.332."""

_WITHOUT_REQUEST = frozenset({"authentication_failed", "oauth_org_not_allowed"})
"""Words that the CLI also uses without having made a request: "Not logged in"."""

_LIMIT = Rule("limit-event", ErrorClass.RATE_LIMIT)

_SAME_LENGTH = 60
_PLAIN_WORD = r"[A-Za-z_][A-Za-z0-9_]{,39}"

QUOTES_NEWLINES_SINCE = (2, 1, 114)
"""
From this version on no entry of the CLI's debug log spans several lines, also while it starts.

Source: 1.0.128, 2.0.76 and 2.1.30 write entries as they are until the first prompt; 2.1.114 and 2.1.330 quote them.
"""


class Channel(StrEnum):
    """Where an error was reported: by the CLI on one of its streams, or by the API to the relay."""

    STDOUT = "stdout"
    STDERR = "stderr"
    WIRE = "wire"


class Detection(msgspec.Struct, frozen=True):
    """
    An API error that the CLI or the relay reported.

    Attributes:
        rule: The rule that recognised it.
        channel: Where the error was reported.
        is_final: The CLI has given up; false for its retries.
        may_condemn: False: this report is no proof of what the API says, whatever the rule.
        status: The HTTP status, if known.
        limit_type: The usage limit in the API's words, such as ``five_hour``.
        resets_at: When the limit ends, epoch seconds.
    """

    rule: Rule
    channel: Channel
    is_final: bool = False
    may_condemn: bool = True
    status: int | None = None
    limit_type: str | None = None
    resets_at: float | None = None

    @classmethod
    def of_limit(
        cls, rule: Rule, channel: Channel, limit_type: str | None, resets_at: float | None, *, is_final: bool = False
    ) -> Detection:
        """
        Build the detection of a usage limit that the API itself names.

        Args:
            limit_type: The API's name of the limit; a text that is not a plain word becomes ``other``.
            resets_at: When the limit ends, epoch seconds; None: unknown.
        """
        if limit_type is not None and not re.fullmatch(_PLAIN_WORD, limit_type):
            limit_type = "other"
        return cls(rule, channel, is_final, status=429, limit_type=limit_type, resets_at=resets_at)

    @property
    def condemns(self) -> bool:
        """Whether the error may count against the generation; false for reports of the CLI alone: "Not logged in"."""
        return self.rule.condemns and self.may_condemn

    @property
    def limit_model(self) -> str | None:
        """The model of the limit; None: the whole account."""
        return MODEL_BY_LIMIT.get(self.limit_type or "")

    def merged_with(self, earlier: Detection | None) -> Detection:
        """
        Return this detection, combined with or replaced by *earlier* where that says more about the same failure.

        The channels are read in any order, so a line about a retry may follow the frame of giving up.
        """
        if earlier is None or self.rule.is_evidence:
            return self
        if self.rule.error_class is ErrorClass.ERROR or (earlier.is_final and not self.is_final):
            return earlier
        is_throttle = self.rule.error_class is ErrorClass.OVERLOADED
        if earlier.rule.error_class is not ErrorClass.RATE_LIMIT or not (is_throttle or self.rule.trouble):
            return self
        return replace(
            self,
            rule=earlier.rule if is_throttle else self.rule,
            limit_type=self.limit_type or earlier.limit_type,
            resets_at=self.resets_at or earlier.resets_at,
        )


class Detector:
    """
    Detect the API errors that the CLI reports in one attempt's lines, which must be passed once each and in order.

    It never raises, whatever the bytes. A line about anything else costs a few microseconds.

    Args:
        now: Returns the time in epoch seconds; the ends of limits are computed from it.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._starting = True
        self._foreign_since: str | None = None
        self._logged: ApiError | None = None
        self._logged_side_request = False
        self._given_up: tuple[str, ApiError] | None = None
        self._limit: Detection | None = None
        self._models: set[str] = set()
        self._model_has_spoken = False

    def stderr(self, entry: LogEntry, *, finished: bool = True) -> Detection | None:
        """
        Return the API error that a line of stderr reports; None: it reports none, or none that counts.

        While the CLI starts, older versions copy the output of MCP servers as it is, newlines included, so a foreign
        line can have the form of an API error. Such a line counts only if its time is later than that of the MCP
        server's entry, or if the CLI has written an entry of its own in between.

        The refusal of one model is ignored if it is not the run's model, or if that cannot be decided and the run's
        model has answered before: then a sub-agent made the request, or the CLI did with a small model. Frames report
        the run's own request as well.

        Args:
            finished: The newline has arrived. An unfinished line counts only with a whole body and the error's type,
                because no continuation can change these.
        """
        error = error_in_entry(entry)
        if error is None:
            if self._starting and finished and entry.level:
                self._foreign_since = entry.time if entry.may_be_continued else None
                self._starting = entry.may_be_continued or not entry.is_of_the_prompt
            return None
        if not finished and (error.type is None or not error.is_whole):
            return None
        if self._foreign_since is not None and not "" < self._foreign_since < entry.time:
            return None
        detection = self._detection(error, Channel.STDERR, is_final=False)
        is_side_request = detection.rule.error_class is ErrorClass.MODEL and self._is_side_request(error)
        if finished:
            self._logged, self._logged_side_request = error, is_side_request
        return None if is_side_request else detection

    def stdout(self, frame: Frame) -> Detection | None:
        """Return the API error that a frame of stdout reports; None: it reports none."""
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

    # -- stdout

    def _system(self, frame: Frame) -> Detection | None:
        if frame.subtype == "init":
            if frame.model is not None:
                self._models.add(frame.model)
            version = version_in(frame.claude_code_version)
            if version is not None and version >= QUOTES_NEWLINES_SINCE:
                self._starting = False
                self._foreign_since = None
        elif frame.subtype == "api_retry":
            error = ApiError(status=_status(frame.error_status), word=frame.error)
            if error.status is None and error.word in {None, "unknown", "authentication_failed"}:
                error = replace(error, word=None, text="API Error: Connection error.")  # there was no answer
            return self._detection(self._with_logged_details(error), Channel.STDOUT, is_final=False)
        return None

    def _assistant(self, frame: Frame) -> Detection | None:
        message = frame.message
        if message is None or message.model is None:
            return None
        if message.model != SYNTHETIC_MODEL:
            # The model continues: an earlier error is over.
            self._logged = self._given_up = None
            self._models.add(message.model)
            self._model_has_spoken = True
            return None
        if frame.error is None:
            return None
        error = self._with_logged_details(_error_in_frame(frame, frame.text))
        self._given_up = (frame.text, error)
        return self._detection(error, Channel.STDOUT, is_final=True)

    def _result(self, frame: Frame) -> Detection | None:
        if not frame.is_error or frame.subtype == "error_max_turns":
            return None
        # Not its ``errors``: they hold everything that the CLI has logged, even an MCP server's 401.
        error = _error_in_frame(frame, frame.result or "")
        if self._given_up is not None and frame.result == self._given_up[0]:
            # The same failure again, without the word and, in older versions, without the other fields.
            earlier = self._given_up[1]
            error = replace(earlier, status=error.status or earlier.status, type=error.type or earlier.type)
        else:
            error = self._with_logged_details(error)
        detection = self._detection(error, Channel.STDOUT, is_final=True)
        if frame.api_error_status is None:
            # Only a sentence: true or not, it is not the API's own word.
            detection = replace(detection, may_condemn=False)
        return detection

    def _rate_limit(self, frame: Frame) -> Detection | None:
        info = frame.rate_limit_info
        if info is None:
            return None
        if info.status != "rejected" or info.is_using_overage:
            self._limit = None
            return None
        if info.rate_limit_type is None and info.resets_at is None:
            return None  # a throttle: it names neither a limit nor its end
        self._limit = Detection.of_limit(_LIMIT, Channel.STDOUT, info.rate_limit_type, info.resets_at)
        return self._limit

    # -- both

    def _with_logged_details(self, error: ApiError) -> ApiError:
        """Add what stderr reported about the same error and the frame omits."""
        logged = self._logged
        if logged is None or error.type not in {None, logged.type}:
            return error
        statuses = {error.status}
        if error.status is None:
            is_uncertain = self._logged_side_request and error.word in _WITHOUT_REQUEST
            statuses = set() if is_uncertain else _STATUSES_BY_WORD.get(error.word, set())
        if logged.status not in statuses or not _may_be_same(error.message, logged.message):
            return error
        text = f"{error.text} \u00b7 {logged.text}"
        return replace(
            error, status=logged.status, type=logged.type, code=logged.code, text=text, message=logged.message
        )

    def _is_side_request(self, error: ApiError) -> bool:
        """Whether the refusal of a model is not about the run's own request."""
        another = names_another_model(error.message or error.text, self._models)
        return self._model_has_spoken if another is None else another

    def _detection(self, error: ApiError, channel: Channel, *, is_final: bool) -> Detection:
        if error.status is None and error.type is not None:
            error = replace(error, status=STATUS_BY_TYPE.get(error.type))
        rule, limit = rule_for(error), self._limit
        detection = Detection(rule, channel, is_final, status=error.status)
        if rule.error_class is ErrorClass.RATE_LIMIT:
            lowered = error.text.lower()
            named = next((limit_type for words, limit_type in LIMIT_BY_WORDS if words in lowered), None)
            resets_at = end_of_limit(error.text, self._now())
            if limit is not None:
                named, resets_at = limit.limit_type or named, limit.resets_at or resets_at
            return replace(detection, limit_type=named, resets_at=resets_at)
        if limit is not None and error.status == 429 and not rule.is_evidence:
            return replace(limit, channel=channel, is_final=is_final)
        return detection


def _error_in_frame(frame: Frame, text: str) -> ApiError:
    """Build the error of a frame that reports giving up; missing fields are read from its sentence *text*."""
    sentence = error_in_sentence(text)
    return ApiError(
        status=_status(frame.api_error_status) or sentence.status,
        type=frame.api_error_type or sentence.type,
        code=frame.api_error_code or sentence.code,
        word=frame.error,
        detail=frame.api_error,
        text=sentence.text,
        message=sentence.message,
    )


def _may_be_same(shown: str | None, logged: str | None) -> bool:
    """Whether the message *shown* in a frame may be the one *logged* on stderr; true if either is missing."""
    begin = (shown or "").strip()[:_SAME_LENGTH]
    return not begin or not logged or begin in logged or logged.strip()[:_SAME_LENGTH] in (shown or "")


def _status(value: int | None) -> int | None:
    return value if value is not None and 100 <= value < 600 else None
