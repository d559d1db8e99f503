"""Policy and races of an execution without a process: its attempts are a list of reports, the probe is scripted."""

from __future__ import annotations

import asyncio
import os
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from agent_runtime.claude.run_answer import Result
from agent_runtime.delivery.cli_check import CliCheck
from agent_runtime.errors import AdmissionError, AgentRuntimeError, ErrorClass
from agent_runtime.evidence.detector import Channel, Detection
from agent_runtime.evidence.matching import Rule
from agent_runtime.evidence.verdict import Ending
from agent_runtime.execution.attempt_data import Answered, AttemptReport, Spawned
from agent_runtime.execution.execution import Execution, ExecutionContext
from agent_runtime.execution.record_writer import RecordWriter
from agent_runtime.model.state import CLASS_BY_TROUBLE, Outcome, Phase, StopReason, TokenTrouble
from agent_runtime.model.task import Task
from agent_runtime.secret.file import SecretFile
from agent_runtime.secret.generations import GenerationLedger
from agent_runtime.secret.writer import put
from agent_runtime.settings import load
from agent_runtime.store.tasks import NewTask
from agent_runtime.store.transcripts import TranscriptStore
from agent_runtime.supervisor import retry_policy, runner
from agent_runtime.supervisor.holds import Holds
from agent_runtime.supervisor.runner import ExecutionRunner, RunnerContext
from agent_runtime.supervisor.sessions import SessionPlan, SessionUse
from agent_runtime.supervisor.slots import Slots
from agent_runtime.supervisor.supervisor import Supervisor
from agent_runtime.telemetry.counters import Counts
from agent_runtime.telemetry.events import EventLog
from agent_runtime.tokens.gate import TokenGate
from agent_runtime.tokens.probe import ProbeVerdict
from agent_runtime.tokens.status import TokenStatuses
from agent_runtime.tokens.upkeep import TokenUpkeep
from agent_runtime.tokens.verifier import RefusalVerifier
from tests.support.supervised import NEW, OLD

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from agent_runtime.claude.invocation import Session
    from agent_runtime.model.tokens import Token

    Step = Callable[[], AttemptReport | Coroutine[Any, Any, AttemptReport]]

VALID, REFUSED, UNKNOWN = ProbeVerdict.VALID, ProbeVerdict.REFUSED, ProbeVerdict.UNKNOWN
SUCCESS, FAILED, CANCELLED = Outcome.SUCCESS, Outcome.FAILED, Outcome.CANCELLED


def report(
    *, trouble: TokenTrouble | None = None, used_tool: bool = False, resets_at: float | None = None, **fields: Any
) -> AttemptReport:
    """Build the report of an attempt that the model took part in; without *trouble* it has an answer."""
    if trouble is None:
        ending = Ending(exit_code=0, result=Result(is_error=False, subtype="success", text="finished"))
    else:
        seen = Detection(
            Rule("a_rule", CLASS_BY_TROUBLE[trouble], condemns=True, blocks=trouble is TokenTrouble.BLOCKED),
            Channel.STDERR,
            is_final=True,
            resets_at=resets_at,
            limit_type=None if resets_at is None else "five_hour",
        )
        is_evidence = seen.rule.is_evidence
        ending = Ending(
            exit_code=0 if is_evidence else 1,
            stop_reason=StopReason.REFUSED if is_evidence else None,
            evidence=seen if is_evidence else None,
            last_error=seen,
        )
    made = AttemptReport(started_at=0.0, ended_at=1.0, pid=1, ending=ending, used_tool=used_tool, **fields)
    made.run_stats.has_init, made.run_stats.model_frames = True, 1
    return made


def finished() -> AttemptReport:
    return report()


def refused() -> AttemptReport:
    return report(trouble=TokenTrouble.REFUSED)


def forged() -> AttemptReport:
    return report(trouble=TokenTrouble.REFUSED, used_tool=True)


def limited(resets_at: float | None) -> Step:
    return lambda: report(trouble=TokenTrouble.LIMITED, resets_at=resets_at)


class Api:
    """A probe that answers as told, or when told; counts what it was asked."""

    def __init__(self) -> None:
        self.verdict = VALID
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def ask(self, token: Token, *, model: str | None = None) -> ProbeVerdict:  # noqa: ARG002 - as a probe
        self.asked.append(token.secret)
        await self.may_answer.wait()
        return self.verdict


