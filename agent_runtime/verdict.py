"""How an attempt ended: decided once, by one pure function, after its streams have ended."""

from __future__ import annotations

import math
import signal
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from agent_runtime.errors import SWITCHING_CLASSES, ErrorClass, is_reserved
from agent_runtime.state import CLASS_BY_STOP, CLASS_BY_TROUBLE, STALLS, Outcome, StopReason, TokenTrouble

if TYPE_CHECKING:
    from agent_runtime.evidence import Sighting

_MAX_TURNS_SUBTYPE = "error_max_turns"

SENTENCES: dict[ErrorClass, str] = {
    ErrorClass.AUTH: "the API refused the token (401 or a revoked credential); write a new one to the secret file",
    ErrorClass.BILLING: "the account's credit balance is exhausted; switch to another subscription or add funds",
    ErrorClass.RATE_LIMIT: "the account's usage limit is reached; write another account's token, or wait for the reset",
    ErrorClass.OVERLOADED: "the API is overloaded or throttling; try again later",
    ErrorClass.UPSTREAM: "the API failed; try again later",
    ErrorClass.NETWORK: "the API could not be reached; look at the network, the proxy and ANTHROPIC_BASE_URL",
    ErrorClass.LOST_RESULT: "the CLI ended without a result; send the same execution_id again to go on",
    ErrorClass.TIMEOUT: "the execution took longer than its timeout; give it more with timeout_seconds",
    ErrorClass.STALLED: "the CLI showed no sign of life for too long; send it again, or raise the idle timeouts",
    ErrorClass.MAX_TURNS: "the execution took more turns than max_turns allows; raise it, or divide the task",
    ErrorClass.MAX_OUTPUT: "the model wrote up to its limit; ask for less at once, or send it again to go on",
    ErrorClass.MODEL: "the model is unknown or not supported; name another in the field model",
    ErrorClass.INVALID_REQUEST: "the API did not accept the request; change the task before it is sent again",
    ErrorClass.SIGNAL: "the CLI was killed by a signal from elsewhere; send the same execution_id again to go on",
    ErrorClass.OOM: "the CLI or one of its tools ran out of memory; give it more, or run fewer at once",
    ErrorClass.INTERRUPTED: "the supervisor was shut down; send the same execution_id again to go on with the session",
    ErrorClass.ERROR: "the CLI reported an error; its stream says more",
    ErrorClass.CANCELLED: "the execution was cancelled",
}

BLOCKED_SENTENCE = (
    "the account is blocked (on hold, disabled, or with terms to accept); have its owner clear that up, or write "
    "another account's token to the secret file"
)


class Result(msgspec.Struct, frozen=True):
    """
    What the CLI's last ``result`` frame says.

    Attributes:
        subtype: ``success`` on every kind of failure too, so only ``error_max_turns`` is ever read from it.
        text: The answer, or the CLI's own words about what failed.
    """

    is_error: bool
    subtype: str | None
    text: str | None


class Ending(msgspec.Struct, frozen=True):
    """
    Everything the verdict is reached from.

    Attributes:
        exit_code: As :attr:`subprocess.Popen.returncode`; negative: killed by that signal; None: not known.
        result: The CLI's last ``result`` frame, if one was read.
        stop_reason: The first reason that anybody gave for ending it, if any.
        last_error: The last API error the CLI reported after which the model gave no sign any more.
        evidence: What the attempt was stopped for, with ``refused``.
        last_words: The last thing the CLI told a person on stderr.
        oom: The kernel killed something of the attempt for want of memory, as it has counted itself.
    """

    exit_code: int | None
    result: Result | None = None
    stop_reason: StopReason | None = None
    last_error: Sighting | None = None
    evidence: Sighting | None = None
    last_words: str | None = None
    oom: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """
    How an attempt ended, and what the caller is told.

    Attributes:
        detail: A sentence that holds none of the words backends act on, unless the class means them.
    """

    outcome: Outcome
    error_class: ErrorClass | None = None
    detail: str | None = None


