"""
How a task gets its one answer, whatever happens to connections and supervisors in between.

The id makes it safe: what is not known is asked for again by it. A waiting POST is the quick way. When it is cut,
nothing is known but the id, so ``GET …/result`` is asked, which starts nothing; posting again is only right while the
supervisor has never heard of the task, because after a failure a POST begins a new attempt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from agent_runtime.client.failures import (
    ClientError,
    DeadlineExceeded,
    Interrupted,
    NotFound,
    ResultNotKept,
    TurnedAway,
    Unreachable,
    failure,
)
from agent_runtime.client.talk import (
    REPLY_SECONDS,
    Ask,
    NoReply,
    Patience,
    Pause,
    Reply,
    as_failure,
    ask,
    json_object,
    problem_of,
)

if TYPE_CHECKING:
    from agent_runtime.client.talk import Talk

HOLD_SECONDS = 300.0
"""How long a POST is waited for; then the result is asked for now and then, which no proxy or dead peer can hold up."""

LONGEST_WAIT_SECONDS = 2.0

_LOST = "requests are lost on the way"
_ANSWER_STATUS = 200
_ACCEPTED_STATUS = 202


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """
    What an execution that succeeded or was cancelled is answered with.

    Attributes:
        status: ``success`` or ``cancelled``.
        response: The CLI's final text.
        execution_log: Frames of the transcript; with *truncated_log* some in between were left out.
        metadata: Counts, cost, token generation: as in the HTTP interface.
    """

    execution_id: str
    status: str
    response: str | None = None
    session_id: str | None = None
    execution_log: list[dict[str, Any]] = msgspec.field(default_factory=list)
    truncated_log: bool = False
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    timestamp: str | None = None

    def __repr__(self) -> str:
        # Without the log, which may be long and full of what nobody wants in a traceback.
        return f"<Answer {self.execution_id} {self.status} {(self.response or '')[:80]!r}>"

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody ended it."""
        return self.status == "cancelled"


@dataclass(frozen=True, slots=True)
class Order:
    """
    A task to submit.

    Attributes:
        body: The same at every POST, or it would count as other work.
        is_known: The id is the caller's, so there may be an earlier answer under it.
        waits: For the answer; else only for admission.
        max_resumes: How often it is posted again after a shutdown interrupted it.
    """

    execution_id: str
    body: bytes = field(repr=False)
    is_known: bool
    waits: bool = True
    max_resumes: int = 3

    def post(self, patience: Patience) -> Ask:
        """Write the request that submits it."""
        headers = {"content-type": "application/json"}
        if not self.waits:
            headers["prefer"] = "respond-async"
        reply_seconds = patience.reply_seconds(HOLD_SECONDS if self.waits else REPLY_SECONDS)
        return Ask("POST", "/api/task", self.body, headers, reply_seconds)


# What an answer says about an execution.


@dataclass(frozen=True, slots=True)
class Ended:
    """
    It has ended.

    Attributes:
        mark: When, as the supervisor said; equal only for the same end. None: it did not say.
    """

    answer: Answer | None
    error: ClientError | None
    mark: str | None = None

    def is_same_end(self, other: Finding | None) -> bool:
        """Whether *other* is the end that was known before."""
        return isinstance(other, Ended) and self.mark == other.mark and type(self.error) is type(other.error)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """It is queued, runs or is parked."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The supervisor has never heard of it."""

    error: ClientError


@dataclass(frozen=True, slots=True)
class Rejected:
    """It was not admitted, for now."""

    error: TurnedAway


@dataclass(frozen=True, slots=True)
class Unclear:
    """
    Nobody said anything that can be understood.

    Attributes:
        may_have_arrived: The request may have been taken all the same.
    """

    reason: str
    may_have_arrived: bool = True


Finding = Ended | Unfinished | Unknown | Rejected | Unclear


def told_by_post(heard: Reply | NoReply) -> Finding:
    """Understand what came of a POST."""
    if isinstance(heard, NoReply):
        return Unclear(heard.reason, heard.was_sent)
    if heard.status_code == _ACCEPTED_STATUS:
        return Unfinished()
    if heard.status_code == _ANSWER_STATUS:
        answer = _answer(json_object(heard.body))
        return Unclear("its answer cannot be read") if answer is None else Ended(answer, None)
    error = as_failure(heard, "/api/task")
    if error is None:
        return Unclear(f"it is answered with {heard.status_code}")
    if isinstance(error, TurnedAway):
        return Rejected(error)
    if isinstance(error, ClientError):
        return Ended(None, error)
    raise error


def told_by_result(heard: Reply | NoReply, path: str) -> Finding:
    """
    Understand what came of asking for a result.

    Raises:
        ClientError: The question itself was turned down.
    """
    if isinstance(heard, NoReply):
        return Unclear(heard.reason)
    if heard.status_code == _ACCEPTED_STATUS:
        return Unfinished()
    if heard.status_code == _ANSWER_STATUS:
        return _kept(json_object(heard.body)) or Unclear("its answer cannot be read")
    error = as_failure(heard, path)
    if error is None:
        return Unclear(f"it is answered with {heard.status_code}")
    if isinstance(error, ResultNotKept):
        return Ended(None, error)
    if isinstance(error, NotFound):
        return Unknown(error)
    raise error


