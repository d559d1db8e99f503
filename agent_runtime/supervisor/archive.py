"""Store records, answers, transcripts and tasks of executions, and end those that an earlier supervisor left."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Collection
from threading import Lock

import msgspec

from agent_runtime.claude.credential_env import check_task_names
from agent_runtime.errors import (
    AgentRuntimeError,
    Conflict,
    ErrorClass,
    InvalidRequest,
    MayHaveRun,
    NotFound,
    StoreUnavailable,
)
from agent_runtime.execution.record_writer import RecordWriter
from agent_runtime.model.records import SUCCESS, Answer, ExecutionRecord
from agent_runtime.model.state import Outcome, Phase
from agent_runtime.model.task import Task
from agent_runtime.settings import Settings
from agent_runtime.store.records import RecordStore
from agent_runtime.store.retention import lacking_bytes, prune, without_record
from agent_runtime.store.tasks import NewTask, TaskStore
from agent_runtime.store.transcripts import TranscriptStore
from agent_runtime.store.workspaces import OWN, Workspaces
from agent_runtime.supervisor.answers import (
    COPIES,
    StoredResult,
    failed_answer,
    has_result,
    in_form,
    may_have_run,
)
from agent_runtime.telemetry.counters import Counts

log = logging.getLogger(__name__)

RECENT_SECONDS = 15 * 60
RECENT_KEPT = 1000
SPACE_SECONDS = 5.0
"""How often it is checked whether the disk is full."""


class Archive(msgspec.Struct, eq=False):
    """
    Store executions on disk, and work on while the disk fails.

    A record that could not be written says so (``metadata.retained``), and may be unknown after a restart; the store
    holds it in memory until it can be written.

    Attributes:
        has_ended_unfinished: Whether :meth:`end_unfinished` has done its work; None: it was not called yet.
        orphaned_transcripts: Names of transcripts that have no record.
    """

    records: RecordStore
    transcripts: TranscriptStore
    tasks: TaskStore
    workspaces: Workspaces
    settings: Settings
    counts: Counts = msgspec.field(default_factory=Counts)
    has_ended_unfinished: bool | None = None
    orphaned_transcripts: list[str] = []
    _ended_at: dict[str, float] = {}
    _ended_lock: Lock = msgspec.field(default_factory=Lock)  # executions are concluded in several threads
    _damage_reported: int = 0
    _findings: list[str] = []
    _look_at_space_at: float = 0.0
    _epoch_at_start: float = msgspec.field(default_factory=lambda: time.time() - time.monotonic())

    @property
    def recently_completed_ids(self) -> list[str]:
        """Ids of executions that ended in the last 15 minutes."""
        since = time.time() - RECENT_SECONDS
        with self._ended_lock:
            return [execution_id for execution_id, ended_at in self._ended_at.items() if ended_at >= since]

    def save(self, record: ExecutionRecord, answer: Answer | None = None) -> bool:
        """Write a record that has changed, with its answer if it is final; return whether that was possible."""
        try:
            if answer is None:
                self.records.save(record)
            else:
                self.records.conclude(record, answer)
        except StoreUnavailable as error:
            self.counts.count("records_unwritten")
            log.error("record not written: %s", error, extra={"execution_id": record.execution_id})
            return False
        return True

    def conclude(self, record: ExecutionRecord, answer: Answer) -> bool:
        """Write a final record with its answer; return whether they are on disk."""
        ended_at = record.ended_at or time.time()
        with self._ended_lock:
            self._ended_at.pop(record.execution_id, None)
            self._ended_at[record.execution_id] = ended_at
            while len(self._ended_at) > RECENT_KEPT:
                del self._ended_at[next(iter(self._ended_at))]
        try:
            return self.save(record, answer)
        finally:
            # After the record: a crash in between leaves an unfinished execution, which needs its task. Done even if
            # the record cannot be written, because otherwise an execution that has ended would be run again.
            if record.error_class is not ErrorClass.INTERRUPTED:
                self.tasks.delete(record.execution_id)

    def conclude_failed(self, record: ExecutionRecord) -> Answer:
        """End an execution whose answer could not be built: its record must not say that it runs."""
        RecordWriter(record).mark_answer_failed()
        answer = failed_answer(record)
        self.conclude(record, answer)
        return answer

    def find(self, execution_id: str) -> ExecutionRecord | None:
        """
        Return the record of an execution that does not run, ended as interrupted if unfinished; None: unknown id.

        Raises:
            StoreUnavailable: The record cannot be read, or it is lost: the execution has a transcript.
        """
        record = self.records.load(execution_id)
        if record is None and self.transcripts.size_bytes(execution_id):
            raise StoreUnavailable("the transcript of this execution is there, and its record is not")
        if record is not None and record.state is not Phase.FINISHED:
            self._interrupt(record)
        return record

    def earlier(self, execution_id: str, digest: str) -> StoredResult | ExecutionRecord | None:
        """
        Return how an execution ended that does not run: the answer of a success, else the record; None: unknown id.

        Args:
            digest: Digest of the request; after a failure another request may use the id.

        Raises:
            Conflict: The execution succeeded for another body.
            MayHaveRun: Its record or answer cannot be read.
        """
        try:
            record = self.find(execution_id)
            if record is None or record.outcome is not Outcome.SUCCESS:
                return record
            if record.request_digest != digest:
                raise Conflict(ErrorClass.CONFLICT.sentence)
            if (stored := self.stored_result(record)) is None:
                raise StoreUnavailable("it succeeded, and its answer is not there")
        except StoreUnavailable as error:
            raise may_have_run(error) from None
        return stored

    def prepare(self, task: Task, ignored_fields: list[str]) -> NewTask:
        """
        Check the names of a task's variables and encode the task for the store; callable from any thread.

        Done before admission, because it takes time in proportion to the length of the task.

        Raises:
            InvalidRequest: The task sets a variable that no task may set.
        """
        check_task_names(task.env or ())
        return self.tasks.prepare(task, ignored_fields)

    def with_obstacle(self, new: NewTask) -> NewTask:
        """Add the error for a directory that the task names and cannot use, if there is one; may wait for a disk."""
        return msgspec.structs.replace(new, obstacle=self.workspaces.obstacle(new.task))

    def directory_of(self, new: NewTask, execution_id: str, previous: ExecutionRecord | None) -> str | None:
        """
        Return the directory that an execution is to run in, relative to the workspace; None: the workspace itself.

        A retry runs where the attempts before it ran, and a task that resumes another execution's session where that
        execution ran: up to 2.1.197 the CLI knows a session only there (measured; 2.1.330 and 2.1.332 find it from
        anywhere).

        Raises:
            InvalidRequest: A directory of the task cannot be used, or its session belongs to another directory.
            MayHaveRun: The store cannot tell where the session ran.
        """
        task = new.task
        if new.obstacle is not None:
            raise new.obstacle
        if previous is not None and previous.request_digest == task.digest:
            return previous.cwd
        session_id = None if task.resume_session_id is None else str(task.resume_session_id)
        try:
            known = None if session_id is None else self.records.of_session(session_id)
        except StoreUnavailable as error:
            raise MayHaveRun(f"it cannot be read where the session ran: {error}; ask again later") from None
        if known is None:
            return task.cwd or self.workspaces.own_directory(execution_id)
        if task.cwd is not None and task.cwd != known.cwd:
            raise InvalidRequest(
                "cwd: the session in resume_session_id belongs to another directory; leave cwd out to go on there"
            )
        return known.cwd

    def record(self, execution_id: str) -> ExecutionRecord:
        """
        Return the record of an execution that does not run.

        Raises:
            NotFound: Nothing is known under this id.
            StoreUnavailable: As :meth:`find`.
        """
        record = self.find(execution_id)
        if record is None:
            raise NotFound("no execution is known under this id; GET /api/executions lists those that are")
        return record

    def stored_result(self, record: ExecutionRecord) -> StoredResult | None:
        """
        Return the result of an execution that has ended, without reading its answer; None: no answer is stored.

        Raises:
            StoreUnavailable: The store cannot tell whether there is an answer.
        """
        size_bytes = self.records.answer_bytes(record.execution_id)
        if size_bytes is None:
            return None
        logged_bytes = min(self.transcripts.size_bytes(record.execution_id), self.settings.answer_log_limit)
        most_bytes = COPIES * max(size_bytes, logged_bytes)
        transcript = self.transcripts.reader(record.execution_id)
        return StoredResult(record, self.records, self.settings, transcript, most_bytes)

    def shown(self, record: ExecutionRecord, answer: Answer) -> Answer:
        """Convert an answer that was just built to the form that callers get."""
        if answer.status_code == SUCCESS or self.settings.error_detail != "object":
            return answer
        return in_form(answer, record, self.settings, self.transcripts.reader(record.execution_id))

    def end_unfinished(self, running: Collection[str] = frozenset()) -> None:
        """
        End every execution that an earlier supervisor left unfinished as ``interrupted``; load the recently ended ids.

        To be called when the earlier supervisor's children are gone, before any admission. If the records cannot be
        read then, :meth:`collect_damage` calls it again until they can.

        Args:
            running: Ids of executions of this supervisor.
        """
        try:
            recent = self.records.finished_ids(time.time() - RECENT_SECONDS)
            with self._ended_lock:
                self._ended_at = {**dict(recent), **self._ended_at}
            for record in self.records.unfinished():
                if record.execution_id in running:
                    continue
                if self.records.damage and has_result(self.transcripts.reader(record.execution_id)):
                    # Its end is lost with the damaged file. Without a record it counts as one that may have run.
                    self.records.delete(record.execution_id)
                else:
                    self._interrupt(record)
            orphaned = list(without_record(self.records, self.transcripts, running))
        except (StoreUnavailable, OSError) as error:
            if self.has_ended_unfinished is None:
                log.error("earlier executions cannot be accounted for yet: %s", error)
            self.has_ended_unfinished = False
            return
        self.has_ended_unfinished = True
        known, self.orphaned_transcripts = len(self.orphaned_transcripts), orphaned
        if len(orphaned) > known:
            log.error("transcripts without a record: %d, such as %s", len(orphaned), orphaned[-1])
            self._findings.append(f"transcripts without a record, whose tasks are not run again: {len(orphaned)}")
        for execution_id in self.tasks.ids():
            with contextlib.suppress(StoreUnavailable):
                left = self.records.load(execution_id)
                if execution_id not in running and (left is None or left.error_class is not ErrorClass.INTERRUPTED):
                    self.tasks.delete(execution_id)  # a crash between two writes: never admitted, or ended

    def _interrupt(self, record: ExecutionRecord) -> None:
        RecordWriter(record).finish_interrupted()
        self.conclude(record, failed_answer(record, ErrorClass.INTERRUPTED))
        log.warning("execution was interrupted", extra={"execution_id": record.execution_id})

    def is_interrupted(self, execution_id: str) -> bool:
        """
        Whether an execution was interrupted and can be resumed.

        Raises:
            StoreUnavailable: Its record cannot be read.
        """
        record = self.records.load(execution_id)
        return record is not None and record.error_class is ErrorClass.INTERRUPTED

    @property
    def awaits_upkeep(self) -> bool:
        """Whether :meth:`upkeep` has something to do."""
        return self.records.awaits_upkeep or time.monotonic() >= self._look_at_space_at

    def retry_writes(self) -> bool:
        """Write again what the disk has not accepted; return whether it is so full that something must be deleted."""
        with contextlib.suppress(AgentRuntimeError):
            self.records.upkeep()
        if time.monotonic() < self._look_at_space_at:
            return False
        self._look_at_space_at = time.monotonic() + SPACE_SECONDS
        return lacking_bytes(self.transcripts) > 0

    def collect_damage(self, running: Collection[str]) -> list[str]:
        """
        Return the losses found since the last call, a sentence each.

        Calls :meth:`end_unfinished` if there are new ones, or if the records could not be read up to now.
        """
        found = self.records.damage[self._damage_reported :]
        self._damage_reported += len(found)
        if found or not self.has_ended_unfinished:
            self.end_unfinished(running)
        found, self._findings = found + self._findings, []
        return found

    def _release_directory(self, execution_id: str, *, retains: bool) -> bool:
        """Have an execution's own directory deleted, or kept for ever; False: other executions have used it, too."""
        if retains:
            self.workspaces.unmark(execution_id)
            return True
        own = f"{OWN}/{execution_id}"
        if execution_id not in (users := self.records.ids_in(own)):
            return True  # the execution has no directory of its own
        if users == {execution_id}:
            self.workspaces.retire(execution_id)
        return users == {execution_id}

    def prune(self, in_use: Collection[str]) -> None:
        """Delete executions that are too old or take too much space; a failure is tried again the next time."""
        self._look_at_space_at = time.monotonic() + SPACE_SECONDS
        try:
            deleted = prune(
                self.records,
                self.transcripts,
                max_age_seconds=self.settings.retain_age,
                max_bytes=self.settings.retain_bytes,
                # Setting the clock, forward or back, must not make an execution old enough to be deleted.
                now=min(time.time(), self._epoch_at_start + time.monotonic()),
                in_use=in_use,
                release=functools.partial(self._release_directory, retains=self.settings.retain_workspaces),
            )
        except (StoreUnavailable, OSError) as error:
            log.warning("cannot delete old executions: %s", error)
            return
        if deleted:
            log.info("old executions deleted: %d", deleted)
