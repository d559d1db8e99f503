"""The scenario with the relay: switches that stop nothing, held requests, and a tool that looks for the token."""

from __future__ import annotations

import json
import secrets
import shlex
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from agent_runtime.demo import hunt
from agent_runtime.demo.execution import Execution
from agent_runtime.demo.report import Promise, RelayPromise
from agent_runtime.demo.scenario import IN_PARALLEL, LONG_WORK, Scenario, all_of, flaw, result_of, seconds, tool, work
from agent_runtime.model.tokens import Token
from agent_runtime.standins.messages_api import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.demo.report import Report
    from agent_runtime.demo.stage import Stage
    from agent_runtime.standins.messages_api import Tool

SWITCHES = 3
TOOLS = SWITCHES + 2
"""Tools of each execution: during the first ones the token is switched, during the next two it dies and is limited."""

HUNTER = "task-1"
HUNTED = "hunted"


class RelayScenario(Scenario):
    """
    The steps with the relay.

    Args:
        new_stage: Makes a stage without the relay, for the control of the hunt.
    """

    TOKENS = TOOLS + 1

    def __init__(self, stage: Stage, report: Report, new_stage: Callable[[], Stage]) -> None:
        super().__init__(stage, report)
        self._new_stage = new_stage
        self._after_switches: list[float | None] = []
        self._after_holds: list[float | None] = []
        self._hunts: list[tuple[str, str, str]] = []

    def play(self) -> None:
        """
        Play everything.

        Raises:
            Stuck: It cannot be played to its end.
        """
        try:
            self._write(0)
            self._until_ready()
            self._check(Promise.STARTS, held=True, otherwise="")
            four = [self._start_with_tools(f"task-{number}") for number in range(1, IN_PARALLEL + 1)]
            for number in range(SWITCHES):
                self._switch(four, number)
            self._hold(four, SWITCHES, "expired", RelayPromise.DEAD)
            self._hold(four, SWITCHES + 1, "usage_limit", RelayPromise.LIMIT)
            for each in four:
                self._end(each)
                self._judge(each)
            found, asked = self._result_of_hunt(self._stage, self._tokens)
            no_run = "the tool did not run" if found is None else ""
            self._check(RelayPromise.HUNT, found == 0, no_run or f"it found {found}")
            self._check(RelayPromise.NO_KEY, not no_run and asked == 0, no_run or f"{asked} requests reached the API")
            self._play_control()
        finally:
            self._take_stock()
        self._look_for_leftovers()

    # -- steps

    def _switch(self, four: list[Execution], number: int) -> None:
        """Write a token, and let the API refuse the old one at once, while all four are in the middle of a tool."""
        busy = self._until_all(four, f"in the middle of tool {number + 1}", lambda each: len(self._ran(each)) > number)
        self._check(RelayPromise.SWITCHES, busy == IN_PARALLEL, f"at switch {number + 1} only {busy} did")
        self._note_argv(four)
        written_at = self._write(number + 1)
        self._refuse(number, "expired")
        self._after_switches.append(self._first_request(number + 1, written_at))

    def _hold(self, four: list[Execution], number: int, fault: str, promise: RelayPromise) -> None:
        """Refuse the token in use, wait until a request of each of the four is held, and write the next token."""
        self._until_all(four, f"in the middle of tool {number + 1}", lambda each: len(self._ran(each)) > number)
        self._refuse(number, fault)
        held = self._until_all(four, "held", _is_held)
        self._say("supervisor", f"holds a request of each of {held} executions; no process is ended")
        self._check(promise, held == IN_PARALLEL, f"only {held} were held")
        written_at = self._write(number + 1)
        self._after_holds.append(self._first_request(number + 1, written_at))

    def _play_control(self) -> None:
        """Run the same hunt where the CLI gets the token itself."""
        self._say("demo", "the control: another supervisor, without the relay, and the same tool looks for the token")
        stage, token = self._new_stage(), Token(f"sk-ant-oat01-demo-{secrets.token_hex(24)}")
        stage.timeline.hide(token)
        stage.write_token(token)
        stage.start_supervisor()
        stage.until("ready", lambda: stage.client.health().unready is None)
        stage.api.script("control", _hunt_of(stage), Text(text=result_of("control")))
        execution = Execution(stage, "control")
        stage.until("an answer to the control", lambda: execution.answer)
        found, asked = self._result_of_hunt(stage, [token])
        otherwise = f"it found {found}, and {asked} requests for a key reached the API"
        self._check(RelayPromise.CONTROL, found == asked == 1, otherwise)
        stage.end_supervisor()

    # -- parts of steps

    def _start_with_tools(self, name: str) -> Execution:
        steps = [
            tool(f"step {number + 1}", f"echo {number} >>ran-{name}; {work(LONG_WORK, until=f'go-{number}')}")
            for number in range(TOOLS)
        ]
        last = [_hunt_of(self._stage)] if name == HUNTER else []
        self._api.script(name, *steps, *last, Text(text=result_of(name)))
        return self._start(name)

    def _until_all(self, four: list[Execution], what: str, happened: Callable[[Execution], object]) -> int:
        """Wait until it happened to each of the four, or one has ended; return to how many it did."""

        def count() -> int:
            return sum(each.answer is None and bool(happened(each)) for each in four)

        self._stage.until(f"all four {what}", lambda: count() == IN_PARALLEL or any(each.answer for each in four))
        return count()

    def _ran(self, execution: Execution) -> list[str]:
        """Return the numbers of its tools as often as each has begun."""
        trace = self._stage.workspace / f"ran-{execution.name}"
        return trace.read_text().split() if trace.exists() else []

    def _refuse(self, number: int, fault: str) -> None:
        """Refuse a token from now on, and end the tools that the four executions run."""
        token = self._tokens[number]
        self._api.on(token, fault)
        self._say("api", f"answers token {token.fingerprint} from now on: {fault.replace('_', ' ')}")
        (self._stage.workspace / f"go-{number}").touch()

    def _first_request(self, number: int, written_at: float) -> float | None:
        """
        Wait for the first request with a token.

        Returns:
            How long after its writing the API saw it, in seconds; None: every execution has ended without one.
        """
        token, seen = self._tokens[number], list[float]()

        def has_come() -> bool:
            seen.extend(each.at for each in self._api.requests if each.script and each.carries(token))
            return bool(seen) or all(each.answer for each in self._executions)

        self._stage.until("a request with the new token", has_come)
        return time.time() - (time.monotonic() - seen[0]) - written_at if seen else None

    def _result_of_hunt(self, stage: Stage, tokens: list[Token]) -> tuple[int | None, int]:
        """Return how many of the tokens the hunt has found (None: it did not run), and how often it asked the API."""
        asked = sum(each.path == hunt.MINTING_PATH for each in stage.api.requests)
        try:
            hunted = json.loads((stage.workspace / HUNTED).read_bytes())
        except (OSError, ValueError):
            return None, asked
        found = sum(token.fingerprint in hunted["found"] for token in tokens)
        places = f"{hunted['processes']} processes and {hunted['files']} files"
        key = f"its request for a key was answered {hunted['minted']}; {asked} such requests reached the API"
        self._say("demo", f"the tool looked at {places}; tokens found: {found}; {key}")
        is_control = stage is not self._stage
        row = f"tokens that a tool finds in {places} {'without' if is_control else 'with'} the relay"
        self._hunts.append((row, str(found), str(int(is_control))))
        return found, asked

    def _judge(self, execution: Execution) -> None:
        """Check one of the four by its answer, its record, its events and the traces of its tools."""
        name, attempt = execution.name, execution.first_attempt()
        otherwise = flaw(execution) or (f"{name} was stopped: {attempt.stop_reason}" if attempt.stop_reason else "")
        self._check(RelayPromise.FINISH, not otherwise, otherwise)
        ran = self._ran(execution)
        self._check(RelayPromise.TOOLS_ONCE, ran == [str(number) for number in range(TOOLS)], f"{name} ran {ran}")
        told = execution.failures_told
        self._check(RelayPromise.UNSEEN, told == 0, f"{name} was told of {told}")

    def _take_stock(self) -> None:
        records = [record for each in self._executions if (record := each.record())]
        lost = [flaw(each) for each in self._executions if flaw(each)]
        if self._executions:
            self._check(Promise.NOT_LOST, not lost, "; ".join(lost))
        statuses = sum((self._api.seen(token).by_status for token in self._tokens), Counter[int]())
        figure, many = self._report.figure, len(self._executions)
        figure("executions finished", str(many - len(lost)), str(IN_PARALLEL))
        attempts = [attempt for each in records for attempt in each.attempts]
        figure("processes of the CLI that they took", str(len(attempts)), str(IN_PARALLEL))
        figure("of them stopped or killed", str(sum(each.stop_reason is not None for each in attempts)), "0")
        figure("executions resumed", str(sum(each.metadata.resumes > 0 for each in records)), "0")
        figure("tools run", str(sum(len(self._ran(each)) for each in self._executions)), str(IN_PARALLEL * TOOLS))
        figure("refusals and limits by the API", str(statuses[401] + statuses[429]))
        figure("of them told to the executions", str(sum(each.failures_told for each in self._executions)), "0")
        figure("token file written -> first request with it", all_of(map(seconds, self._after_switches)))
        figure("token file written -> first held request sent with it", all_of(map(seconds, self._after_holds)))
        for row in self._hunts:
            figure(*row)


def _is_held(execution: Execution) -> bool:
    record = execution.record()
    return record is not None and record.held


def _hunt_of(stage: Stage) -> Tool:
    command = shlex.join([sys.executable, "-I", hunt.__file__, str(stage.workspace / HUNTED)])
    return tool("look for the token in processes and files, and ask for an API key with the credential", command)
