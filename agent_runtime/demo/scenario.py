"""The scenario: a token is switched during four executions, then one is refused, and a new one ends the outage."""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import TYPE_CHECKING

import psutil

from agent_runtime.demo.environment import processes_of
from agent_runtime.demo.execution import DemoExecution, result_of
from agent_runtime.demo.report import LINE_TO_SIGNAL_SECONDS, REFUSAL_TO_GONE_SECONDS, Promise
from agent_runtime.model.tokens import Token
from agent_runtime.standins.messages_api import Text, Tool

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.demo.environment import Environment
    from agent_runtime.demo.report import Report

IN_PARALLEL = 4
QUOTED = 120


class Scenario:
    """The steps of the demo, played in order on one environment and recorded in one report."""

    TOKENS = 3

    def __init__(self, environment: Environment, report: Report) -> None:
        self._environment = environment
        self._api = environment.api
        self._say = environment.say
        self._check = report.check
        self._figure = report.figure
        self._tokens = [Token(f"sk-ant-oat01-demo-{secrets.token_hex(24)}") for _ in range(self.TOKENS)]
        self._executions: list[DemoExecution] = []
        self._argv: list[str] = []
        self._api.on_other_tokens("invalid")
        for token in self._tokens:
            self._api.accept(token)

    def play(self) -> None:
        """
        Play all steps.

        Raises:
            CannotContinue: A step cannot be finished.
        """
        try:
            self._write(0)
            self._wait_until_ready()
            self._check(Promise.STARTS, held=True, otherwise="")
            self._play_steps()
        finally:
            lost = [
                each.fault for each in self._executions if each.fault and not (each.expects_refusal and each.is_auth)
            ]
            if self._executions:
                self._check(Promise.NOT_LOST, not lost, "; ".join(lost))
        left = processes_of([each.execution_id for each in self._executions])
        self._check(Promise.NOTHING_LEFT, not left, f"{len(left)} processes with an execution's mark")
        many = f"{len(left)} are left of {len(self._executions)} executions"
        self._say("demo", f"looked at every process there is: {many}")

    def _play_steps(self) -> None:
        self._switch_under_four()
        self._refuse_during_work()
        self._submit_while_refused()
        self._recover()

    # -- steps

    def _switch_under_four(self) -> None:
        """Write a token while four executions are in the middle of a tool, start a fifth, and let all five finish."""
        old, new = self._tokens[:2]
        four = [
            self._start(f"task-{number}", *self._tools(f"task-{number}", 0)) for number in range(1, 1 + IN_PARALLEL)
        ]
        busy = self._wait_until_busy(four, 0)
        self._say("demo", f"{busy} executions are in the middle of a tool: now the token is switched")
        self._check(Promise.TOOLS_RUN, busy == IN_PARALLEL, f"only {busy} did")
        self._collect_argv(four)

        written_at = self._write(1)
        fifth = self._start_quick("fifth")
        self._await_answer(fifth)
        self._check(Promise.NEW_TOKEN, self._sent_only(fifth, new), "not so the requests that the API saw")
        self._figure("token file written -> first request with it", seconds(self._first_request(new, written_at)))

        self._say("demo", "the four go on: their tools are let go")
        self._end_tools(0)
        for each in four:
            self._await_answer(each)
            self._check(Promise.FINISH, not each.fault, each.fault)
        counts = self._api.seen(old)
        refused = counts.by_status[401]
        self._say("api", f"saw {counts.requests} requests with token {old.fingerprint} so far, and refused {refused}")

    def _refuse_during_work(self) -> None:
        """Make the API refuse the token while an execution with processes of its own works."""
        stays = "setsid sleep 120 </dev/null >/dev/null 2>&1 & "
        execution = self._start("doomed", *self._tools("doomed", 1, before=stays))
        execution.expects_refusal = True
        self._wait_until_busy([execution], 1)
        processes = processes_of([execution.execution_id])
        self._refuse(1, "expired")
        gone_at = self._environment.wait_until_gone(execution.execution_id, processes)
        self._await_answer(execution)
        evidence = execution.first_attempt().evidence
        # The CLI also sends requests beside the conversation, with the same token: the first refusal of any counts.
        refused = [each.at for each in self._api.requests if each.status == 401]
        to_gone = gone_at - refused[0] if gone_at is not None and refused else None
        to_signal = evidence.seconds_to_signal if evidence else None
        signalled = "-" if to_signal is None else f"{to_signal * 1000:.2f} ms"
        self._check(Promise.ANSWER, execution.is_auth, f"the answer was {execution}")
        has_line = evidence is not None and "401" in evidence.line
        self._check(Promise.EVIDENCE, has_line, f"its evidence was {evidence or 'missing'}")
        self._check(Promise.SIGNAL, to_signal is not None and to_signal <= LINE_TO_SIGNAL_SECONDS, signalled)
        self._check(Promise.GONE, to_gone is not None and to_gone <= REFUSAL_TO_GONE_SECONDS, seconds(to_gone))
        self._figure("failing line -> signal", signalled, f"{LINE_TO_SIGNAL_SECONDS * 1000:.0f} ms")
        row = f"API's 401 -> failing line -> all processes gone ({len(processes)} watched)"
        self._figure(row, seconds(to_gone), f"{REFUSAL_TO_GONE_SECONDS:.0f} s")
        if evidence:
            self._say("doomed", f"failing line, rule {evidence.rule}: {evidence.line[:QUOTED]}...")
        if gone_at is not None:
            watched = f"{len(processes)} watched"
            self._say("doomed", f"no process of it is left ({watched}), {seconds(to_gone)} after the API's 401")

    def _submit_while_refused(self) -> None:
        """Check that a task is turned away, and nothing is spawned, while the token is refused."""
        state = self._environment.client.token().state
        self._say("supervisor", f"says of the token: {state}")
        before = len(self._api.requests)
        execution = DemoExecution(self._environment, "refused")
        self._await_answer(execution)
        nothing_happened = not execution.record() and len(self._api.requests) == before
        held = state == "refused" and execution.is_auth and nothing_happened
        self._check(Promise.TURNED_AWAY, held, f"the token's state was {state}, the answer {execution}")

    def _recover(self) -> None:
        self._write(2)
        self._wait_until_ready()  # from when the watcher has seen the new token, tasks are admitted
        execution = self._start_quick("healed")
        self._await_answer(execution)
        is_right = self._sent_only(execution, self._tokens[2])
        self._check(Promise.HEALED, not execution.fault and is_right, execution.fault or "it came with another token")

    def search_for_tokens(self) -> None:
        """Search the supervisor's files, its log, the answers and the processes' arguments for the tokens."""
        texts = [each.text for each in self._executions]
        texts += [argument.encode(errors="replace") for argument in self._argv]
        files = [path for path in self._environment.data_dir.rglob("*") if path.is_file()]
        texts += [path.read_bytes() for path in [*files, self._environment.log]]
        hits = sum(token.secret.encode() in text for token in self._tokens for text in texts)
        self._check(Promise.NO_TOKEN_SHOWN, hits == 0, f"found in {hits} places")
        marks = [f"[token:{token.fingerprint}]".encode() for token in self._tokens]
        shown = sum(any(mark in text for mark in marks) for text in texts)
        self._say(
            "demo",
            f"searched log, records, transcripts, answers and argv ({sum(map(len, texts))} bytes) for the tokens: "
            f"found {hits}; where a tool had printed one, its fingerprint stands ({shown} files and answers)",
        )

    # -- parts of steps

    def _write(self, number: int) -> float:
        """Write a token, and return the time after that, in epoch seconds."""
        token = self._tokens[number]
        self._environment.write_token(token)
        self._say("backend", f"wrote token {token.fingerprint} to the secret file; that is all it does")
        return time.time()

    def _wait_until_ready(self) -> None:
        self._environment.wait_until("ready", lambda: self._environment.client.health().unready is None)

    def _start(self, name: str, *tools: Tool) -> DemoExecution:
        self._api.script(name, *tools, Text(text=result_of(name)))
        self._executions.append(DemoExecution(self._environment, name))
        return self._executions[-1]

    def _start_quick(self, name: str) -> DemoExecution:
        return self._start(name, tool("look around", "ls"))

    def _tools(self, name: str, number: int, *, before: str = "") -> list[Tool]:
        prints = "tr '\\0' '\\n' </proc/$PPID/environ | grep -a ^CLAUDE_CODE; sleep 0.3"
        return [
            tool("print the environment of its CLI, which holds the token", prints),
            waiting_tool(name, number, before=before),
            tool("run the tests", "sleep 0.3; echo tests passed"),
        ]

    def _end_tools(self, number: int) -> None:
        """Create the file that the tools with this number wait for, so that they end."""
        (self._environment.workspace / f"go-{number}").touch()

    def _ran(self, execution: DemoExecution) -> list[str]:
        """Return the number of each tool of the execution that has begun, once for each time."""
        trace = self._environment.workspace / f"ran-{execution.name}"
        return trace.read_text().split() if trace.exists() else []

    def _wait_until_busy(self, executions: list[DemoExecution], number: int) -> int:
        """Wait until all run the tool with this number, or one execution has ended; return how many run it."""
        what = f"all in the middle of tool {number}"
        return self._wait_until_all(executions, what, lambda each: str(number) in self._ran(each))

    def _wait_until_all(
        self, executions: list[DemoExecution], what: str, happened: Callable[[DemoExecution], object]
    ) -> int:
        """Wait until *happened* is true of all executions, or one has ended; return of how many it is true."""

        def count() -> int:
            return sum(each.answer is None and bool(happened(each)) for each in executions)

        self._environment.wait_until(
            what, lambda: count() == len(executions) or any(each.answer for each in executions)
        )
        return count()

    def _await_answer(self, execution: DemoExecution) -> None:
        self._environment.wait_until(f"an answer to {execution.name}", lambda: execution.answer)

    def _collect_argv(self, executions: list[DemoExecution]) -> None:
        for process in processes_of([each.execution_id for each in executions]):
            with contextlib.suppress(psutil.Error):
                self._argv += process.cmdline()

    def _refuse(self, number: int, fault: str) -> None:
        """Make the API answer a token with *fault* from now on, and end the tools with the same number."""
        token = self._tokens[number]
        self._api.on(token, fault)
        self._say("api", f"answers token {token.fingerprint} from now on: {fault.replace('_', ' ')}")
        self._end_tools(number)

    def _sent_only(self, execution: DemoExecution, token: Token) -> bool:
        """Whether the API got requests of an execution, and all of them with this token."""
        carried = [each.carries(token) for each in self._api.requests if each.script == execution.name]
        return bool(carried) and all(carried)

    def _first_request(self, token: Token, written_at: float) -> float | None:
        """Return the seconds from a token's write to the first request with it; None: there was no request."""
        seen = next((each.at for each in self._api.requests if each.script and each.carries(token)), None)
        return None if seen is None else time.time() - (time.monotonic() - seen) - written_at


def tool(description: str, command: str) -> Tool:
    """Return a call of the CLI's Bash tool."""
    return Tool(command=command, input={"command": command, "description": description})


def waiting_tool(name: str, number: int, *, before: str = "") -> Tool:
    """Return a tool that records its start in a file, and runs until the tools with its number may end."""
    wait = f"i=0; while [ $i -lt 900 ] && [ ! -e go-{number} ]; do i=$((i+1)); sleep 0.1; done"
    return tool(f"a long build, number {number}", f"{before}echo {number} >>ran-{name}; {wait}; echo built")


def seconds(number: float | None) -> str:
    """Format a duration in seconds; ``-`` for None."""
    return "-" if number is None else f"{number:.3f} s"