class Bench:
    """What executions share, real but for the probe and the processes."""

    def __init__(self, directory: Path, **variables: str) -> None:
        probe = variables.setdefault("probe", "on_refusal")
        self.settings = load(
            {
                "AGENT_RUNTIME_TOKEN_FILE": str(directory / "token"),
                "AGENT_RUNTIME_CONFIG_DIR": str(directory),
                "AGENT_RUNTIME_WORKSPACE": str(directory),
                **{f"AGENT_RUNTIME_{name.upper()}": text for name, text in variables.items()},
            }
        )
        ledger = GenerationLedger(None)
        self.api, self.events, self.counts = Api(), EventLog(), Counts()
        self.secret = SecretFile(directory / "token", ledger=ledger)
        self.gate = TokenGate(self.secret, TokenStatuses(ledger), self.events, probes=probe != "off")
        asked: Any = None if probe == "off" else self.api
        verifier = RefusalVerifier(self.gate.statuses, asked, self.events)
        self.slots = Slots(self.settings.slots, 16, lambda: self.gate.is_verifying)
        self.draining = False
        self.holds = Holds(lambda: self.draining)
        known = (self.settings, self.slots, SessionUse(), self.gate, verifier)
        self.context = RunnerContext(*known, self.holds.begin)
        self.upkeep = TokenUpkeep(
            self.settings,
            self.gate,
            verifier,
            self.counts,
            self.events,
            grant_slots=self.slots.grant,
            follow_secret=lambda: None,
            spawn=lambda work, _name: self.tasks.append(asyncio.ensure_future(work)),
        )
        cli = CliCheck(("true",), os.environ["PATH"])
        transcripts = TranscriptStore(directory / "transcripts")
        self.execution_context = ExecutionContext(
            self.counts, cli, self.events, transcripts, self.upkeep.record_accepted, lambda _record: True
        )
        self.tasks: list[asyncio.Future[None]] = []
        self.write(OLD)

    def write(self, token: str) -> None:
        put(self.secret.path, token.encode())
        self.upkeep.secret_changed(self.secret.poll())

    def start(self, *steps: Step, execution_id: str = "one", parks: bool = False, **fields: Any) -> Running:
        """Begin an execution whose attempts end as *steps* say, in their order."""
        task = Task(message="x", execution_id=execution_id, **fields)
        plan = SessionPlan(task, None)
        writer = RecordWriter.for_task(NewTask(task, [], b"", ""), execution_id, plan.next, self.settings)
        timeout_seconds = task.timeout_seconds or self.settings.timeout
        execution = Execution(task, writer, self.execution_context, timeout_seconds)
        running = Running(self, execution, list(steps))
        obstacle = None
        if parks:
            with pytest.raises(AdmissionError) as raised:
                self.gate.require(task.model)
            obstacle = raised.value
        one = ExecutionRunner(execution, self.context, plan, obstacle, run_attempt=running.run_attempt)
        running.task = asyncio.ensure_future(one.run())
        return running

    def published(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for event in self.events.after(0)[0] if event.type == kind]

    @property
    def refusals(self) -> list[Any]:
        return [data["generation"] for data in self.published("token.refused")]


class Running:
    """One execution under way."""

    def __init__(self, bench: Bench, execution: Execution, steps: list[Step]) -> None:
        self.execution = execution
        self.task: asyncio.Future[None]
        self.sessions: list[str] = []
        self._bench = bench
        self._steps = steps

    async def run_attempt(self, execution: Execution, session: Session) -> AttemptReport:
        """Take the token as a real attempt does, and end as the next step says."""
        generation = self._bench.secret.read()
        try:
            self._bench.gate.require_for_spawn(generation, execution.task.model, execution.execution_id)
        except AgentRuntimeError as error:
            return AttemptReport(started_at=0.0, generation=generation, error=error)
        execution.record_event(Spawned(1, None, time.time(), generation))
        self.sessions.append(str(session.session_id))
        made = self._steps.pop(0)()
        ended = made if isinstance(made, AttemptReport) else await made
        if ended.ending is not None and ended.ending.result is not None:
            execution.record_event(Answered(generation, time.monotonic()))
        return msgspec.structs.replace(ended, generation=generation)

    async def reaches(self, phase: Phase) -> None:
        while self.execution.phase is not phase:
            await asyncio.wait_for(self.execution.changed.wait(), 5)

    async def ends(self) -> tuple[Outcome | None, ErrorClass | None]:
        await asyncio.wait_for(self.task, 10)
        assert self._steps == [], "attempts that were never run"
        record = self.execution.record
        return record.outcome, record.error_class

    @property
    def generations(self) -> list[int]:
        return [token.generation for attempt in self.execution.record.attempts for token in attempt.tokens]


