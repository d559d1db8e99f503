"""The scenario: a token is switched during four executions, then one is refused, and a new one ends the outage."""

from __future__ import annotations

from agent_runtime.demo.execution import DemoExecution
from agent_runtime.demo.report import LINE_TO_SIGNAL_SECONDS, REFUSAL_TO_GONE_SECONDS, Promise
from agent_runtime.demo.stage import Stage, processes_of, seconds
from agent_runtime.model.tokens import Token
from agent_runtime.standins.messages_api import Tool

IN_PARALLEL = 4
TOKENS = 3
QUOTED = 120


def play(stage: Stage) -> None:
    """
    Play all steps.

    Raises:
        CannotContinue: A step cannot be finished.
    """
    _switch_under_four(stage)
    _refuse_during_work(stage)
    _submit_while_refused(stage)
    _recover(stage)


def _switch_under_four(stage: Stage) -> None:
    """Write a token while four executions are in the middle of a tool, start a fifth, and let all five finish."""
    four = [stage.start(name, *_tools(name, 0)) for name in names_of_four()]
    busy = stage.wait_until_busy(four, 0)
    stage.say("demo", f"{busy} executions are in the middle of a tool: now the token is switched")
    stage.check(Promise.TOOLS_RUN, busy == IN_PARALLEL, f"only {busy} did")
    stage.collect_arguments()

    stage.write_token(1)
    fifth = _run_quick(stage, "fifth")
    stage.check(Promise.NEW_TOKEN, _sent_only(stage, fifth, stage.tokens[1]), "not so the requests that the API saw")
    stage.measure_first_request(1)

    stage.say("demo", "the four go on: their tools are let go")
    stage.end_tools(0)
    for each in four:
        stage.wait_for_answer(each)
        stage.check(Promise.FINISH, not each.fault, each.fault)
    old = stage.tokens[0]
    counts = stage.api.seen(old)
    refused = counts.by_status[401]
    stage.say("api", f"saw {counts.requests} requests with token {old.fingerprint} so far, and refused {refused}")


def _refuse_during_work(stage: Stage) -> None:
    """Make the API refuse the token while an execution with processes of its own works."""
    stays = "setsid sleep 120 </dev/null >/dev/null 2>&1 & "
    execution = stage.start("doomed", *_tools("doomed", 1, before=stays))
    execution.expects_refusal = True
    stage.wait_until_busy([execution], 1)
    processes = processes_of([execution.execution_id])
    stage.refuse_token(1, "expired")
    gone_at = stage.wait_until_gone(execution.execution_id, processes)
    stage.wait_for_answer(execution)
    evidence = execution.first_attempt().evidence
    # The CLI also sends requests beside the conversation, with the same token: the first refusal of any counts.
    refused = [each.at for each in stage.api.requests if each.status == 401]
    to_gone = gone_at - refused[0] if gone_at is not None and refused else None
    to_signal = evidence.seconds_to_signal if evidence else None
    signalled = "-" if to_signal is None else f"{to_signal * 1000:.2f} ms"
    stage.check(Promise.ANSWER, execution.is_auth, f"the answer was {execution}")
    has_line = evidence is not None and "401" in evidence.line
    stage.check(Promise.EVIDENCE, has_line, f"its evidence was {evidence or 'missing'}")
    stage.check(Promise.SIGNAL, to_signal is not None and to_signal <= LINE_TO_SIGNAL_SECONDS, signalled)
    stage.check(Promise.GONE, to_gone is not None and to_gone <= REFUSAL_TO_GONE_SECONDS, seconds(to_gone))
    stage.figure("failing line -> signal", signalled, f"{LINE_TO_SIGNAL_SECONDS * 1000:.0f} ms")
    row = f"API's 401 -> failing line -> all processes gone ({len(processes)} watched)"
    stage.figure(row, seconds(to_gone), f"{REFUSAL_TO_GONE_SECONDS:.0f} s")
    if evidence:
        stage.say("doomed", f"failing line, rule {evidence.rule}: {evidence.line[:QUOTED]}...")
    if gone_at is not None:
        watched = f"{len(processes)} watched"
        stage.say("doomed", f"no process of it is left ({watched}), {seconds(to_gone)} after the API's 401")


def _submit_while_refused(stage: Stage) -> None:
    """Check that a task is turned away, and nothing is spawned, while the token is refused."""
    state = stage.client.token().state
    stage.say("supervisor", f"says of the token: {state}")
    before = len(stage.api.requests)
    execution = _run_quick(stage, "refused")
    execution.expects_refusal = True
    nothing_happened = not execution.record() and len(stage.api.requests) == before
    held = state == "refused" and execution.is_auth and nothing_happened
    stage.check(Promise.TURNED_AWAY, held, f"the token's state was {state}, the answer {execution}")


def _recover(stage: Stage) -> None:
    stage.write_token(2)
    stage.wait_until_ready()  # from when the watcher has seen the new token, tasks are admitted
    execution = _run_quick(stage, "healed")
    is_right = _sent_only(stage, execution, stage.tokens[2])
    stage.check(Promise.HEALED, not execution.fault and is_right, execution.fault or "it came with another token")


def _run_quick(stage: Stage, name: str) -> DemoExecution:
    execution = stage.start(name, tool("look around", "ls"))
    stage.wait_for_answer(execution)
    return execution


def _sent_only(stage: Stage, execution: DemoExecution, token: Token) -> bool:
    """Whether the API got requests of an execution, and all of them with this token."""
    carried = [each.carries(token) for each in stage.api.requests if each.script == execution.name]
    return bool(carried) and all(carried)


def _tools(name: str, number: int, *, before: str = "") -> list[Tool]:
    prints = "tr '\\0' '\\n' </proc/$PPID/environ | grep -a ^CLAUDE_CODE; sleep 0.3"
    return [
        tool("print the environment of its CLI, which holds the token", prints),
        waiting_tool(name, number, before=before),
        tool("run the tests", "sleep 0.3; echo tests passed"),
    ]


def names_of_four() -> list[str]:
    """Return the names of the executions that run in parallel."""
    return [f"task-{number}" for number in range(1, 1 + IN_PARALLEL)]


def tool(description: str, command: str) -> Tool:
    """Return a call of the CLI's Bash tool."""
    return Tool(command=command, input={"command": command, "description": description})


def waiting_tool(name: str, number: int, *, before: str = "") -> Tool:
    """Return a tool that records its start in a file, and runs until the tools with its number may end."""
    wait = f"i=0; while [ $i -lt 900 ] && [ ! -e go-{number} ]; do i=$((i+1)); sleep 0.1; done"
    return tool(f"a long build, number {number}", f"{before}echo {number} >>ran-{name}; {wait}; echo built")