def verdict(ending: Ending) -> Verdict:
    """
    Decide how an attempt ended.

    A stop reason wins over the exit code: a process that answers SIGINT with exit code 0 was still stopped. The class
    is decided from what was observed, never from an exit code: old versions of the CLI exit with 0 on every failure.
    A tool that ran out of memory is not the end of an attempt: the agent may go about it differently and succeed.
    """
    reason = ending.stop_reason
    if reason is StopReason.CANCELLED:
        return Verdict(Outcome.CANCELLED, ErrorClass.CANCELLED, SENTENCES[ErrorClass.CANCELLED])
    if reason is StopReason.TIMEOUT or reason in STALLS:
        seen = ending.last_error.error_class if ending.last_error else None
        return _failed(seen or CLASS_BY_STOP[reason], f"stopped by {reason}")
    if reason is StopReason.REFUSED and ending.evidence is not None:
        return _failed(ending.evidence.error_class)
    if reason in CLASS_BY_STOP:
        return _failed(
            CLASS_BY_STOP[reason],
            "permission mode is not the one asked for" if reason is StopReason.PERMISSION_MODE else None,
        )
    if ending.result is not None:
        if not ending.result.is_error:
            return Verdict(Outcome.SUCCESS)
        if ending.result.subtype == _MAX_TURNS_SUBTYPE:
            return _failed(ErrorClass.MAX_TURNS)
        if ending.last_error is None and ending.oom:
            return _failed(ErrorClass.OOM, ending.result.text)
        if ending.last_error is None:
            return _failed(ErrorClass.ERROR, ending.result.text)
        return _failed(ending.last_error.error_class, ending.result.text, advice=ending.last_error.advice)
    if ending.oom and ending.exit_code in (-signal.SIGKILL, None):
        return _failed(ErrorClass.OOM)  # the CLI itself, also in the middle of its retries
    if ending.last_error is not None:
        return _failed(ending.last_error.error_class, advice=ending.last_error.advice)
    if ending.oom:
        return _failed(ErrorClass.OOM)
    if ending.exit_code is not None and ending.exit_code < 0:
        return _failed(ErrorClass.SIGNAL, _signal_name(-ending.exit_code))
    code = "exit code unknown" if ending.exit_code is None else f"exit code {ending.exit_code}"
    return _failed(ErrorClass.LOST_RESULT, f"{code}: {ending.last_words}" if ending.last_words else code)


def token_verdict(trouble: TokenTrouble) -> Verdict:
    """Tell the caller what is wrong with the token."""
    error_class = CLASS_BY_TROUBLE[trouble]
    sentence = BLOCKED_SENTENCE if trouble is TokenTrouble.BLOCKED else SENTENCES[error_class]
    return Verdict(Outcome.FAILED, error_class, sentence)


def limit_sentence(resets_at: float | None) -> str:
    """Say that a usage limit is reached, and until when (epoch seconds) where that is known: a person reads it."""
    try:
        # The whole minute after it: at the one before, the limit would still last.
        end = None if resets_at is None else datetime.fromtimestamp(math.ceil(resets_at / 60) * 60, UTC)
    except (OverflowError, ValueError, OSError):
        end = None
    if end is None:
        return SENTENCES[ErrorClass.RATE_LIMIT]
    return SENTENCES[ErrorClass.RATE_LIMIT].replace(" is reached;", f" is reached until {end:%Y-%m-%d %H:%M} UTC;")


def _failed(error_class: ErrorClass, more: str | None = None, *, advice: str | None = None) -> Verdict:
    if advice is not None:
        return Verdict(Outcome.FAILED, error_class, advice)  # what the CLI makes of it is beside the point then
    sentence = SENTENCES[error_class]
    more = (more or "").partition("\n")[0].rstrip()
    if more and error_class not in SWITCHING_CLASSES and is_plain(more):
        sentence = f"{sentence}: {more}"
    return Verdict(Outcome.FAILED, error_class, sentence)


def is_plain(text: str) -> bool:
    """Whether *text* may be shown in an error: short, one line, and without a word that backends act on."""
    return len(text) <= 300 and text.isprintable() and not is_reserved(text)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
