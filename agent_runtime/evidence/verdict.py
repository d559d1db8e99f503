"""Decide how an attempt ended: one pure function, called once after its streams have ended."""

from __future__ import annotations

import math
import signal
from datetime import UTC, datetime

import msgspec

from agent_runtime.claude.last_words import Cause, cause, most_informative, presentable
from agent_runtime.claude.run_answer import Result
from agent_runtime.errors import GO_ON, ErrorClass
from agent_runtime.evidence.detector import Detection
from agent_runtime.model.state import CLASS_BY_STOP, CLASS_BY_TROUBLE, STALLS, Outcome, StopReason, TokenTrouble

_CLASS_BY_SUBTYPE = {
    "error_max_turns": ErrorClass.MAX_TURNS,
    "error_max_budget_usd": ErrorClass.MAX_BUDGET,
    "error_max_structured_output_retries": ErrorClass.SCHEMA,
}
_NO_ANSWER_SUBTYPE = "error_during_execution"

_DISCARDS_THE_ANSWER = {StopReason.REFUSED, StopReason.PERMISSION_MODE, StopReason.AGENT_MISSING}
"""Stop reasons after which an answer does not count: it is worthless, or a further attempt follows."""

_LONGEST_NAME = 100
_REFUSAL = "refusal"
_DECLINED = "the model declined to answer"
_WORDS_BY_STOP = {
    StopReason.PERMISSION_MODE: {
        "more": "the CLI does not run in the permission mode asked for: permissions.disableBypassPermissionsMode in a "
        "settings file of the workspace, the config directory or the image does that"
    },
    StopReason.AGENT_MISSING: {
        "fact": "agent or agents: the CLI does not have each agent that they name",
        "remedy": "correct these fields",
    },
}
_OTHER_PROCESSOR = "this processor lacks an instruction that it needs: take a build for older ones, or another host"
_NO_CAUSE = Cause("")

_CRASHES = frozenset(
    {signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGSYS}
)
"""Signals that a process causes itself."""

_SHELL_SIGNAL_OFFSET = 128
"""A shell or wrapper whose child died of a signal exits with the signal's number plus this."""

_LAST_STANDARD_SIGNAL = 31
_NOT_STARTED_CODES = {126, 127}
"""Exit codes of a shell or ``env`` for a command that cannot be executed or was not found."""

BLOCKED_SENTENCE = (
    "the account is blocked (on hold, disabled, or with terms to accept); have its owner clear that up, or write "
    "another account's token to the secret file"
)


class Ending(msgspec.Struct, frozen=True):
    """
    All facts from which the verdict is reached.

    Attributes:
        exit_code: As :attr:`subprocess.Popen.returncode`; negative: killed by that signal; None: not known.
        result: The CLI's last ``result`` frame, if one was read.
        stop_reason: The first reason for which the attempt was stopped; None: it was not.
        last_error: The last API error that the CLI reported, unless the model continued after it.
        evidence: With stop reason ``refused``: the detection that stopped the attempt.
        began: The CLI printed its ``init`` frame.
        last_words: The most informative of the last messages for a person on stderr.
        request_fault: A fault of the task at which some versions of the CLI end silently.
        oom: The kernel killed a process for lack of memory, by its counter of this attempt's processes.
        oom_nearby: The same, by its counter of the whole container, while this attempt and others ran.
        lost_a_tool: A tool of the attempt was killed by SIGKILL.
        needs_structure: The task has a schema, so an answer is one only with a structured output.
        is_command: The task's message is one of the CLI's own commands, whose answer may be empty.
        hook: The name of a hook of the CLI that had begun and not ended.
    """

    exit_code: int | None
    result: Result | None = None
    stop_reason: StopReason | None = None
    last_error: Detection | None = None
    evidence: Detection | None = None
    began: bool = True
    last_words: str | None = None
    request_fault: str | None = None
    oom: bool = False
    oom_nearby: bool = False
    lost_a_tool: bool = False
    needs_structure: bool = False
    is_command: bool = False
    hook: str | None = None

    @property
    def is_answered(self) -> bool:
        """Whether there is an answer, no matter how the attempt ended."""
        result = self.result
        if result is None or result.is_error or result.stop_reason == _REFUSAL:
            return False
        if self.needs_structure:
            return result.structured_output is not None
        return result.text is not None or self.is_command

    @property
    def signal_number(self) -> int | None:
        """The number of the signal that ended the CLI, also if a wrapper's exit code reports it; None: no signal."""
        code = self.exit_code or 0
        number = -code if code < 0 else code - _SHELL_SIGNAL_OFFSET
        return number if code < 0 or 0 < number <= _LAST_STANDARD_SIGNAL else None

    @property
    def ran_out_of_memory(self) -> bool:
        """
        Whether the kernel killed a process of this attempt for lack of memory.

        The container's counter may be about another execution: it counts only if SIGKILL ended a process of this one.
        """
        lost_one = self.lost_a_tool or self.signal_number == signal.SIGKILL
        return self.oom or (self.oom_nearby and lost_one)