async def happens(condition: Callable[[], object]) -> None:
    """Give the loop turns until *condition* holds."""
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        await asyncio.sleep(0.001)


def races(test: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """Run a test on an event loop of its own."""

    def run(tmp_path: Path) -> None:
        asyncio.run(test(tmp_path))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@races
async def test_refused_and_a_newer_token_comes_while_the_probe_is_asked_and_is_refused_again(home: Path) -> None:
    bench = Bench(home)
    bench.api.may_answer.clear()
    one = bench.start(refused, refused)
    await happens(lambda: bench.api.asked == [OLD])
    assert bench.gate.state == "suspect"

    bench.write(NEW)
    await happens(lambda: bench.api.asked == [OLD, NEW])
    bench.api.verdict = REFUSED
    bench.api.may_answer.set()

    assert await one.ends() == (FAILED, ErrorClass.AUTH)
    assert one.generations == [1, 2]
    assert len(set(one.sessions)) == 1, "gone on with in its session"
    assert sorted(bench.refusals) == [1, 2]
    assert bench.published("execution.parked") == []
    assert bench.gate.state == "refused"


@races
async def test_a_newer_token_that_nobody_has_noticed_is_gone_on_with_and_not_charged__s17(home: Path) -> None:
    bench = Bench(home)
    bench.api.verdict = REFUSED

    def refused_behind_the_watcher() -> AttemptReport:
        put(bench.secret.path, NEW.encode())
        return refused()

    one = bench.start(refused_behind_the_watcher, finished)

    assert await one.ends() == (SUCCESS, None)
    await happens(lambda: bench.refusals == [1])
    assert one.generations == [1, 2]
    assert bench.published("execution.parked") == []


@races
async def test_a_burst_of_refusals_asks_once_and_only_the_first_answers__a8(home: Path) -> None:
    bench = Bench(home)
    bench.api.verdict = REFUSED
    bench.api.may_answer.clear()
    burst = [bench.start(refused, execution_id=f"one-{n}") for n in range(4)]
    await happens(lambda: all(one.sessions for one in burst))
    bench.api.may_answer.set()
    await happens(lambda: [one.execution.phase for one in burst].count(Phase.PARKED) == 3)
    await happens(lambda: (bench.slots.busy, bench.slots.queue_length) == (0, 0))
    assert bench.refusals == [1]
    for one in burst:
        one._steps.append(finished) if one.execution.phase is Phase.PARKED else None

    bench.write(NEW)

    ends = [await one.ends() for one in burst]
    assert sorted(ends, key=str) == [(FAILED, ErrorClass.AUTH)] + [(SUCCESS, None)] * 3
    assert bench.api.asked.count(OLD) == 1


@pytest.mark.parametrize("where", ["asked", "parked"])
@pytest.mark.parametrize(
    ("stop", "end"),
    [
        (StopReason.CANCELLED, (CANCELLED, ErrorClass.CANCELLED)),
        (StopReason.SHUTDOWN, (FAILED, ErrorClass.INTERRUPTED)),
        (None, (FAILED, ErrorClass.TIMEOUT)),
    ],
    ids=["cancelled", "drained", "timeout"],
)
def test_a_stop_ends_what_waits_for_the_probe_or_a_token(
    tmp_path: Path, where: str, stop: StopReason | None, end: tuple[Outcome, ErrorClass]
) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, park="600")
        bench.api.verdict = REFUSED
        if where == "asked":
            bench.api.may_answer.clear()
        one = bench.start(refused, timeout_seconds=0.2 if stop is None else None)
        if where == "asked":
            await happens(lambda: bench.api.asked)
        else:
            await one.reaches(Phase.PARKED)
        if stop is not None:
            one.execution.request_stop(stop)

        assert await one.ends() == end
        assert (bench.slots.busy, one.generations) == (0, [1])
        bench.api.may_answer.set()
        await happens(lambda: bench.refusals == [1])

    asyncio.run(main())


@pytest.mark.parametrize(
    ("park", "fields", "parks"),
    [("600", {"park_seconds": 0}, False), ("0", {"park_seconds": 600}, True), ("600", {}, True), ("auto", {}, False)],
    ids=["the request says no", "the request says yes", "the setting", "the first under auto"],
)
def test_the_request_decides_how_long_it_waits_else_the_setting(
    tmp_path: Path, park: str, fields: dict[str, Any], parks: bool
) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, park=park)
        bench.api.verdict = REFUSED
        one = bench.start(refused, *[finished] * parks, **fields)
        if parks:
            await one.reaches(Phase.PARKED)
            bench.write(NEW)

        assert await one.ends() == ((SUCCESS, None) if parks else (FAILED, ErrorClass.AUTH))

    asyncio.run(main())


