"""What becomes of held requests: policy alone, without a process and without a relay."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from agent_runtime.delivery.delivery import HeldRequest
from agent_runtime.evidence.detector import Channel, Detection
from agent_runtime.evidence.matching import Rule
from agent_runtime.execution.attempt_data import Held, Released
from agent_runtime.model.state import CLASS_BY_TROUBLE, StopReason, TokenTrouble
from agent_runtime.tokens.probe import ProbeVerdict
from tests.supervisor.test_runner import Api, Bench, finished, happens, races, report
from tests.support.supervised import API_KEY, NEW

if TYPE_CHECKING:
    from pathlib import Path

    from agent_runtime.model.tokens import Token


class Request(HeldRequest):
    """A held request that remembers how it was released."""

    replays: bool | None = None

    def release(self, *, replays: bool) -> None:
        self.is_over, self.replays = True, replays


class Child:
    """An attempt whose request is held until it is released or the attempt is ended."""

    def __init__(self, bench: Bench, trouble: TokenTrouble = TokenTrouble.REFUSED, **fields: Any) -> None:
        self.bench = bench
        self.trouble = trouble
        self.used_tool = bool(fields.pop("used_tool", True))
        self.resets_at = fields.pop("resets_at", None)
        self.limit_seconds = fields.pop("limit_seconds", 100.0)
        self.limit_type = fields.pop("limit_type", None)
        self.requests: list[Request] = []
        self.ended = asyncio.Event()
        self.running = bench.start(self.step, *fields.pop("then", ()), **fields)
        self.running.execution.end_hold = self.end  # type: ignore[method-assign]  # no attempt runs

    def end(self, request: HeldRequest) -> None:  # noqa: ARG002 - as Execution.end_hold
        self.ended.set()

    def hold(self) -> Request:
        generation = self.bench.secret.status.generation
        assert generation is not None
        detection = Detection(
            Rule("a_rule", CLASS_BY_TROUBLE[self.trouble], condemns=True, blocks=self.trouble is TokenTrouble.BLOCKED),
            Channel.WIRE,
            is_final=True,
            limit_type=self.limit_type,
            resets_at=self.resets_at,
        )
        request = Request(detection, b"{}", generation, self.limit_seconds)
        self.requests.append(request)
        self.running.execution.record_event(Held(request, self.used_tool))
        return request

    async def decided(self, request: Request) -> None:
        stopped = self.running.execution.stopped
        await happens(lambda: request.is_over or self.ended.is_set() or stopped.done())

    async def step(self) -> Any:
        while True:
            request, held_at = self.hold(), time.monotonic()
            await self.decided(request)
            request.is_over = True
            self.running.execution.record_event(Released(request))
            if request.replays is None:
                waited = time.monotonic() - held_at
                return report(trouble=self.trouble, used_tool=self.used_tool, waited_seconds=waited)
            if not request.replays:
                return report(trouble=self.trouble, resets_at=self.resets_at)
            if self.bench.api.verdict is ProbeVerdict.VALID and self.trouble is TokenTrouble.REFUSED and not self.cured:
                continue
            return finished()

    cured = True


@races
async def test_a_held_request_goes_on_in_its_place_when_a_newer_token_comes(home: Path) -> None:
    bench = Bench(home, park="60")
    bench.api.verdict = ProbeVerdict.REFUSED
    child = Child(bench)
    await happens(lambda: bench.refusals == [1])
    record = child.running.execution.record
    assert (record.held, record.state) == (True, "running")
    bench.write(NEW)

    assert await child.running.ends() == ("success", None)
    assert not record.held
    assert (record.metadata.attempts, record.metadata.resumes) == (0, 0) or record.metadata.resumes == 0
    assert [child.requests[0].replays, len(bench.published("execution.held"))] == [True, 1]
    assert len(bench.published("execution.released")) == 1
    assert bench.published("execution.parked") == []


@races
async def test_with_auto_the_first_one_answers_at_once_and_the_others_wait(home: Path) -> None:
    bench = Bench(home, slots="3")
    bench.api.verdict = ProbeVerdict.REFUSED
    children = [Child(bench, execution_id=f"auto-{number}") for number in range(3)]
    await happens(lambda: any(child.running.task.done() for child in children))
    assert sum(child.running.task.done() for child in children) == 1
    bench.write(NEW)
    ends = sorted([str(await child.running.ends()) for child in children])

    assert sum("auth" in end for end in ends) == 1
    assert sum("success" in end for end in ends) == 2


@races
async def test_without_a_newer_token_the_wait_ends_once_with_the_answer(home: Path) -> None:
    bench = Bench(home, park="0.2")
    bench.api.verdict = ProbeVerdict.REFUSED
    begun = time.monotonic()
    child = Child(bench)

    assert await child.running.ends() == ("failed", "auth")
    assert time.monotonic() - begun < 3
    assert bench.published("execution.parked") == [], "it has waited already"


@races
async def test_where_the_cli_waits_less_than_the_execution_it_is_parked_for_the_rest(home: Path) -> None:
    bench = Bench(home, park="2")
    bench.api.verdict = ProbeVerdict.REFUSED
    begun = time.monotonic()
    child = Child(bench, limit_seconds=0.5)
    await happens(lambda: bench.published("execution.parked"))
    at_least = 2 - (time.monotonic() - begun)

    assert await child.running.ends() == ("failed", "auth")
    assert time.monotonic() - begun >= 2
    [parked] = bench.published("execution.parked")
    assert at_least < parked["seconds"] <= 1.5


@races
async def test_what_the_probe_calls_good_is_sent_again_a_bounded_number_of_times(home: Path) -> None:
    bench = Bench(home, max_resumes="2")
    child = Child(bench)
    child.cured = False

    assert await child.running.ends() == ("failed", "upstream")
    assert [request.replays for request in child.requests] == [True, True, None]
    assert bench.refusals == []


@races
async def test_after_a_tool_a_refusal_condemns_nothing_without_the_probe(home: Path) -> None:
    await _after_a_tool(home, "off")


@races
async def test_after_a_tool_a_refusal_condemns_nothing_where_the_probe_is_undecided(home: Path) -> None:
    await _after_a_tool(home, "on_refusal")


async def _after_a_tool(home: Path, probe: str) -> None:
    bench = Bench(home, probe=probe, park="60")
    bench.api.verdict = ProbeVerdict.UNKNOWN
    child = Child(bench, then=(finished,))

    assert await child.running.ends() == ("success", None)
    assert bench.refusals == []
    assert child.requests[0].replays is None, "a further attempt decides"


@races
async def test_a_newer_token_of_another_kind_is_taken_by_a_further_attempt(home: Path) -> None:
    bench = Bench(home, park="60")
    bench.api.verdict = ProbeVerdict.REFUSED
    child = Child(bench, then=(finished,))
    await happens(lambda: bench.refusals == [1])
    bench.write(API_KEY)

    assert await child.running.ends() == ("success", None)
    assert child.running.generations == [1, 2]


@races
async def test_a_limit_is_held_until_a_newer_token_comes_and_told_at_once(home: Path) -> None:
    bench = Bench(home, park="60")
    child = Child(bench, TokenTrouble.LIMITED, resets_at=time.time() + 3600)
    await happens(lambda: bench.published("token.limited"))
    bench.write(NEW)

    assert await child.running.ends() == ("success", None)
    assert child.requests[0].replays is True


@races
async def test_a_limit_that_ends_soon_is_waited_for(home: Path) -> None:
    bench = Bench(home, wait_for_reset="60", park="0")
    child = Child(bench, TokenTrouble.LIMITED, resets_at=time.time() + 0.2, timeout_seconds=10)

    assert await child.running.ends() == ("success", None)
    assert child.requests[0].replays is True


@races
async def test_a_limit_without_a_wait_is_passed_on(home: Path) -> None:
    bench = Bench(home, park="0")
    child = Child(bench, TokenTrouble.LIMITED, resets_at=time.time() + 3600)

    assert await child.running.ends() == ("failed", "rate_limit")
    assert child.requests[0].replays is False


OPUS = "claude-opus-4-5"


@races
async def test_what_could_run_now_gets_the_slot_of_the_one_that_is_held_longest(home: Path) -> None:
    bench = Bench(home, park="60", slots="2")
    first, second = (
        Child(bench, TokenTrouble.LIMITED, limit_type="seven_day_opus", execution_id=name, model=OPUS, then=then)
        for name, then in (("first", (finished,)), ("second", ()))
    )
    await happens(lambda: len(bench.holds._waiting) == 2)  # both have been decided about
    same = bench.start(finished, execution_id="same", model=OPUS)
    other = bench.start(finished, execution_id="other")

    assert await other.ends() == ("success", None)
    assert (first.ended.is_set(), second.ended.is_set()) == (True, False)
    await happens(lambda: first.running.execution.record.state == "parked")
    assert [event["execution_id"] for event in bench.published("execution.parked")][:1] == ["first"]
    assert second.running.execution.record.held
    bench.write(NEW)
    for running in (first.running, second.running, same):
        assert await running.ends() == ("success", None)
    assert second.requests[0].replays is True
    assert (first.requests[0].replays, len(first.running.sessions)) == (None, 2)


@races
async def test_a_held_one_keeps_its_slot_while_nothing_in_the_queue_could_run(home: Path) -> None:
    bench = Bench(home, park="60", slots="1")
    bench.api.verdict = ProbeVerdict.REFUSED
    child = Child(bench)
    await happens(lambda: bench.refusals == [1])
    queued = bench.start(finished, execution_id="queued")
    bench.gate.changed.notify()
    await asyncio.sleep(0.05)
    assert not child.ended.is_set()
    assert queued.execution.record.state == "queued"
    bench.write(NEW)

    assert await child.running.ends() == await queued.ends() == ("success", None)


@races
async def test_each_way_to_end_a_held_execution_waits_for_nothing(home: Path) -> None:
    bench = Bench(home, park="60")
    bench.api.verdict = ProbeVerdict.REFUSED
    child = Child(bench)
    await happens(lambda: bench.refusals == [1])
    child.running.execution.request_stop(StopReason.CANCELLED)

    assert (await child.running.ends())[0] in {"cancelled", "failed"}
    assert child.requests[0].replays is None


@races
async def test_in_a_drain_nothing_waits(home: Path) -> None:
    bench = Bench(home, park="60")
    bench.api.verdict = ProbeVerdict.REFUSED
    bench.draining = True
    child = Child(bench)

    assert await child.running.ends() == ("failed", "interrupted")
    assert child.requests[0].replays is None


@races
async def test_a_fault_of_the_policy_passes_the_answer_on_and_is_logged(home: Path) -> None:
    bench = Bench(home, park="60")

    async def fails(token: Token, *, model: str | None = None) -> ProbeVerdict:
        raise ZeroDivisionError

    bench.api.ask = fails  # type: ignore[method-assign]  # a fault that no answer of the API causes
    child = Child(bench, used_tool=False, then=(finished,))
    await happens(lambda: child.requests[0].is_over if child.requests else False)

    assert child.requests[0].replays is False
    bench.api.ask = Api().ask  # type: ignore[method-assign]  # as it was
    assert await child.running.ends() == ("success", None)
