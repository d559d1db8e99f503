"""
Sessions of the CLI: which one each attempt of an execution runs in, and which execution uses which.

A session is a file of the CLI that holds a conversation. A resumed session does not repeat work that is finished in it.
Two processes that write to one session at once lose each other's work.
"""

from __future__ import annotations

import uuid
from enum import Enum

from agent_runtime.claude.invocation import CONTINUE_PROMPT, Session
from agent_runtime.errors import ErrorClass
from agent_runtime.evidence.verdict import Verdict
from agent_runtime.execution.attempt_data import AttemptReport
from agent_runtime.model.records import ExecutionRecord
from agent_runtime.model.state import Outcome
from agent_runtime.model.task import Task


class SessionTrouble(Enum):
    """Why a resumed session cannot be used any longer."""

    UNKNOWN = "unknown"
    """The CLI knows no such session."""
    REFUSED = "refused"
    """The API refuses the session's history, or the CLI cannot read it."""


class SessionUse:
    """
    Assign sessions to executions: one execution at a time uses a session, in the order of the claims.

    All methods run on the event loop's thread.
    """

    def __init__(self) -> None:
        self._claims: dict[str, list[str]] = {}

    def __repr__(self) -> str:
        return f"<SessionUse of {len(self._claims)}>"

    def is_claimed(self, session_id: str | None) -> bool:
        """Whether an execution uses the session, or waits for it."""
        return session_id in self._claims

    def claim(self, session_id: str, execution_id: str) -> None:
        """Queue an execution for a session; a second claim does nothing."""
        claims = self._claims.setdefault(session_id, [])
        if execution_id not in claims:
            claims.append(execution_id)

    def has_turn(self, session_id: str | None, execution_id: str) -> bool:
        """Whether it is the execution's turn with a session it has claimed; without a session it always is."""
        return session_id is None or self._claims.get(session_id, [execution_id])[0] == execution_id

    def release(self, execution_id: str) -> None:
        """Give up all claims of an execution."""
        for session_id, claims in list(self._claims.items()):
            if execution_id in claims:
                claims.remove(execution_id)
            if not claims:
                del self._claims[session_id]


class SessionPlan:
    """
    Choose the session of each attempt of one execution, from its admission to its final record.

    Attributes:
        next: The session of the next attempt.
        has_progress: That session holds work which a new session would repeat.
    """

    def __init__(self, task: Task, previous: ExecutionRecord | None) -> None:
        self._named = task.resume_session_id
        self._forks = bool(task.fork_session)
        self._is_restarted = self._used_tool = False
        if previous is not None and previous.request_digest != task.digest:
            previous = None  # the id is used again for other work
        self._was_refused = previous is not None and previous.error_class is ErrorClass.INVALID_REQUEST
        resumed = None
        if previous is not None and previous.outcome is not Outcome.SUCCESS and not task.fresh_session:
            resumed = None if previous.resumable is False else previous.session_id
        self.next: Session
        self.has_progress = resumed is not None
        self.continue_in(resumed)

    def __repr__(self) -> str:
        return f"<SessionPlan next={self.next.session_id} resumes={self.next.resumes}>"

    @property
    def known_id(self) -> str | None:
        """The session that the next attempt resumes; None: it begins a new one."""
        return str(self.next.session_id) if self.next.resumes else None

    @property
    def is_named(self) -> bool:
        """Whether the next attempt resumes the session that the task names, or begins with a copy of it."""
        return self._named is not None and self._named in (self.next.session_id, self.next.forks)

    def continue_in(self, session_id: str | None) -> None:
        """Plan to resume the session of the last attempt; without progress the CLI may not have stored it."""
        if self.has_progress and session_id is not None:
            self.next = Session(uuid.UUID(session_id), resumes=True, prompt=CONTINUE_PROMPT)
        else:
            self.begin_anew()

    def begin_anew(self) -> None:
        """Plan to begin the task from its start: in the session it names, or in a new one."""
        self.next, self.has_progress = self._fresh(), False

    def restart(self, trouble: SessionTrouble) -> bool:
        """Plan to begin anew instead of resuming; False: it was done once, and must not repeat tool calls again."""
        if trouble is SessionTrouble.REFUSED or self._used_tool:
            if self._is_restarted:
                return False
            self._is_restarted = True
        if trouble is SessionTrouble.REFUSED:
            self._named = None
        self.begin_anew()
        return True

    def record_end(self, report: AttemptReport, final: Verdict) -> SessionTrouble | None:
        """Record an attempt's end; return what is wrong with its session, if anything is."""
        progress, is_resumed = report.run_stats.has_progress, self.next.has_history
        self.has_progress |= progress
        self._used_tool |= report.run_stats.tool_count > 0
        if is_resumed and report.unknown_session and not report.run_stats.has_init:
            return SessionTrouble.UNKNOWN
        if report.session_refused and final.error_class in _REFUSALS:
            return SessionTrouble.REFUSED
        # No words of the error tell it: a resumed session that ends in the same way as the last time is refused.
        is_the_same = self._was_refused and final.error_class is ErrorClass.INVALID_REQUEST
        return SessionTrouble.REFUSED if is_resumed and not progress and is_the_same else None

    def _fresh(self) -> Session:
        if self._named is None:
            return Session(uuid.uuid4())
        return Session(uuid.uuid4(), forks=self._named) if self._forks else Session(self._named, resumes=True)


_REFUSALS = {ErrorClass.INVALID_REQUEST, ErrorClass.ERROR}
"""Error classes of an attempt whose session is refused: by the API, or by the CLI."""
