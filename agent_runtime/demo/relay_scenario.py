"""The scenario with the relay: switches that stop nothing, held requests, and a tool that looks for the token."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable

from agent_runtime.demo import token_search
from agent_runtime.demo.execution import DemoExecution
from agent_runtime.demo.report import RelayPromise
from agent_runtime.demo.scenario import IN_PARALLEL, names_of_four, tool, waiting_tool
from agent_runtime.demo.stage import Stage
from agent_runtime.standins.messages_api import Tool

SWITCHES = 3
TOOLS = SWITCHES + 2
"""Tools of each execution: during the first ones the token is switched, then one is refused, then one limited."""

TOKENS = TOOLS + 1
SEARCH_RESULT = "token-search.json"


def play(stage: Stage, new_stage: Callable[[], Stage]) -> None:
    """
    Play all steps.

    Args:
        new_stage: Makes a stage without the relay, on which the same search must find the token.

    Raises:
        CannotContinue: A step cannot be finished.
    """
    four: list[DemoExecution] = []
    for name in names_of_four():
        searches = [] if four else [_search_tool(stage)]
        four.append(stage.start(name, *(waiting_tool(name, number) for number in range(TOOLS)), *searches))
    for number in range(SWITCHES):
        _switch(stage, number)
    _hold(stage, SWITCHES, "expired", RelayPromise.DEAD)
    _hold(stage, SWITCHES + 1, "usage_limit", RelayPromise.LIMIT)
    for each in four:
        stage.wait_for_answer(each)
        _judge(stage, each)
    statuses = sum((stage.api.seen(token).by_status for token in stage.tokens), Counter[int]())
    stage.figure("refusals and limits by the API", str(statuses[401] + statuses[429]))
    found, asked = _result_of_search(stage, "with the relay", expected=0)
    no_run = "the tool did not run" if found is None else ""
    stage.check(RelayPromise.SEARCH, found == 0, no_run or f"it found {found}")
    stage.check(RelayPromise.NO_KEY, not no_run and asked == 0, no_run or f"{asked} requests reached the API")
    _play_control(new_stage())


def _switch(stage: Stage, number: int) -> None:
    """While all four are in the middle of a tool, write a token, and let the API refuse the old one at once."""
    busy = stage.wait_until_busy(stage.executions, number)
    stage.check(RelayPromise.SWITCHES, busy == IN_PARALLEL, f"at switch {number + 1} only {busy} did")
    stage.collect_arguments()
    stage.write_token(number + 1)
    stage.refuse_token(number, "expired")
    stage.measure_first_request(number + 1, f"first request with it ({number + 1})")


def _hold(stage: Stage, number: int, fault: str, promise: RelayPromise) -> None:
    """Refuse the token in use, wait until a request of each of the four is held, and write the next token."""
    stage.wait_until_busy(stage.executions, number)
    stage.refuse_token(number, fault)
    held = stage.wait_until_all(stage.executions, "all four held", lambda each: (it := each.record()) and it.held)
    stage.say("supervisor", f"holds a request of each of {held} executions; no process is ended")
    stage.check(promise, held == IN_PARALLEL, f"only {held} were held")
    stage.write_token(number + 1)
    stage.measure_first_request(number + 1, f"first held request sent with it ({number + 1})")


def _judge(stage: Stage, execution: DemoExecution) -> None:
    """Check an execution by its answer, its record, its events and the files that its tools wrote."""
    name, attempt = execution.name, execution.first_attempt()
    otherwise = execution.fault or (f"{name} was stopped: {attempt.stop_reason}" if attempt.stop_reason else "")
    stage.check(RelayPromise.FINISH, not otherwise, otherwise)
    ran = stage.tools_run(execution)
    stage.check(RelayPromise.TOOLS_ONCE, ran == [str(number) for number in range(TOOLS)], f"{name} ran {ran}")
    told = execution.api_errors_shown
    stage.check(RelayPromise.UNSEEN, told == 0, f"{name} was told of {told}")


def _play_control(stage: Stage) -> None:
    """Run the same search with a supervisor that gives the CLI the token itself."""
    stage.say("demo", "the control: another supervisor, without the relay, and the same tool looks for the token")
    stage.start_supervisor()
    stage.wait_for_answer(stage.start("control", _search_tool(stage)))
    found, asked = _result_of_search(stage, "without the relay", expected=1)
    otherwise = f"it found {found}, and {asked} requests for a key reached the API"
    stage.check(RelayPromise.CONTROL, found == asked == 1, otherwise)
    stage.end_supervisor()


def _search_tool(stage: Stage) -> Tool:
    command = shlex.join([sys.executable, "-I", token_search.__file__, str(stage.workspace / SEARCH_RESULT)])
    return tool("look for the token in processes and files, and ask for an API key with the credential", command)


def _result_of_search(stage: Stage, where: str, *, expected: int) -> tuple[int | None, int]:
    """Return how many of the tokens the search found (None: it did not run), and its number of requests for a key."""
    asked = sum(each.path == token_search.MINTING_PATH for each in stage.api.requests)
    try:
        result = json.loads((stage.workspace / SEARCH_RESULT).read_bytes())
    except (OSError, ValueError):
        return None, asked
    found = sum(token.fingerprint in result["found"] for token in stage.tokens)
    places = f"{result['processes']} processes and {result['files']} files"
    key = f"its request for a key was answered {result['minted']}; {asked} such requests reached the API"
    stage.say("demo", f"the tool looked at {places}; tokens found: {found}; {key}")
    stage.figure(f"tokens that a tool finds in {places} {where}", str(found), str(expected))
    return found, asked