class Verdict(msgspec.Struct, frozen=True):
    """
    How an attempt ended, and the error for the caller.

    Attributes:
        detail: A sentence for the caller. It has no words at which backends switch the token, unless the class means
            that they should.
    """

    outcome: Outcome
    error_class: ErrorClass | None = None
    detail: str | None = None


def verdict(ending: Ending) -> Verdict:
    """
    Decide how an attempt ended.

    An answer is a success, no matter how the attempt ended after it, except after the few stop reasons that discard the
    answer. Without an answer a stop reason wins over the exit code: a process that answers SIGINT with exit code 0 was
    still stopped. The exit code decides only if nothing else was observed, because old versions of the CLI exit with 0
    on every failure. The cause of the process's death overrides an earlier API error only if it is lack of memory. A
    tool that runs out of memory does not end an attempt: the agent may choose another way and succeed.
    """
    reason = ending.stop_reason
    if ending.is_answered and reason not in _DISCARDS_THE_ANSWER:
        return Verdict(Outcome.SUCCESS)
    if reason is StopReason.TIMEOUT or reason in STALLS:
        # After a cut by the relay the CLI reports the broken connection, not the silence that was the reason.
        last_error = None if reason is StopReason.RELAY_TIMEOUT else ending.last_error
        why = f"stopped by {reason}"
        if reason is StopReason.INIT_TIMEOUT:
            why = "no system/init came within AGENT_RUNTIME_INIT_TIMEOUT"
            hook = ending.hook
            if hook is not None and len(hook) <= _LONGEST_NAME and presentable(hook) == hook:
                why = f"{why} while the hook {hook} ran"
        return _failed(last_error.rule.error_class if last_error else CLASS_BY_STOP[reason], why)
    if reason is StopReason.REFUSED and ending.evidence is not None:
        return _failed(ending.evidence.rule.error_class)
    if reason in CLASS_BY_STOP:
        return _failed(CLASS_BY_STOP[reason], **_WORDS_BY_STOP.get(reason, {}))
    if ending.result is not None:
        return _for_failed_result(ending, ending.result)
    return _for_missing_result(ending)


def _for_failed_result(ending: Ending, result: Result) -> Verdict:
    """Decide how an attempt ended whose ``result`` frame holds no answer."""
    if result.stop_reason == _REFUSAL:
        return _failed(ErrorClass.INVALID_REQUEST, (result.text if result.is_error else None) or _DECLINED)
    if not result.is_error:
        if ending.needs_structure and result.text is not None:
            return _failed(ErrorClass.SCHEMA)
        return _failed(ErrorClass.LOST_RESULT, "its result is empty")
    if result.subtype in _CLASS_BY_SUBTYPE:
        return _failed(_CLASS_BY_SUBTYPE[result.subtype])
    lines = (result.text or "").splitlines()
    words = most_informative(lines) if len(lines) > 1 else result.text
    why = cause(words or "")
    if len(lines) > 1 and why is None:
        words = lines[0].rstrip()
    if ending.last_error is not None and ending.last_error.rule.error_class is not ErrorClass.ERROR:
        return _failed(ending.last_error.rule.error_class, words, advice=ending.last_error.rule.advice)
    if result.subtype == _NO_ANSWER_SUBTYPE and result.text is None and not ending.ran_out_of_memory:
        return _failed(ErrorClass.LOST_RESULT, "it reports neither an answer nor an error")
    if why is not None and result.subtype != "success":  # it is one of the ``errors``, and there is no answer
        is_oom = why.error_class is ErrorClass.OOM
        if is_oom or why.remedy:
            return _failed(ErrorClass.OOM if is_oom else ErrorClass.ERROR, words, remedy=why.remedy)
    return _failed(ErrorClass.OOM if ending.ran_out_of_memory else ErrorClass.ERROR, words)


