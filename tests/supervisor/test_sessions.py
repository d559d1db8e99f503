"""Which session of the CLI an attempt runs in, who uses which, and what makes one useless."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from agent_runtime.claude.invocation import CONTINUE_PROMPT
from agent_runtime.claude.session_faults import SESSION_FAULTS, is_session_fault, says_unreadable_session
from agent_runtime.errors import ErrorClass
from agent_runtime.evidence.verdict import Verdict
from agent_runtime.execution.attempt_data import AttemptReport
from agent_runtime.model.records import ExecutionRecord
from agent_runtime.model.state import Outcome
from agent_runtime.model.task import Task
from agent_runtime.supervisor.sessions import SessionPlan, SessionTrouble, SessionUse

OWN, NAMED = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
TASK = Task(message="x")
INVALID = Verdict(Outcome.FAILED, ErrorClass.INVALID_REQUEST)


def failed(task: Task = TASK, error_class: ErrorClass | None = ErrorClass.NETWORK, **fields: Any) -> ExecutionRecord:
    """Build the record of an execution that has ended, with progress in its session."""
    given: dict[str, Any] = {"outcome": Outcome.FAILED, "session_id": OWN, "resumable": True, **fields}
    return ExecutionRecord(
        execution_id="one", created_at=0.0, request_digest=task.digest, error_class=error_class, **given
    )


def report(*, init: bool = True, progress: bool = False, unknown: bool = False, refused: bool = False) -> AttemptReport:
    made = AttemptReport(started_at=0.0, unknown_session=unknown, session_refused=refused)
    made.run_stats.has_init, made.run_stats.model_frames = init, int(progress)
    return made


@pytest.mark.parametrize("error_class", [*ErrorClass, None])
def test_whatever_it_ended_with_a_session_with_progress_is_gone_on_with(error_class: ErrorClass | None) -> None:
    plan = SessionPlan(TASK, failed(error_class=error_class))

    assert (plan.known_id, plan.next.prompt, plan.has_progress) == (OWN, CONTINUE_PROMPT, True)


@pytest.mark.parametrize(
    ("task", "previous"),
    [
        (TASK, None),
        (TASK, failed(resumable=False)),
        (TASK, failed(session_id=None)),
        (TASK, failed(outcome=Outcome.SUCCESS, error_class=None)),
        (Task(message="x", fresh_session=True), failed()),
        (Task(message="y"), failed()),
    ],
    ids=["first", "no progress", "no session", "succeeded", "fresh", "other work"],
)
def test_else_it_begins_a_session_of_its_own(task: Task, previous: ExecutionRecord | None) -> None:
    plan = SessionPlan(task, previous)

    assert (plan.next.resumes, plan.next.prompt, plan.known_id, plan.has_progress) == (False, None, None, False)


def test_what_an_earlier_version_did_not_record_is_tried() -> None:
    assert SessionPlan(TASK, failed(resumable=None)).known_id == OWN


def test_a_session_that_is_named_gets_the_message_once_and_is_then_gone_on_with() -> None:
    task = Task(message="x", resume_session_id=uuid.UUID(NAMED))
    first, again = SessionPlan(task, None), SessionPlan(task, failed(task, session_id=NAMED))
    other = SessionPlan(task, failed(session_id=NAMED))

    assert (first.known_id, first.next.prompt, first.is_named) == (NAMED, None, True)
    assert (again.known_id, again.next.prompt, again.is_named) == (NAMED, CONTINUE_PROMPT, True)
    assert (other.known_id, other.next.prompt) == (NAMED, None), "another body was sent before"


@pytest.mark.parametrize("has_progress", [True, False])
def test_progress_is_resumed_and_what_has_none_is_begun_again(*, has_progress: bool) -> None:
    plan = SessionPlan(TASK, None)
    plan.record_end(report(progress=has_progress), INVALID)
    plan.continue_in(OWN)

    assert (plan.known_id, plan.next.prompt) == ((OWN, CONTINUE_PROMPT) if has_progress else (None, None))


def test_a_refused_session_is_given_up_once_also_one_that_is_named() -> None:
    plan = SessionPlan(Task(message="x", resume_session_id=uuid.UUID(NAMED)), None)

    assert plan.restart(SessionTrouble.REFUSED)
    assert (plan.known_id, plan.is_named) == (None, False)
    plan.has_progress = True
    plan.continue_in(OWN)
    assert not plan.restart(SessionTrouble.REFUSED)
    assert plan.known_id == OWN
    plan.begin_anew()
    assert plan.known_id is None, "the session that is named is not tried again"


def test_a_lost_session_is_begun_anew_as_often_as_no_tool_has_run_and_once_where_one_has() -> None:
    plan = SessionPlan(Task(message="x", resume_session_id=uuid.UUID(NAMED)), None)
    assert plan.restart(SessionTrouble.UNKNOWN)
    assert plan.restart(SessionTrouble.UNKNOWN)
    used = report(progress=True)
    used.run_stats.tool_count = 1
    assert plan.record_end(used, INVALID) is None

    assert plan.restart(SessionTrouble.UNKNOWN)
    assert plan.known_id == NAMED, "it has lost nothing that the task named"
    assert not plan.restart(SessionTrouble.UNKNOWN)


@pytest.mark.parametrize(
    ("before", "ended", "final", "trouble"),
    [
        (None, report(refused=True), INVALID, SessionTrouble.REFUSED),
        (failed(), report(refused=True), INVALID, SessionTrouble.REFUSED),
        (failed(), report(refused=True), Verdict(Outcome.FAILED, ErrorClass.ERROR), SessionTrouble.REFUSED),
        (failed(), report(refused=True), Verdict(Outcome.SUCCESS), None),
        (failed(), report(refused=True), Verdict(Outcome.FAILED, ErrorClass.TIMEOUT), None),
        (failed(), report(), INVALID, None),
        (failed(error_class=ErrorClass.INVALID_REQUEST), report(), INVALID, SessionTrouble.REFUSED),
        (failed(error_class=ErrorClass.INVALID_REQUEST), report(progress=True), INVALID, None),
        (failed(error_class=ErrorClass.INVALID_REQUEST, resumable=False), report(), INVALID, None),
        (failed(Task(message="y"), ErrorClass.INVALID_REQUEST), report(), INVALID, None),
        (failed(), report(unknown=True, init=False), INVALID, SessionTrouble.UNKNOWN),
        (failed(), report(unknown=True), INVALID, None),
        (None, report(unknown=True, init=False), INVALID, None),
    ],
)
def test_what_an_attempt_shows_of_its_session(
    before: ExecutionRecord | None, ended: AttemptReport, final: Verdict, trouble: SessionTrouble | None
) -> None:
    assert SessionPlan(TASK, before).record_end(ended, final) is trouble


def test_a_session_is_used_by_one_after_the_other() -> None:
    use = SessionUse()
    for execution_id in ("a", "b", "b", "c"):
        use.claim(OWN, execution_id)
    use.claim(NAMED, "b")
    assert [use.has_turn(OWN, name) for name in ("a", "b", "c")] == [True, False, False]
    assert use.has_turn(NAMED, "b")
    assert use.has_turn(None, "anybody")

    use.release("b")
    use.release("a")

    assert use.has_turn(OWN, "c")
    assert (use.is_claimed(OWN), use.is_claimed(NAMED), use.is_claimed(None)) == (True, False, False)
    use.release("c")
    assert repr(use) == "<SessionUse of 0>"


@pytest.mark.parametrize("fault", SESSION_FAULTS, ids=lambda fault: " ".join(fault.words))
def test_each_fault_of_a_session_is_recognised_in_a_line_and_those_of_images_where_none_is_sent(fault: Any) -> None:
    line = f"[ERROR] API error (attempt 1/11): 400 400 {{{' '.join(fault.words).upper()}}}".encode()

    assert is_session_fault(line, brings_images=False)
    assert is_session_fault(line, brings_images=True) is not fault.by_image
    assert fault.source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Output blocked by content filtering policy",
        "prompt is too long: 208310 tokens > 200000 maximum",
        "thinking.budget_tokens: Input should be greater than or equal to 1024",
        "tools.3.custom.name: String should match pattern",
        "max_tokens: 200000 > 64000, which is the maximum allowed number of output tokens",
        "messages.0.content: Input should be a valid list",
        "Your organization does not allow the image tool",
    ],
)
def test_what_is_the_request_s_own_is_no_fault_of_a_session(text: str) -> None:
    assert not is_session_fault(text.encode(), brings_images=False)


def test_a_fault_is_looked_for_in_the_beginning_of_a_line_whatever_its_bytes() -> None:
    assert is_session_fault(b"\xff\xfe roles must alternate", brings_images=False)
    assert not is_session_fault(b"x" * 20_000 + b"roles must alternate", brings_images=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Failed to resume session: EISDIR: illegal operation on a directory, read", True),
        ("No conversation found with session ID: x", False),
        ("I failed. Failed to resume session: x", False),
    ],
)
def test_the_cli_says_that_it_cannot_read_a_session(text: str, expected: bool) -> None:
    assert says_unreadable_session(text) is expected
