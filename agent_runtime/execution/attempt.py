"""
One CLI process, from the reading of its token to the end of everything it started.

An attempt is one thread. It reads the pipes, matches, signals, keeps the deadlines, sweeps and reaps, so that none of
that waits for the event loop; what it tells the loop are notes, and at the end a report (``attempt_report``).
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from agent_runtime.claude import invocation as cli_command
from agent_runtime.claude.invocation import PERMISSION_MODE
from agent_runtime.claude.session_faults import is_session_fault
from agent_runtime.claude.slash_commands import is_bare_command
from agent_runtime.delivery.held_tokens import HeldGenerations
from agent_runtime.delivery.private_files import PrivateFiles
from agent_runtime.errors import AgentRuntimeError
from agent_runtime.evidence.detector import Channel
from agent_runtime.evidence.verdict import Ending
from agent_runtime.execution.attempt_report import Answered, AttemptReport, Progress, Reached, Spawned, Stopping
from agent_runtime.execution.deadlines import Deadlines, Patience
from agent_runtime.execution.output import EVIDENCE_LINE_BYTES, ChildOutput, Sign
from agent_runtime.model import mcp_config
from agent_runtime.model.records import EvidenceRecord
from agent_runtime.model.state import StopReason, TokenTrouble
from agent_runtime.process.child import Command
from agent_runtime.process.pipes import Pipes, Wake

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.delivery.delivery import Delivered
    from agent_runtime.evidence.detector import Detection
    from agent_runtime.execution.attempt_report import AttemptEvent
    from agent_runtime.execution.attempt_spec import AttemptContext, AttemptSpec
    from agent_runtime.process.child import Child
    from agent_runtime.process.framing import Lines
    from agent_runtime.secret.generations import Generation
    from agent_runtime.store.transcripts import TranscriptWriter

log = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0
CATCH_UP_SECONDS = 0.25
NOT_LOOKING_SECONDS = 1.0
"""A turn that takes this much longer than asked for: this process was stopped, not the child silent."""


class Attempt:
    """
    Run one CLI process and everything around it; :meth:`run` blocks its thread until nothing of it is left.

    Guarantee: when :meth:`run` returns, whether by a report or by an exception, the child is reaped and what it started
    is gone, or named as a survivor.
    """

    def __init__(
        self,
        spec: AttemptSpec,
        attempt_context: AttemptContext,
        transcript: TranscriptWriter,
        tell: Callable[[AttemptEvent], object],
    ) -> None:
        self._spec = spec
        self._around = attempt_context
        self._tell = tell
        self._output = ChildOutput(
            transcript,
            attempt_context.redactor,
            keep_partial=attempt_context.settings.keep_partial,
            on_error=self._sighted,
            on_sign=self._sign,
        )
        self._files = PrivateFiles(attempt_context.run_dir, spec.mark, attempt_context.settings.child_user)
        self._wake = Wake()
        self._lock = threading.Lock()
        self._reason: StopReason | None = None
        self._stop_is_done = False
        self._child: Child | None = None
        self._last_error: Detection | None = None
        self._evidence: Detection | None = None
        self._kill_at = math.inf
        self._answered = 0
        self._delivered: Delivered | None = None
        self._held_generations: HeldGenerations | None = None
        self._oldest = attempt_context.secret.status.generation
        self._at_once = False
        self._killed = False
        self._hook: str | None = None
        self._give_up_at = math.inf
        self._report = AttemptReport(started_at=time.time(), run_stats=self._output.run_stats)
        self._deadlines = Deadlines(
            Patience.of(attempt_context.settings), spawned_at=time.monotonic(), total_at=spec.total_at
        )

    @property
    def stop_reason(self) -> StopReason | None:
        """The first reason anybody gave to end this attempt."""
        return self._reason

    @property
    def held(self) -> Generation | None:
        """The newest generation its child has; before the spawn the oldest one it may get."""
        return self._oldest if self._held_generations is None else self._held_generations.newest

    def request_stop(self, reason: StopReason, *, at_once: bool = False) -> None:
        """Ask for the end, from any thread, any number of times; the first reason wins. *at_once*: no grace."""
        with self._lock:
            if self._reason is None:
                self._reason = reason
            self._at_once = self._at_once or at_once
            if not self._stop_is_done:
                self._wake.set()

    def token_loaded(self, generation: Generation) -> None:
        """Note, from any thread, that a newer generation is loaded; where its way leads to this child, it is told."""
        if self._held_generations is not None and self._child is not None:
            self._reached(self._held_generations.loaded(generation, time.monotonic()))

    def _reached(self, generation: Generation | None) -> None:
        if generation is not None:
            self._tell(Reached(generation, time.time()))

    def run(self) -> AttemptReport:
        """Run the child to its end; never raises for what the child or the operating system does."""
        report = self._report
        try:
            self._start()
            self._supervise()
        except AgentRuntimeError as error:
            report.error = error
        finally:
            self._finish()
            report.ended_at = time.time()
        return report

    def abandon(self) -> None:
        """Give back what an attempt holds that will never run."""
        self._stop_is_done = True
        self._wake.close()

    # -- start

    def _start(self) -> None:
        command = self._command()
        if self._reason is not None:
            self._report.ending = Ending(exit_code=None, stop_reason=self._reason)
            return
        # A stop that is asked for while this runs has woken the poll loop before its first turn.
        child = self._child = self._around.containment.spawn(command)
        report = self._report
        report.pid, report.started_at = child.pid, child.started_at
        if report.generation is not None:
            self._tell(Spawned(child.pid, child.shim_pid, child.started_at, report.generation))
        if (loaded := self._around.secret.status.generation) is not None:
            self.token_loaded(loaded)  # it may have come meanwhile

    def _command(self) -> Command:
        """Take the token, write what the child needs, and put its command together."""
        generation = self._around.secret.read()
        self._report.generation = generation
        self._around.may_use(generation, self._spec.task.model, self._spec.execution_id)
        delivered = self._around.deliveries.for_spawn(generation)
        generation = self._report.generation = delivered.generation
        self._delivered = delivered
        self._held_generations = HeldGenerations(delivered, time.monotonic())
        self._around.redactor.add(generation.token)
        spec, settings = self._spec, self._around.settings
        environ = cli_command.environment(
            self._around.environ,
            execution_id=spec.execution_id,
            config_dir=settings.config_dir,
            delivered=delivered.variables,
            background_seconds=settings.background_timeout or settings.timeout,
            as_root=settings.child_user is None and os.geteuid() == 0,
            trace=spec.task.trace,
        )
        settings_file = cli_command.write_settings(self._files.write, delivered.variables, self._around.environ)
        mcp_file = None
        if spec.task.mcp_config is not None:
            mcp_file = self._files.write("mcp.json", msgspec.json.encode(spec.task.mcp_config))
        argv = (
            *cli_command.resolve(settings.claude, environ.get("PATH")),
            *cli_command.arguments(spec.task, spec.session, settings_file=settings_file, mcp_file=mcp_file),
        )
        return Command(argv=argv, env=environ, cwd=settings.workspace, user=settings.child_user, mark=spec.mark)

    # -- while it runs

    def _supervise(self) -> None:
        child = self._child
        if child is None:
            return
        pipes = Pipes(
            stdin=child.stdin,
            stdout=child.stdout,
            stderr=child.stderr,
            pidfd=child.pidfd,
            wake=self._wake,
            stdin_bytes=cli_command.stdin_bytes(self._spec.task, self._spec.session),
            close_stdin=child.close_stdin,
            frame_limit_bytes=self._around.settings.frame_limit,
            on_lines=self._lines,
            on_quiet=self._output.unfinished,
        )
        while not pipes.leader_gone and time.monotonic() < self._give_up_at:
            asked = time.monotonic()
            patience = max(0.0, self._next_moment() - asked)
            pipes.turn(patience)
            absent = time.monotonic() - asked - patience
            if absent > NOT_LOOKING_SECONDS:
                # Somebody stopped this process: what the child said meanwhile has to be read before it is judged.
                self._deadlines.postpone(absent)
                pipes.turn(0)
            if not pipes.leader_gone:  # what has ended was in time, however late that is seen
                self._act(time.monotonic())
        pipes.catch_up(CATCH_UP_SECONDS)
        self._report.sweep = child.sweep(time.monotonic() + SWEEP_SECONDS)
        pipes.drain(CATCH_UP_SECONDS)

    def _next_moment(self) -> float:
        if self._killed:
            return self._give_up_at
        if self._kill_at < math.inf:
            return self._kill_at
        return self._deadlines.next[0]

    def _act(self, now: float) -> None:
        """Do what the time, or somebody's wish, calls for."""
        if self._killed:
            return
        if self._kill_at < math.inf:
            if now >= self._kill_at or self._at_once:
                self._kill(now)
            return
        if self._reason is None:
            moment, reason = self._deadlines.next
            if now >= moment:
                self._reason_for(reason)
        if self._reason is not None:
            self._interrupt()

    def _reason_for(self, reason: StopReason) -> None:
        with self._lock:
            if self._reason is None:
                self._reason = reason

    def _interrupt(self) -> float | None:
        """Begin the stop, politely, so that the CLI ends its tools and keeps its session; tell when, if it is news."""
        child = self._child
        if child is None or self._kill_at < math.inf:
            return None
        run_stats = self._report.run_stats
        self._report.background_ended = run_stats.has_more_to_come
        self._hook = run_stats.hook  # told to leave, the CLI ends it
        run_stats.answer.is_leaving = True
        child.interrupt()
        signalled_at = self._report.signalled_at = time.monotonic()
        self._kill_at = signalled_at + self._around.settings.stop_grace
        child.remember_descendants()
        if self._reason is not None:
            self._tell(Stopping(self._reason))
        return signalled_at

    def _kill(self, now: float) -> None:
        self._killed = True
        self._give_up_at = now + SWEEP_SECONDS
        if self._child is not None:
            self._child.kill()

    # -- what the child says

    def _lines(self, channel: Channel, lines: Lines, read_at: float) -> None:
        output = self._output
        if channel is Channel.STDERR:
            output.stderr(lines, read_at)
            return
        has_grown = output.stdout(lines, read_at)
        self._deadlines.stage_seen(output.run_stats.stage, output.run_stats.open_tools, read_at)
        if has_grown:
            self._tell(Progress())

    def _sign(self, sign: Sign, read_at: float) -> None:
        if sign is Sign.MODEL or sign is Sign.STREAM:
            self._model_seen(read_at, begins=sign is Sign.MODEL)
        elif sign is Sign.TASK:
            self._deadlines.model_seen(read_at)
        elif sign is Sign.LOG:
            self._deadlines.start_seen(read_at)
        elif sign is Sign.INIT:
            self._deadlines.init_seen(read_at)
            mode = self._output.run_stats.permission_mode
            if mode != PERMISSION_MODE:
                log.error("permission mode is %s, not %s", mode, PERMISSION_MODE)
                self._reason_for(StopReason.PERMISSION_MODE)
                self._interrupt()
        else:
            self._deadlines.life_seen(read_at)

    def _model_seen(self, read_at: float, *, begins: bool) -> None:
        if begins or (self._last_error is not None and not self._last_error.is_final):
            # The model goes on: what the API said before is over. Not so where the CLI has given up a message, whose
            # last events come after that.
            self._last_error = None
            self._report.session_refused = False
        if self._held_generations is not None:
            generation, since = self._held_generations.carried_at(read_at)
            if generation.number != self._answered:
                self._answered = generation.number
                self._tell(Answered(generation, since))
        self._deadlines.model_seen(read_at)

    def _sighted(self, detection: Detection, data: bytes, read_at: float) -> None:
        """Take note of an API error, and end the child at once where it says that the token is refused."""
        if self._kill_at < math.inf or self._held_generations is None:
            return  # what it says on being stopped is about the stop
        self._last_error = detection.or_sharper(self._last_error)
        task, session = self._spec.task, self._spec.session
        brings_images = bool(task.images) and session.prompt is None
        self._report.session_refused |= is_session_fault(data, brings_images=brings_images)
        self._look_for_newer(self._held_generations, detection)
        if self._evidence is None:
            self._report.generation, _ = self._held_generations.carried_at(read_at)
        if not detection.is_evidence or self._evidence is not None:
            return
        if self._held_generations.is_suspect:
            detection = replace(detection, condemns=False)  # whichever was refused: the next attempt finds out
        if not detection.is_final and self._held_generations.newest is not self._report.generation:
            return  # the CLI's own retry takes the newer token; what that meets decides
        self._evidence = detection
        self._reason_for(StopReason.REFUSED)
        signalled_at = self._interrupt()
        report = self._report
        # What a tool may have forged, and no probe can tell from the truth, must not hold up other executions.
        can_be_told = not self._output.used_tool or self._around.settings.probe != "off"
        if report.generation is not None and can_be_told:
            self._around.mark_suspect(report.generation, self._spec.execution_id)
        report.evidence = EvidenceRecord(
            rule=detection.rule,
            stream=detection.channel,
            line=self._around.redactor.redact(data[:EVIDENCE_LINE_BYTES], truncated=True).decode(errors="replace"),
            seconds_to_signal=None if signalled_at is None else round(signalled_at - read_at, 6),
        )

    def _look_for_newer(self, held_generations: HeldGenerations, detection: Detection) -> None:
        """See whether a newer token is where the child looks."""
        secret = self._around.secret
        if detection.is_evidence and held_generations.may_be_reached:
            # One that was written just now, and that nobody has noticed yet, would cost the attempt.
            secret.poll()
        if (loaded := secret.status.generation) is not None:
            self.token_loaded(loaded)
        if detection.trouble is TokenTrouble.REFUSED and detection.status in {401, None}:
            # At these, but at no other answer, older versions look again.
            self._reached(held_generations.reread(time.monotonic()))

    # -- the end

    def _finish(self) -> None:
        """Leave nothing behind, whatever happened before."""
        child, output = self._child, self._output
        with self._lock:
            self._stop_is_done = True
        if child is not None:
            if self._report.sweep is None:
                # Only a bug of ours gets here; its traceback follows, the child must not.
                child.kill()
                self._report.sweep = child.sweep(time.monotonic() + SWEEP_SECONDS)
            self._report.gone_at = time.monotonic()
            ended = child.poll()
            self._report.cpu_seconds = child.cpu_seconds
            self._report.run_stats.redact(self._around.redactor.redact_text)
            # Not at the evidence: stderr is read first, so the frame of the tool that forged it may come later.
            self._report.used_tool = output.used_tool
            task, answer = self._spec.task, self._report.run_stats.answer
            is_own_command = self._spec.session.prompt is None and is_bare_command(task) and answer.is_without_model
            if self._report.signalled_at is None:
                self._report.background_ended = self._report.run_stats.has_more_to_come
            self._report.ending = Ending(
                exit_code=ended.code if ended is not None else None,
                result=self._report.run_stats.result,
                is_command=is_own_command,
                hook=self._hook,
                stop_reason=self._reason,
                last_error=self._last_error,
                evidence=self._evidence,
                oom=child.ran_out_of_memory,
                oom_nearby=child.others_may_have_run_out_of_memory,
                lost_a_tool=output.lost_a_tool,
                began=output.run_stats.has_init,
                last_words=output.last_words,
                request_fault=mcp_config.refused_by_some(servers) if (servers := self._spec.task.mcp_config) else None,
            )
            self._report.unknown_session = output.unknown_session
            self._report.session_refused |= output.unreadable_session
            self._report.result_line = output.result_line
            survivors = self._report.sweep.survivors
            if survivors:
                self._around.unkillable.keep(child, survivors)
            else:
                child.close()
        if self._delivered is not None:
            self._around.deliveries.ended(self._delivered)
        self._wake.close()
        self._files.remove()