@races
async def test_a_park_that_is_over_is_answered_with_what_the_execution_met(home: Path) -> None:
    bench = Bench(home, park="0.02")
    bench.api.verdict = REFUSED

    assert await bench.start(refused).ends() == (FAILED, ErrorClass.AUTH)
    assert len(bench.published("execution.parked")) == 1


@races
async def test_one_that_is_parked_goes_on_when_its_own_token_turns_out_to_be_good(home: Path) -> None:
    bench = Bench(home, park="600")
    bench.api.verdict = REFUSED
    one = bench.start(refused, finished)
    await one.reaches(Phase.PARKED)
    bench.api.verdict = VALID
    await bench.upkeep.reload()

    assert await one.ends() == (SUCCESS, None)
    assert one.generations == [1, 1]


@pytest.mark.parametrize(("refusals", "error_class"), [(1, None), (2, None), (3, ErrorClass.UPSTREAM)])
@pytest.mark.parametrize("step", [refused, forged])
def test_a_token_that_is_good_by_the_probe_is_resumed_so_often_and_then_upstream(
    tmp_path: Path, refusals: int, error_class: ErrorClass | None, step: Step
) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, max_resumes="2")
        one = bench.start(*[step] * refusals, *[finished] * (error_class is None))

        assert (await one.ends())[1] is error_class
        assert (bench.refusals, bench.gate.state) == ([], "ready")

    asyncio.run(main())


@races
async def test_without_the_probe_a_forged_refusal_condemns_only_when_the_next_first_request_meets_it(
    home: Path,
) -> None:
    bench = Bench(home, probe="off")

    assert await bench.start(forged, refused).ends() == (FAILED, ErrorClass.AUTH)
    assert (bench.refusals, bench.api.asked) == ([1], [])


@races
async def test_a_probe_that_is_undecided_leaves_it_to_the_evidence(home: Path) -> None:
    bench = Bench(home)
    bench.api.verdict = UNKNOWN

    assert await bench.start(refused).ends() == (FAILED, ErrorClass.AUTH)
    assert bench.refusals == [1]


@races
async def test_while_a_token_is_suspect_new_executions_wait_and_a_newer_one_lets_all_go_on(home: Path) -> None:
    bench = Bench(home)
    bench.api.may_answer.clear()
    suspecting = bench.start(refused, finished, execution_id="suspecting")
    await happens(lambda: bench.api.asked)
    held = bench.start(finished, execution_id="held")
    await happens(lambda: bench.slots.queue_length == 1)

    bench.write(NEW)

    assert [await suspecting.ends(), await held.ends()] == [(SUCCESS, None)] * 2
    assert held.generations == [2]


@races
async def test_before_dispatch_a_dead_token_is_found_out_before_any_attempt_and_a_stop_need_not_wait(
    home: Path,
) -> None:
    bench = Bench(home, probe="before_dispatch")
    bench.api.verdict = REFUSED
    assert await bench.start().ends() == (FAILED, ErrorClass.AUTH)
    bench.write(NEW)
    bench.api.may_answer.clear()
    one = bench.start(execution_id="two")
    await happens(lambda: bench.api.asked == [OLD, NEW])
    one.execution.request_stop(StopReason.CANCELLED)

    assert await one.ends() == (CANCELLED, ErrorClass.CANCELLED)
    assert one.generations == []


@races
async def test_admitted_while_its_token_is_refused_it_waits_without_a_slot_for_another(home: Path) -> None:
    bench = Bench(home, slots="1")
    bench.api.verdict = REFUSED
    await bench.start(refused).ends()
    waiting = [bench.start(finished, execution_id=f"waits-{n}", parks=True, park_seconds=60) for n in range(3)]
    late = bench.start(execution_id="late", parks=True, park_seconds=0.02)
    assert await late.ends() == (FAILED, ErrorClass.AUTH)
    assert [one.execution.phase for one in waiting] == [Phase.PARKED] * 3
    assert bench.slots.busy == 0

    bench.write(NEW)

    assert [await one.ends() for one in waiting] == [(SUCCESS, None)] * 3
    assert [one.generations for one in waiting] == [[2]] * 3


