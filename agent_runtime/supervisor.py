"""Policy: who gets in, who gets a slot, which token may be used, and how it all ends."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_runtime.attempt import Surroundings
from agent_runtime.command import resolve
from agent_runtime.delivery import EnvironmentDelivery
from agent_runtime.errors import (
    Busy,
    Conflict,
    Draining,
    ErrorClass,
    NotFound,
    NoToken,
    SpawnFailed,
    TokenUnusable,
)
from agent_runtime.execution import Change, Execution
from agent_runtime.standing import Standing
from agent_runtime.state import Outcome, Phase, StopReason
from agent_runtime.store.records import StoreUnavailable
from agent_runtime.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from agent_runtime.attempt import Report
    from agent_runtime.generations import Generation, GenerationLedger
    from agent_runtime.model import ExecutionRecord
    from agent_runtime.redaction import Redactor
    from agent_runtime.secret_file import SecretFile, SecretStatus
    from agent_runtime.settings import Settings
    from agent_runtime.store.records import RecordStore
    from agent_runtime.store.transcripts import TranscriptReader, TranscriptStore
    from agent_runtime.task import Task

log = logging.getLogger(__name__)

BUSY_RETRY_SECONDS = 5
DRAINING_RETRY_SECONDS = 5
RECENT_SECONDS = 15 * 60
KEPT_IN_MEMORY = 200
"""Finished executions whose record stays in memory; older ones are read from the store."""


@dataclass(frozen=True, slots=True)
class View:
    """What those see who only look on: a record and its transcript, and when there is more to see."""

    record: ExecutionRecord
    transcript: TranscriptReader
    changed: Change


class Supervisor:
    """
    Admit executions, run them in slots, and account for every one.

    All methods run on the event loop's thread. Admission is synchronous: :meth:`submit` either raises or returns an
    execution that belongs to the supervisor from then on.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        secret: SecretFile,
        redactor: Redactor,
        records: RecordStore,
        transcripts: TranscriptStore,
        environ: Mapping[str, str],
        run_dir: Path,
        next_mark: Callable[[], str],
        ledger: GenerationLedger,
    ) -> None:
        self.settings = settings
        self.secret = secret
        self.redactor = redactor
        self.records = records
        self.transcripts = transcripts
        self.standing = Standing(ledger)
        self.changed = Change()
        self.started_at = time.time()
        self.last_task_at: float | None = None
        self.consecutive_failures = 0
        self.draining = False
        self._surroundings = Surroundings(
            settings=settings,
            secret=secret,
            delivery=EnvironmentDelivery(),
            redactor=redactor,
            environ=environ,
            run_dir=run_dir,
            may_use=self._may_use,
        )
        self._next_mark = next_mark
        self._live: dict[str, Execution] = {}
        self._recent: dict[str, Execution] = {}
        self._queue: deque[Execution] = deque()
        self._owners: set[asyncio.Task[None]] = set()
        self._busy_slots = 0

    # -- admission

    def submit(self, task: Task, ignored_fields: Iterable[str] = ()) -> Execution:
        """
        Let a task in, or join the execution that its id names already.

        Raises:
            AdmissionError: There is no room, no token, or no wish for more.
            Conflict: The id is known for other work.
        """
        execution_id = task.execution_id or str(uuid.uuid4())
        if (known := self._live.get(execution_id) or self._recent.get(execution_id)) and (
            known.phase is not Phase.FINISHED or known.record.outcome is Outcome.SUCCESS
        ):
            if known.record.request_digest != task.digest:
                raise Conflict("this execution_id is known for another body; choose another id")
            return known
        if self.draining:
            raise Draining("draining: no new executions here", retry_after_seconds=DRAINING_RETRY_SECONDS)
        self.require_token()
        if self._busy_slots >= self.settings.slots and len(self._queue) >= self.settings.queue:
            raise Busy(
                f"all {self.settings.slots} slots and {self.settings.queue} queue places are taken",
                retry_after_seconds=BUSY_RETRY_SECONDS,
            )
        execution = Execution(
            task,
            execution_id=execution_id,
            ignored_fields=list(ignored_fields),
            surroundings=self._surroundings,
            transcript=self.transcripts.writer(execution_id),
            reader=self.transcripts.reader(execution_id),
            next_mark=self._next_mark,
            timeout_seconds=task.timeout_seconds or self.settings.timeout,
            accepted=self._accepted,
            refused=self._refused,
            save=self._save,
        )
        self._live[execution_id] = execution
        self._recent.pop(execution_id, None)
        self.last_task_at = time.time()
        self._save(execution.record)
        log.info("execution admitted", extra={"execution_id": execution_id})
        self._queue.append(execution)
        self._dispatch()
        return execution

    def require_token(self) -> Generation:
        """
        Tell the generation that an execution admitted now would use.

        Raises:
            NoToken: There is none.
            TokenUnusable: The API refused it, or it expired.
        """
        status = self.secret.status
        generation = status.generation
        if generation is None or status.state in ("missing", "invalid"):
            raise NoToken(f"no usable token: {status.error or 'the secret file is missing'}")
        _require_unexpired(generation)
        if self.standing.retry_after_seconds(generation, time.monotonic()) > 0:
            raise TokenUnusable(_REFUSED)
        return generation

    def _may_use(self, generation: Generation) -> None:
        """Judge a generation at the spawn, on the attempt's thread: admission may be minutes ago."""
        _require_unexpired(generation)
        if self.standing.is_refused(generation) and not self.standing.begin_try(generation, time.monotonic()):
            raise TokenUnusable(_REFUSED)

    # -- slots

    def _dispatch(self) -> None:
        while self._queue and self._busy_slots < self.settings.slots:
            execution = self._queue.popleft()
            if execution.phase is not Phase.FINISHED:
                self._busy_slots += 1
                owner = asyncio.get_running_loop().create_task(self._own(execution), name=execution.execution_id)
                self._owners.add(owner)
                owner.add_done_callback(self._disowned)
        for execution in self._queue:
            self._watch_queued(execution)
        self.changed.tell()

    def _watch_queued(self, execution: Execution) -> None:
        """See to it that the time of an execution that waits for a slot runs out as well."""
        if execution.queue_timer is None:
            loop = asyncio.get_running_loop()
            delay = max(0.0, execution.total_at - time.monotonic())
            execution.queue_timer = loop.call_later(delay, self._give_up_queued, execution, StopReason.TIMEOUT)

    def _give_up_queued(self, execution: Execution, reason: StopReason) -> None:
        if execution in self._queue:
            self._queue.remove(execution)
            execution.request_stop(reason)
            execution.end(_VERDICT_UNSTARTED[reason])
            self._retire(execution)

    async def _own(self, execution: Execution) -> None:
        """Hold a slot for *execution* as long as it needs one."""
        execution.forget_timer()
        try:
            await execution.run()
        finally:
            self._busy_slots -= 1
            self._retire(execution)
            self._dispatch()

    def _disowned(self, owner: asyncio.Task[None]) -> None:
        self._owners.discard(owner)
        if not owner.cancelled() and (error := owner.exception()):
            log.error(
                "execution ended by a fault of the supervisor", exc_info=error, extra={"execution_id": owner.get_name()}
            )

    def _retire(self, execution: Execution) -> None:
        execution.forget_timer()
        self._live.pop(execution.execution_id, None)
        self._recent[execution.execution_id] = execution
        while len(self._recent) > KEPT_IN_MEMORY:
            self._recent.pop(next(iter(self._recent)))
        failed = execution.record.outcome is Outcome.FAILED
        self.consecutive_failures = self.consecutive_failures + 1 if failed else 0
        self.changed.tell()

    # -- what executions learn about the token

    def _accepted(self, generation: Generation) -> None:
        self.standing.accept(generation)

    def _refused(self, report: Report) -> None:
        """Take a refusal by the API into account, if it may condemn the generation it was made with."""
        generation = report.generation
        sighting = report.ending.evidence if report.ending is not None else None
        if generation is None or sighting is None:
            return
        # What comes after a tool ran may have been written by that tool: it ends its attempt, and condemns nothing.
        if not sighting.condemns or report.used_tool:
            self.standing.end_try(generation)
            return
        if self.standing.refuse(generation, time.monotonic()):
            log.error(
                "token refused: generation=%d fingerprint=%s rule=%s",
                generation.number,
                generation.token.fingerprint,
                sighting.rule,
            )
        self.changed.tell()

    # -- looking on

    @property
    def unready(self) -> tuple[str | None, str | None]:
        """Why a task sent now would be turned away, as a sentence and as a word; nothing where it would not."""
        if self.draining:
            return "draining: no new executions here", "draining"
        try:
            self.require_token()
        except (NoToken, TokenUnusable) as error:
            return str(error), f"token_{self.token_state}"
        try:
            resolve(self.settings.claude, self._surroundings.environ.get("PATH"))
        except SpawnFailed as error:
            return str(error), "no_cli"
        return None, None

    def secret_changed(self, status: SecretStatus) -> None:
        """Take a new status of the secret file."""
        if status.generation is not None:
            log.info(
                "token state: state=%s generation=%d fingerprint=%s kind=%s",
                status.state,
                status.generation.number,
                status.generation.token.fingerprint,
                status.generation.token.kind,
            )
        self.changed.tell()

    @property
    def token_state(self) -> str:
        """The state of the token, in the contract's words."""
        status = self.secret.status
        if status.generation is None or status.state in ("missing", "invalid"):
            return str(status.state)
        if status.is_expired(time.time()):
            return "expired"
        return "refused" if self.standing.is_refused(status.generation) else "ready"

    @property
    def last_refused_generation(self) -> int | None:
        """The latest generation the API refused."""
        return self.standing.last_refused_generation

    @property
    def running(self) -> list[Execution]:
        """Executions that have a slot."""
        return [e for e in self._live.values() if e.phase in (Phase.RUNNING, Phase.STOPPING)]

    @property
    def pending_ids(self) -> list[str]:
        """Ids of executions that wait: for a slot, or for a newer token."""
        return [e.execution_id for e in self._live.values() if e.phase in (Phase.QUEUED, Phase.PARKED)]

    @property
    def recently_completed_ids(self) -> list[str]:
        """Ids of executions that ended in the last 15 minutes."""
        since = time.time() - RECENT_SECONDS
        return [e.execution_id for e in self._recent.values() if (e.record.ended_at or 0) >= since]

    @property
    def busy_slots(self) -> int:
        """Slots that are held."""
        return self._busy_slots

    @property
    def queue_length(self) -> int:
        """Executions that wait for a slot."""
        return len(self._queue)

    def execution(self, execution_id: str) -> Execution | None:
        """Find an execution that runs, or ended not long ago."""
        return self._live.get(execution_id) or self._recent.get(execution_id)

    def record(self, execution_id: str) -> ExecutionRecord:
        """
        Find a record, in memory or in the store.

        Raises:
            NotFound: Nothing is known under this id.
        """
        if execution := self.execution(execution_id):
            return execution.record
        record = self.records.load(execution_id)
        if record is None:
            raise NotFound("no execution is known under this id")
        return record

    def view(self, execution_id: str) -> View:
        """
        Look at an execution, alive or kept.

        Raises:
            NotFound: Nothing is known under this id.
        """
        if execution := self.execution(execution_id):
            return View(execution.record, execution.reader, execution.changed)
        return View(self.record(execution_id), self.transcripts.reader(execution_id), Change())

    async def terminate(self, execution_id: str) -> tuple[str, ExecutionRecord]:
        """
        Cancel an execution and wait for its end; idempotent.

        Raises:
            NotFound: Nothing is known under this id.
        """
        execution = self._live.get(execution_id)
        if execution is None:
            return "already_finished", self.record(execution_id)
        if execution.phase is Phase.QUEUED and execution in self._queue:
            self._give_up_queued(execution, StopReason.CANCELLED)
        execution.request_stop(StopReason.CANCELLED)
        await execution.finished()
        return "terminated", execution.record

    # -- the end

    async def drain(self, timeout_seconds: float) -> None:
        """Let nobody in, let the running finish for *timeout_seconds*, stop the rest politely, and wait for them."""
        self.draining = True
        self.changed.tell()
        polite = max(0.0, timeout_seconds - self.settings.stop_grace)
        deadline = time.monotonic() + polite
        while self._live and (left := deadline - time.monotonic()) > 0:
            changed = self.changed.wait()
            try:
                await asyncio.wait_for(changed, left)
            except TimeoutError:
                break
        self.stop_all(StopReason.SHUTDOWN)
        while self._live:
            await self.changed.wait()

    def stop_all(self, reason: StopReason, *, at_once: bool = False) -> None:
        """Ask every execution to end, politely or at once."""
        for execution in list(self._live.values()):
            if execution in self._queue:
                self._give_up_queued(execution, reason)
            else:
                execution.request_stop(reason, at_once=at_once)

    def _save(self, record: ExecutionRecord) -> None:
        try:
            self.records.save(record)
        except StoreUnavailable as error:
            record.metadata.retained = False
            log.error("record not kept: %s", error, extra={"execution_id": record.execution_id})


_REFUSED = "the API refused this token; write a new one to the secret file"


def _require_unexpired(generation: Generation) -> None:
    if generation.expires_at is not None and generation.expires_at <= time.time():
        raise TokenUnusable("the token has expired; write a new one to the secret file")


_VERDICT_UNSTARTED = {
    StopReason.TIMEOUT: Verdict(Outcome.FAILED, ErrorClass.TIMEOUT, "no slot became free within the timeout"),
    StopReason.CANCELLED: Verdict(Outcome.CANCELLED, ErrorClass.CANCELLED, "the execution was cancelled"),
    StopReason.SHUTDOWN: Verdict(
        Outcome.FAILED, ErrorClass.INTERRUPTED, "the supervisor was shut down before it began"
    ),
}
