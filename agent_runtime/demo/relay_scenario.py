"""The scenario with the relay: switches that stop nothing, held requests, and a tool that looks for the token."""

from __future__ import annotations

import json
import secrets
import shlex
import sys
from collections import Counter
from typing import TYPE_CHECKING

from agent_runtime.demo import token_search
from agent_runtime.demo.execution import DemoExecution, result_of
from agent_runtime.demo.report import RelayPromise
from agent_runtime.demo.scenario import IN_PARALLEL, Scenario, seconds, tool, waiting_tool
from agent_runtime.model.tokens import Token
from agent_runtime.standins.messages_api import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.demo.environment import Environment
    from agent_runtime.demo.report import Report
    from agent_runtime.standins.messages_api import Tool

SWITCHES = 3
TOOLS = SWITCHES + 2
"""Tools of each execution: during the first ones the token is switched, then one is refused, then one limited."""

SEARCH_RESULT = "token-search.json"


class RelayScenario(Scenario):
    """
    The steps with the relay.

    Args:
        new_environment: Makes an environment without the relay, in which the same search must find the token.
    """

    TOKENS = TOOLS + 1

    def __init__(self, environment: Environment, report: Report, new_environment: Callable[[], Environment]) -> None:
        super().__init__(environment, report)
        self._new_environment = new_environment

    def _play_steps(self) -> None:
        four: list[DemoExecution] = []
        for name in [f"task-{number}" for number in range(1, IN_PARALLEL + 1)]:
            searches = [] if four else [_search_tool(self._environment)]
            four.append(self._start(name, *(waiting_tool(name, number) for number in range(TOOLS)), *searches))
        for number in range(SWITCHES):
            self._switch(four, number)
        self._hold(four, SWITCHES, "expired", RelayPromise.DEAD)
        self._hold(four, SWITCHES + 1, "usage_limit", RelayPromise.LIMIT)
        for each in four:
            self._await_answer(each)
            self._judge(each)
        statuses = sum((self._api.seen(token).by_status for token in self._tokens), Counter[int]())
        self._figure("refusals and limits by the API", str(statuses[401] + statuses[429]))
        found, asked = self._result_of_search(self._environment, self._tokens, "with the relay", expected=0)
        no_run = "the tool did not run" if found is None else ""
        self._check(RelayPromise.SEARCH, found == 0, no_run or f"it found {found}")
        self._check(RelayPromise.NO_KEY, not no_run and asked == 0, no_run or f"{asked} requests reached the API")
        self._play_control()

    # -- steps

    def _switch(self, four: list[DemoExecution], number: int) -> None:
        """While all four are in the middle of a tool, write a token, and let the API refuse the old one at once."""
        busy = self._wait_until_busy(four, number)
        self._check(RelayPromise.SWITCHES, busy == IN_PARALLEL, f"at switch {number + 1} only {busy} did")
        self._collect_argv(four)
        written_at = self._write(number + 1)
        self._refuse(number, "expired")
        self._measure_first_request(number + 1, written_at, "first request with it")

    def _hold(self, four: list[DemoExecution], number: int, fault: str, promise: RelayPromise) -> None:
        """Refuse the token in use, wait until a request of each of the four is held, and write the next token."""
        self._wait_until_busy(four, number)
        self._refuse(number, fault)
        held = self._wait_until_all(four, "all four held", _is_held)
        self._say("supervisor", f"holds a request of each of {held} executions; no process is ended")
        self._check(promise, held == IN_PARALLEL, f"only {held} were held")
        written_at = self._write(number + 1)
        self._measure_first_request(number + 1, written_at, "first held request sent with it")

    def _play_control(self) -> None:
        """Run the same search with a supervisor that gives the CLI the token itself."""
        self._say("demo", "the control: another supervisor, without the relay, and the same tool looks for the token")
        environment, token = self._new_environment(), Token(f"sk-ant-oat01-demo-{secrets.token_hex(24)}")
        environment.write_token(token)
        environment.start_supervisor()
        environment.wait_until("ready", lambda: environment.client.health().unready is None)
        environment.api.script("control", _search_tool(environment), Text(text=result_of("control")))
        execution = DemoExecution(environment, "control")
        environment.wait_until("an answer to the control", lambda: execution.answer)
        found, asked = self._result_of_search(environment, [token], "without the relay", expected=1)
        otherwise = f"it found {found}, and {asked} requests for a key reached the API"
        self._check(RelayPromise.CONTROL, found == asked == 1, otherwise)
        environment.end_supervisor()

    # -- parts of steps

    def _measure_first_request(self, number: int, written_at: float, what: str) -> None:
        """Measure the time from a token's write to its first request, unless all executions end without one."""
        token = self._tokens[number]

        def has_come() -> bool:
            return self._first_request(token, written_at) is not None or all(each.answer for each in self._executions)

        self._environment.wait_until("a request with the new token", has_come)
        self._figure(f"token file written -> {what} ({number})", seconds(self._first_request(token, written_at)))

    def _result_of_search(
        self, environment: Environment, tokens: list[Token], where: str, *, expected: int
    ) -> tuple[int | None, int]:
        """Return how many of *tokens* the search found (None: it did not run), and its number of requests for a key."""
        asked = sum(each.path == token_search.MINTING_PATH for each in environment.api.requests)
        try:
            result = json.loads((environment.workspace / SEARCH_RESULT).read_bytes())
        except (OSError, ValueError):
            return None, asked
        found = sum(token.fingerprint in result["found"] for token in tokens)
        places = f"{result['processes']} processes and {result['files']} files"
        key = f"its request for a key was answered {result['minted']}; {asked} such requests reached the API"
        self._say("demo", f"the tool looked at {places}; tokens found: {found}; {key}")
        self._figure(f"tokens that a tool finds in {places} {where}", str(found), str(expected))
        return found, asked

    def _judge(self, execution: DemoExecution) -> None:
        """Check an execution by its answer, its record, its events and the files that its tools wrote."""
        name, attempt = execution.name, execution.first_attempt()
        otherwise = execution.fault or (f"{name} was stopped: {attempt.stop_reason}" if attempt.stop_reason else "")
        self._check(RelayPromise.FINISH, not otherwise, otherwise)
        ran = self._ran(execution)
        self._check(RelayPromise.TOOLS_ONCE, ran == [str(number) for number in range(TOOLS)], f"{name} ran {ran}")
        told = execution.api_errors_shown
        self._check(RelayPromise.UNSEEN, told == 0, f"{name} was told of {told}")


def _is_held(execution: DemoExecution) -> bool:
    record = execution.record()
    return record is not None and record.held


def _search_tool(environment: Environment) -> Tool:
    command = shlex.join([sys.executable, "-I", token_search.__file__, str(environment.workspace / SEARCH_RESULT)])
    return tool("look for the token in processes and files, and ask for an API key with the credential", command)