def _kept(content: dict[str, Any] | None) -> Ended | None:
    """Read a kept answer; None: it cannot be read."""
    if content is None or not isinstance(content.get("answer"), dict):
        return None
    status_code, body, mark = content.get("status_code"), content["answer"], content.get("retained_at")
    mark = mark if isinstance(mark, str) else None
    if status_code == _ANSWER_STATUS:
        answer = _answer(body)
        return None if answer is None else Ended(answer, None, mark)
    if not isinstance(status_code, int):
        return None
    return Ended(None, failure(problem_of(body, status_code)), mark)


def _answer(content: dict[str, Any] | None) -> Answer | None:
    try:
        return None if content is None else msgspec.convert(content, Answer)
    except msgspec.ValidationError:
        return None


def result_path(execution_id: str) -> str:
    """Name the place where the answer of an execution is kept."""
    return f"/api/executions/{quote(execution_id, safe='')}/result"


# The calls.


def submit(order: Order, patience: Patience) -> Talk[Answer | None]:
    """
    Get a task admitted, and wait for its one answer if the order says so.

    Returns:
        The answer; None where it has been admitted and the order does not wait.

    Raises:
        ProblemError: The execution failed, or was not let in.
        Unreachable: Nobody answered for too long.
        DeadlineExceeded: The caller's time is over, and the execution may well go on.
    """
    # What is there before the first POST is no answer to it.
    before: Finding | None = (yield from _look(order.execution_id, patience)) if order.is_known else None
    posts, was_admitted, resumes = True, False, 0
    outside: ClientError | None = None  # why it is certainly not admitted yet
    while True:
        if patience.left_seconds == 0:
            raise outside or DeadlineExceeded(order.execution_id)
        if posts:
            finding = told_by_post((yield from ask(order.post(patience))))
        else:
            finding = yield from _look_once(order.execution_id, patience)
        if isinstance(finding, Ended):
            if not posts and finding.is_same_end(before):
                posts = True  # the POST that was cut has not arrived
                yield from _pause(order.execution_id, patience, _LOST)
                continue
            if not isinstance(finding.error, Interrupted) or resumes >= order.max_resumes:
                return _outcome(finding) if order.waits else _admission(finding)
            resumes += 1
            patience.progressed()
            # Somebody else, or the supervisor itself at its start, may have resumed it already.
            before = finding if not posts else (yield from _look(order.execution_id, patience))
            posts = not isinstance(before, Unfinished)
            if isinstance(before, Ended) and not isinstance(before.error, Interrupted):
                return _outcome(before) if order.waits else _admission(before)
        elif isinstance(finding, Unfinished):
            if not order.waits:
                return None
            posts, was_admitted, outside = False, True, None
            patience.progressed()
            yield Pause(patience.wait_seconds(LONGEST_WAIT_SECONDS))
        elif isinstance(finding, Rejected):
            outside = finding.error
            yield from _pause(order.execution_id, patience, finding.error)
        elif isinstance(finding, Unknown):
            if was_admitted:
                raise finding.error  # its record is lost; to run it a second time is the caller's decision
            posts = True
            yield from _pause(order.execution_id, patience, _LOST)
        else:
            posts = posts and not finding.may_have_arrived
            outside = Unreachable(finding.reason, order.execution_id) if posts and not was_admitted else None
            yield from _pause(order.execution_id, patience, outside or finding.reason)


def result(execution_id: str, patience: Patience) -> Talk[Answer]:
    """
    Wait for the answer of an execution that was submitted before; starts nothing.

    Raises:
        NotFound: It is not known, or its answer is not kept.
        ProblemError: It failed.
        Unreachable: Nobody answered for too long.
        DeadlineExceeded: The caller's time is over.
    """
    while True:
        finding = yield from _look(execution_id, patience)
        if isinstance(finding, Ended):
            return _outcome(finding)
        if isinstance(finding, Unknown):
            raise finding.error
        if patience.left_seconds == 0:
            raise DeadlineExceeded(execution_id)
        patience.progressed()
        yield Pause(patience.wait_seconds(LONGEST_WAIT_SECONDS))


def _look(execution_id: str, patience: Patience) -> Talk[Finding]:
    """Ask for the result until somebody says what is known of it."""
    while isinstance(finding := (yield from _look_once(execution_id, patience)), Unclear):
        yield from _pause(execution_id, patience, finding.reason)
    return finding


def _look_once(execution_id: str, patience: Patience) -> Talk[Finding]:
    path = result_path(execution_id)
    heard = yield from ask(Ask("GET", path, reply_seconds=patience.reply_seconds(REPLY_SECONDS)))
    return told_by_result(heard, path)


def _outcome(ended: Ended) -> Answer:
    if ended.answer is not None:
        return ended.answer
    assert ended.error is not None, "an end without an answer has an error"  # noqa: S101 - so is it built
    raise ended.error


def _admission(ended: Ended) -> Answer | None:
    """Take an execution that has ended already for admitted; what was not let in raises."""
    if ended.mark is None and ended.error is not None:
        raise ended.error
    return ended.answer


def _pause(execution_id: str, patience: Patience, trouble: ClientError | str) -> Talk[None]:
    """
    Let time pass after trouble, or give up.

    Args:
        trouble: What to raise then; a reason where it is not known whether the task was admitted.
    """
    retry_after_seconds = trouble.retry_after_seconds if isinstance(trouble, TurnedAway) else None
    seconds = patience.pause_seconds(retry_after_seconds)
    if seconds is not None:
        yield Pause(seconds)
    elif isinstance(trouble, ClientError):
        raise trouble
    elif patience.left_seconds == 0:
        raise DeadlineExceeded(execution_id)
    else:
        raise Unreachable(trouble, execution_id)