@races
async def test_a_first_attempt_after_the_wait_counts_as_no_resume(home: Path) -> None:
    bench = Bench(home, max_resumes="0")
    assert (await bench.start(limited(time.time() + 3600)).ends())[1] is ErrorClass.RATE_LIMIT
    one = bench.start(finished, execution_id="waits", parks=True, park_seconds=60)
    await one.reaches(Phase.PARKED)
    await bench.upkeep.reload()

    assert await one.ends() == (SUCCESS, None)
    assert one.generations == [1]


# Usage limits.


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on a moment after a limit's end; that it is 1 to 15 s otherwise is shown by a slow test."""
    for module in (retry_policy, runner):
        monkeypatch.setattr(module, "AFTER_RESET_SECONDS", (0.01, 0.02))


@pytest.mark.parametrize("fields", [{"park_seconds": 30}, {"park_seconds": 0}], ids=["park_seconds", "the setting"])
@pytest.mark.usefixtures("soon")
def test_the_first_one_waits_too_where_the_end_lies_within_its_park_time_or_the_setting(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, wait_for_reset="60" if fields["park_seconds"] == 0 else "0")
        one = bench.start(limited(time.time() + 0.1), finished, **fields)

        assert await one.ends() == (SUCCESS, None)
        assert (one.generations, len(set(one.sessions))) == ([1, 1], 1)
        assert len(bench.published("token.limited")) == 1

    asyncio.run(main())


@pytest.mark.parametrize("change", ["a newer token", "reload-token"])
def test_a_newer_token_or_reload_token_lets_it_go_on_before_the_end(tmp_path: Path, change: str) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, wait_for_reset="3600", timeout="7200", max_resumes="1")
        one = bench.start(limited(time.time() + 3000), finished)
        await one.reaches(Phase.PARKED)
        if change == "a newer token":
            bench.write(NEW)
        else:
            await bench.upkeep.reload()

        assert await one.ends() == (SUCCESS, None)
        assert one.generations == [1, 2 if change == "a newer token" else 1]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("reset_in", "variables", "fields"),
    [
        (600, {}, {}),
        (600, {"wait_for_reset": "60"}, {}),
        (600, {"wait_for_reset": "3600"}, {"timeout_seconds": 60}),
        (600, {"wait_for_reset": "3600", "max_resumes": "0"}, {"timeout_seconds": 7200}),
        (None, {"wait_for_reset": "3600"}, {}),
    ],
    ids=["not asked for", "behind the setting", "behind its own time", "no resume is left", "no end is known"],
)
def test_a_limit_whose_end_cannot_be_waited_for_is_answered_at_once(
    tmp_path: Path, reset_in: float | None, variables: dict[str, str], fields: dict[str, Any]
) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, **variables)
        resets_at = None if reset_in is None else time.time() + reset_in
        one = bench.start(limited(resets_at), **fields)

        assert await one.ends() == (FAILED, ErrorClass.RATE_LIMIT)
        assert one.execution.limited_until == resets_at
        assert bench.published("execution.parked") == []

    asyncio.run(main())


@pytest.mark.usefixtures("soon")
def test_a_limit_that_is_met_again_is_waited_out_as_often_as_there_are_resumes_left(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, wait_for_reset="60", max_resumes="2")

        def limited_again() -> AttemptReport:
            return report(trouble=TokenTrouble.LIMITED, resets_at=time.time() + 0.1)

        one = bench.start(limited_again, limited_again, limited_again)

        assert await one.ends() == (FAILED, ErrorClass.RATE_LIMIT)
        assert len(bench.published("execution.parked")) == 2

    asyncio.run(main())


@pytest.mark.usefixtures("soon")
def test_those_that_were_admitted_to_wait_for_a_limit_go_on_after_its_end(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, slots="1")
        assert (await bench.start(limited(time.time() + 0.3)).ends())[1] is ErrorClass.RATE_LIMIT
        waiting = [bench.start(finished, execution_id=f"waits-{n}", parks=True, park_seconds=30) for n in range(3)]

        assert [await one.ends() for one in waiting] == [(SUCCESS, None)] * 3
        assert [one.generations for one in waiting] == [[1]] * 3

    asyncio.run(main())


@races
async def test_all_streams_of_an_execution_read_through_its_one_reader(home: Path) -> None:
    """Streams share what was read where they have the same reader."""
    one = Bench(home).start(finished)
    supervisor: Any = SimpleNamespace(_live={"one": one.execution})

    first, second = (Supervisor.view(supervisor, "one") for _ in range(2))

    assert first.transcript is second.transcript
    assert await one.ends() == (SUCCESS, None)
