"""
One CLI process, from the reading of its token to the end of everything it started.

An attempt has a thread of its own, which reads the pipes, searches the output for API errors, keeps the deadlines,
sends signals, ends leftover processes and reaps the child, so that none of that waits for the event loop. It publishes
events while the child runs and returns a report when the attempt has ended.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable

from agent_runtime.claude import invocation
from agent_runtime.claude.invocation import is_bare_command
from agent_runtime.delivery.delivery import HeldRequest
from agent_runtime.errors import AgentRuntimeError
from agent_runtime.evidence.detector import Channel, Detection
from agent_runtime.evidence.verdict import Ending
from agent_runtime.execution.attempt_data import (
    AttemptContext,
    AttemptEvent,
    AttemptReport,
    AttemptSpec,
    Held,
    Progress,
    Released,
    Spawned,
    Stopping,
)
from agent_runtime.execution.child_token import ChildToken, RepeatedRequest
from agent_runtime.execution.deadlines import Deadlines, Sign
from agent_runtime.execution.launch import Launch
from agent_runtime.execution.output import EVIDENCE_LINE_BYTES, ChildOutput
from agent_runtime.execution.stop import StopPhase, StopSequence
from agent_runtime.model import mcp_config
from agent_runtime.model.records import EvidenceRecord
from agent_runtime.model.state import StopReason
from agent_runtime.model.task import Task
from agent_runtime.process.child import Child
from agent_runtime.process.containment.sweep import SweepReport
from agent_runtime.process.forkserver.server import PendingShim
from agent_runtime.process.framing import Lines
from agent_runtime.process.pipes import Pipes
from agent_runtime.process.spawn import NotSpawned, SpawnReason
from agent_runtime.secret.generations import Generation
from agent_runtime.store.session_cost import session_cost
from agent_runtime.store.transcripts import TranscriptWriter
from agent_runtime.store.workspaces import not_entered
from agent_runtime.telemetry.live_text import LiveTextWriter

log = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0
"""How long leftover processes of the child are killed for; those left then are survivors."""
CATCH_UP_SECONDS = 0.25
"""How long the last output is read for, both before and after the leftover processes are killed."""
SUSPENDED_SECONDS = 1.0
"""If a poll oversleeps by this much, this process was suspended; that time does not count as silence of the child."""
PROGRESS_SECONDS = 0.01
"""The least time between two events about progress; one for each chunk would cost a quarter of the CPU time."""


class Attempt:
    """
    Run one CLI process and end all that it has started; :meth:`run` blocks its thread until then.

    Guarantee: when :meth:`run` returns or raises, the child is reaped, and what it started is gone or counted as a
    survivor.

    Args:
        publish: Called with each event, from any thread.
    """

    def __init__(
        self,
        spec: AttemptSpec,
        context: AttemptContext,
        transcript: TranscriptWriter,
        publish: Callable[[AttemptEvent], object],
    ) -> None:
        self._spec = spec
        self._context = context
        self._publish = publish
        self._launch = Launch(spec, context)
        self._stop = StopSequence(context.settings.stop_grace)
        self._output = ChildOutput(
            transcript,
            context.redactor,
            keep_partial=context.settings.keep_partial,
            live_text=LiveTextWriter(spec.live_texts, context.redactor),
            brings_images=bool(spec.task.images) and spec.session.prompt is None,
            on_error=self._error_seen,
            on_sign=self._sign_seen,
        )
        self._deadlines = Deadlines(context.settings, spawned_at=time.monotonic(), total_at=spec.total_at)
        self._oldest = context.secret.status.generation
        self._child: Child | None = None
        self._token: ChildToken | None = None
        self._started_at = time.time()
        self._signalled_at: float | None = None
        self._background_ended = False
        self._hook: str | None = None
        self.usage = self._output.run_stats.usage.so_far
        """What the child has used up to now; replaced, never changed, so that any thread may read it."""
        self._evidence: Detection | None = None
        self._evidence_record: EvidenceRecord | None = None
        self._sweep: SweepReport | None = None
        self._has_grown = False
        self._progress_at, self._published_at = math.inf, -math.inf
        self._holds: set[HeldRequest] = set()
        self._held_since: float | None = None
        self._repeated: RepeatedRequest | None = None

    @property
    def stop_reason(self) -> StopReason | None:
        """The first reason that was given to end this attempt."""
        return self._stop.reason

    @property
    def generation(self) -> Generation | None:
        """The newest generation that the child has; before the spawn the oldest one that it may get."""
        return self._oldest if self._token is None else self._token.newest

    def request_stop(self, reason: StopReason, *, at_once: bool = False) -> None:
        """Ask for the end, from any thread, any number of times; the first reason wins. *at_once*: no grace."""
        self._stop.request(reason, at_once=at_once)

    def end_hold(self, request: HeldRequest) -> None:
        """End the attempt, and with it the hold, because of the API error *request* is held for; from any thread."""
        self._record_evidence(request.detection, request.body)
        if self._token is not None:
            self._token.charged = request.generation
        self._stop.request(StopReason.REFUSED)

    def follow_secret(self) -> None:
        """Check whether the secret file's generation has reached the child; from any thread."""
        if self._token is not None:
            self._token.follow_secret()

    def run(self) -> AttemptReport:
        """Run the child to its end; never raises for what the child or the operating system does."""
        error: AgentRuntimeError | None = None
        try:
            try:
                if (child := self._start()) is not None:
                    self._poll_until_gone(child)
            except AgentRuntimeError as problem:
                error = problem
            finally:
                self._ensure_swept()
            return self._report(error)
        finally:
            self.discard()

    def discard(self) -> None:
        """Release files and descriptors of the attempt. :meth:`run` does so at its end; call this if it never runs."""
        self._stop.wake.close()
        self._launch.release()
        if self._child is not None and self._sweep is not None:
            if self._sweep.survivors:
                self._context.unkillable.add(self._child, self._sweep.survivors)
            else:
                self._child.close()

    # -- the start

    def _start(self) -> Child | None:
        with self._context.containment.spawner.forked_shim() as shim:
            return self._start_below(shim)

    def _start_below(self, shim: PendingShim | None) -> Child | None:
        command, session = self._launch.command(), self._spec.session
        if session.has_history:  # the CLI counts on from the cost of the session it resumes or copies (2.1.332)
            before = session_cost(self._context.settings.config_dir, session.forks or session.session_id)
            self._output.run_stats.usage.go_on_from(before)
        if self._stop.reason is not None:
            return None
        if (relayed := self._launch.relayed) is not None:
            relayed.on_hold, relayed.on_release = self._hold_begins, self._hold_ends
            relayed.on_silence = functools.partial(self._stop.request, StopReason.RELAY_TIMEOUT)
        # A stop that is requested during the spawn wakes the poll loop in its first turn.
        try:
            child = self._child = self._context.containment.spawn(command, shim)
        except NotSpawned as error:
            refused = not_entered(self._spec.task) if error.reason is SpawnReason.NO_DIRECTORY else None
            raise refused or error from None
        if relayed is not None:
            relayed.pid = child.pid
        self._started_at = child.started_at
        return child

    # -- while it runs

    def _poll_until_gone(self, child: Child) -> None:
        pipes = Pipes(
            child,
            wake=self._stop.wake,
            stdin_bytes=invocation.stdin_bytes(self._spec.task, self._spec.session),
            frame_limit_bytes=self._context.settings.frame_limit,
            on_lines=self._lines_read,
            on_quiet=self._output.unfinished,
        )
        if (delivered := self._launch.delivered) is not None:
            self._publish(Spawned(child.pid, child.shim_pid, child.started_at, delivered.generation))
            self._token = ChildToken(delivered, self._launch.delivered_at, self._context.secret, self._publish)
            self._token.follow_secret()  # a newer generation may have been loaded during the spawn
        while not pipes.leader_gone and self._stop.phase is not StopPhase.ABANDONED:
            asked_at = time.monotonic()
            is_running = self._stop.phase is StopPhase.RUNNING
            is_held = bool(self._holds)
            next_at = self._deadlines.next[0] if is_running else self._stop.due_at
            if is_held and is_running:
                next_at = self._spec.total_at
            patience = max(0.0, min(next_at, self._progress_at) - asked_at)
            pipes.turn(patience)
            if (repeated := self._repeated) is not None and not (repeated.is_over or repeated in self._holds):
                pipes.turn(0)  # stderr is read before stdout: the frame of a tool that forged the line may come now
                self._hold_begins(repeated)
            absent = time.monotonic() - asked_at - patience
            if is_held:
                self._deadlines.postpone(absent + patience)
            elif absent > SUSPENDED_SECONDS:
                # Read what the child has printed meanwhile before its silence is judged.
                self._deadlines.postpone(absent)
                pipes.turn(0)
            now = time.monotonic()
            if now >= self._progress_at:
                self._publish_progress(now)
            if not pipes.leader_gone:  # a child that has ended was in time, however late that is seen
                self._check_deadlines(now)
        pipes.catch_up(CATCH_UP_SECONDS)
        self._publish_progress(time.monotonic())
        self._sweep = child.sweep(time.monotonic() + SWEEP_SECONDS)
        pipes.drain(CATCH_UP_SECONDS)
        self._publish_progress(time.monotonic())

    def _hold_begins(self, request: HeldRequest) -> None:
        self._held_since = self._held_since or time.monotonic()
        self._holds.add(request)
        self._stop.wake.set()
        self._publish(Held(request, self._output.used_tool))

    def _hold_ends(self, request: HeldRequest) -> None:
        self._holds.discard(request)
        if not self._holds and self._stop.reason is None and self._sweep is None:
            self._held_since = None  # the child goes on
        self._stop.wake.set()
        self._publish(Released(request))

    def _check_deadlines(self, now: float) -> None:
        if self._stop.reason is None:
            moment, reason = self._deadlines.next
            if now >= moment:
                self._stop.request(reason)
        self._advance_stop(now)

    def _advance_stop(self, now: float) -> None:
        entered, child = self._stop.advance(now), self._child
        if child is None:
            return
        if entered is StopPhase.INTERRUPTED:
            run_stats = self._output.run_stats
            self._background_ended = run_stats.has_more_to_come
            self._hook = run_stats.hook  # noted now, because an interrupted CLI ends its hook
            run_stats.answer.is_stopping = True
            child.interrupt()
            self._signalled_at = time.monotonic()
            if self._stop.reason is not None:
                self._publish(Stopping(self._stop.reason))
        elif entered is StopPhase.KILLED:
            child.kill()

    # -- what the child prints

    def _lines_read(self, channel: Channel, lines: Lines, read_at: float) -> None:
        output = self._output
        if channel is Channel.STDERR:
            output.stderr(lines, read_at)
            return
        if self._token is not None:
            output.run_stats.usage.generation = self._token.in_use.number
        self._has_grown |= output.stdout(lines, read_at)
        self._deadlines.stage_seen(output.run_stats.stage, output.run_stats.open_tools, read_at)
        self._progress_at = min(self._progress_at, max(read_at, self._published_at + PROGRESS_SECONDS))

    def _publish_progress(self, now: float) -> None:
        self._published_at, self._progress_at = now, math.inf
        usage, self.usage = self.usage, self._output.run_stats.usage.so_far
        if self._has_grown or usage is not self.usage:
            self._has_grown = False
            self._publish(Progress())

    def _sign_seen(self, sign: Sign, read_at: float) -> None:
        self._deadlines.seen(sign, read_at)
        if sign is Sign.MODEL:
            if self._token is not None:
                self._token.record_answer(read_at)
            self._end_repeated()
        elif sign is Sign.INIT:
            self._check_init(self._spec.task)

    def _check_init(self, task: Task) -> None:
        """End the child if the CLI reports another permission mode than the task's, or lacks an agent of the task."""
        run_stats, mode = self._output.run_stats, invocation.permission_mode(task)
        agents = {*(task.agents or ()), *([task.agent] if task.agent else ())}
        if run_stats.permission_mode != mode:
            log.error("permission mode is %s, not %s", run_stats.permission_mode, mode)
            self._stop.request(StopReason.PERMISSION_MODE)
        elif run_stats.agents is not None and not agents <= {name for name in run_stats.agents if type(name) is str}:
            self._stop.request(StopReason.AGENT_MISSING)
        else:
            return
        self._advance_stop(time.monotonic())

    def _error_seen(self, detection: Detection, line: bytes, read_at: float) -> None:
        """Charge an API error to its token, and stop the child at once if the error says that the token is refused."""
        if self._token is None or self._stop.phase is not StopPhase.RUNNING:
            return
        evidence = self._token.charge(detection, read_at)
        if evidence is None or self._launch.relayed is not None:
            return  # the relay itself reads the API's answers, so evidence in the output can only come from a tool
        if self._may_wait(self._token, evidence):
            if self._repeated is None or self._repeated.is_over:
                charged, body = self._token.charged, line[:EVIDENCE_LINE_BYTES]
                self._repeated = RepeatedRequest(evidence, body, charged, on_end=self._hold_ends)
                self._mark_suspect(charged)
            return
        self._stop.request(StopReason.REFUSED)
        self._advance_stop(time.monotonic())
        self._mark_suspect(self._token.charged)
        signalled_at = self._signalled_at
        self._record_evidence(evidence, line, None if signalled_at is None else round(signalled_at - read_at, 6))

    def _record_evidence(self, detection: Detection, line: bytes, seconds_to_signal: float | None = None) -> None:
        """Record the API error that ends the attempt."""
        redacted = self._context.redactor.redact(line[:EVIDENCE_LINE_BYTES], truncated=True)
        self._evidence = detection
        self._evidence_record = EvidenceRecord(
            rule=detection.rule.id,
            stream=detection.channel,
            line=redacted.decode(errors="replace"),
            seconds_to_signal=seconds_to_signal,
        )

    def _mark_suspect(self, generation: Generation) -> None:
        # Evidence that a tool may have forged, and that no probe can verify, must not hold up other executions.
        if not self._output.used_tool or self._context.settings.probe != "off":
            self._context.mark_suspect(generation, self._spec.execution_id)

    def _may_wait(self, token: ChildToken, evidence: Detection) -> bool:
        """
        Return whether the child may run on: the CLI repeats its request, and the task may wait for a newer token.

        With ``auto`` the first execution that meets a refusal may not: its caller is answered at once.
        """
        if not (self._output.run_stats.repeats_refusals and token.can_recover(evidence)):
            return False
        asked = self._spec.task.park_seconds
        seconds = self._context.settings.park if asked is None else asked
        if seconds is None:
            return self._context.is_known_by_others(token.charged, self._spec.execution_id)
        return seconds > 0

    def _end_repeated(self) -> None:
        if self._repeated is not None:
            self._repeated.release(replays=True)

    # -- the end

    def _ensure_swept(self) -> None:
        """Leave no process and no hold behind, whatever happened before."""
        self._end_repeated()
        if self._child is not None and self._sweep is None:
            # Only a fault of the supervisor leads here. Its traceback is logged later; the child must not live on.
            self._child.kill()
            self._sweep = self._child.sweep(time.monotonic() + SWEEP_SECONDS)

    def _report(self, error: AgentRuntimeError | None) -> AttemptReport:
        child, output, run_stats = self._child, self._output, self._output.run_stats
        gone_at = time.monotonic()
        run_stats.answer.redact(self._context.redactor.redact_text)
        ending = None
        if child is not None:
            ending = self._ending(child)
        elif error is None:
            ending = Ending(exit_code=None, stop_reason=self._stop.reason)
        return AttemptReport(
            started_at=self._started_at,
            ended_at=time.time(),
            pid=None if child is None else child.pid,
            generation=self._launch.generation if self._token is None else self._token.charged,
            error=error,
            ending=ending,
            evidence=self._evidence_record,
            run_stats=run_stats,
            # Read now, not with the evidence: stderr is read before stdout, so the forging tool's frame comes later.
            used_tool=output.used_tool,
            background_ended=run_stats.has_more_to_come if self._signalled_at is None else self._background_ended,
            unknown_session=output.unknown_session,
            session_refused=output.session_refused,
            seconds_to_gone=None if self._signalled_at is None else gone_at - self._signalled_at,
            cpu_seconds=None if child is None else child.cpu_seconds,
            result_line=output.result_line,
            waited_seconds=0.0 if self._held_since is None else gone_at - self._held_since,
            survivors=0 if self._sweep is None else self._sweep.survivors,
        )

    def _ending(self, child: Child) -> Ending:
        output, run_stats = self._output, self._output.run_stats
        task, ended = self._spec.task, child.poll()
        is_first = self._spec.session.prompt is None
        oom, oom_nearby = child.oom_kills
        return Ending(
            exit_code=ended.code if ended is not None else None,
            result=run_stats.result,
            needs_structure=task.json_schema is not None,
            is_command=is_first and is_bare_command(task) and run_stats.answer.is_without_model,
            hook=self._hook,
            stop_reason=self._stop.reason,
            last_error=output.last_error,
            evidence=self._evidence,
            oom=oom,
            oom_nearby=oom_nearby,
            lost_a_tool=output.lost_a_tool,
            began=run_stats.has_init,
            last_words=output.last_words,
            request_fault=mcp_config.refused_by_some(task.mcp_config) if task.mcp_config else None,
        )