def _for_missing_result(ending: Ending) -> Verdict:
    """Decide how an attempt ended whose process printed no ``result`` frame."""
    number, words = ending.signal_number, ending.last_words
    why = cause(words or "") or _NO_CAUSE
    is_oom, remedy = why.error_class is ErrorClass.OOM, why.remedy
    if ending.ran_out_of_memory and (number == signal.SIGKILL or ending.exit_code is None):
        return _failed(ErrorClass.OOM)  # the CLI itself, also in the middle of its retries
    if ending.last_error is not None and not (is_oom and number is not None):
        return _failed(ending.last_error.rule.error_class, advice=ending.last_error.rule.advice)
    if is_oom or (ending.ran_out_of_memory and not (why.error_class or remedy)):
        return _failed(ErrorClass.OOM, words, remedy=remedy)
    if not ending.began and why.error_class is ErrorClass.INVALID_REQUEST:
        return _failed(why.error_class, words, fact="the CLI did not accept the request", remedy=remedy)
    if not ending.began and words is None and ending.request_fault is not None:
        fact = "the CLI ended before it had begun, as older versions do without a word"
        return _failed(ErrorClass.INVALID_REQUEST, ending.request_fault, fact=fact)
    how = _describe_exit(ending.exit_code, number)
    more = f"{how}: {words}" if words else how
    is_crash = number in _CRASHES
    is_fault_of_the_cli = is_crash or ending.exit_code in _NOT_STARTED_CODES or why.error_class is ErrorClass.SPAWN
    if not ending.began and is_fault_of_the_cli:
        return _failed(ErrorClass.SPAWN, more, remedy=_OTHER_PROCESSOR if number == signal.SIGILL else remedy)
    if is_crash:
        return _failed(ErrorClass.SIGNAL, more, fact="the CLI crashed", remedy=remedy)
    if number is not None:
        return _failed(ErrorClass.SIGNAL, more)
    if ending.began:
        return _failed(ErrorClass.LOST_RESULT, more, remedy=remedy)
    remedy = remedy or ("look at what it says" if words else "run it by hand in this container to see why")
    return _failed(ErrorClass.LOST_RESULT, more, fact="the CLI ended before it had begun", remedy=remedy)


def token_verdict(trouble: TokenTrouble) -> Verdict:
    """Return the verdict for a token that is in trouble."""
    error_class = CLASS_BY_TROUBLE[trouble]
    sentence = BLOCKED_SENTENCE if trouble is TokenTrouble.BLOCKED else error_class.sentence
    return Verdict(Outcome.FAILED, error_class, sentence)


def limit_sentence(resets_at: float | None) -> str:
    """Return the sentence for a usage limit, with its end (epoch seconds) if that is known."""
    try:
        # Rounded up to a whole minute: in the minute before it the limit still holds.
        end = None if resets_at is None else datetime.fromtimestamp(math.ceil(resets_at / 60) * 60, UTC)
    except (OverflowError, ValueError, OSError):
        end = None
    if end is None:
        return ErrorClass.RATE_LIMIT.sentence
    return ErrorClass.RATE_LIMIT.sentence.replace(" is reached;", f" is reached until {end:%Y-%m-%d %H:%M} UTC;")


def _failed(
    error_class: ErrorClass, more: str | None = None, *, advice: str | None = None, fact: str = "", remedy: str = ""
) -> Verdict:
    """
    Build the verdict of a failure from the sentence of its class.

    Args:
        more: Text to append, if it can be shown.
        advice: Replaces the whole sentence.
        fact: Replaces the first half of the sentence, which says what happened.
        remedy: Replaces the second half, which says what to do.
    """
    outcome = Outcome.CANCELLED if error_class is ErrorClass.CANCELLED else Outcome.FAILED
    if advice is not None:
        return Verdict(outcome, error_class, advice)
    usual_fact, _, usual_remedy = error_class.sentence.partition("; ")
    sentence = "; ".join(filter(None, (fact or usual_fact, remedy or usual_remedy)))
    if more and not error_class.cured_by_token:
        shown = presentable(more)
        if shown == more or cause(more) is not None:
            sentence = f"{sentence}: {shown}"
    return Verdict(outcome, error_class, sentence)


UNSTARTED: dict[StopReason, Verdict] = {
    StopReason.TIMEOUT: Verdict(Outcome.FAILED, ErrorClass.TIMEOUT, "the timeout was over while the execution waited"),
    StopReason.CANCELLED: _failed(ErrorClass.CANCELLED),
    StopReason.SHUTDOWN: _failed(ErrorClass.INTERRUPTED),
}
"""The verdict on an execution that is stopped while it waits, by the stop reason."""


def without_repeated_advice(detail: str | None, error_class: ErrorClass | None, before: str | None) -> str | None:
    """
    Return the detail of an execution that has ended before: if it ended in the same way, without the advice to go on.

    Args:
        detail: The detail of the new :class:`Verdict`.
        before: The detail with which the same execution ended the last time; None: it had not ended before.
    """
    if detail is None or before is None or error_class not in (ErrorClass.LOST_RESULT, ErrorClass.SIGNAL):
        return detail
    warned = detail.replace(GO_ON, "it ended so the last time, too: sending it once more is not likely to help")
    return warned if before in (detail, warned) else detail


def _describe_exit(exit_code: int | None, number: int | None) -> str:
    if exit_code is None:
        return "exit code unknown"
    code = f"exit code {exit_code}"
    if number is None:
        return code
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return name if exit_code < 0 else f"{code} ({name})"
