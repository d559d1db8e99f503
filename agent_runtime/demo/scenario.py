"""The scenario: a token switched under four executions, a token that dies, and a new one that heals it."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import time
from typing import TYPE_CHECKING

import psutil

from agent_runtime.client import Answer
from agent_runtime.delivery.reload_check import DIRECTORY_PREFIX
from agent_runtime.demo.execution import Execution
from agent_runtime.demo.report import LINE_TO_SIGNAL_SECONDS, REFUSAL_TO_GONE_SECONDS, Promise
from agent_runtime.demo.stage import GONE_TIMEOUT_SECONDS, marked
from agent_runtime.model.tokens import Token
from agent_runtime.process.forkserver.shim import FORK_SERVER_NAME
from agent_runtime.standins.messages_api import Text, Tool

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_runtime.demo.report import Report
    from agent_runtime.demo.stage import Stage
    from agent_runtime.standins.messages_api import SeenRequest

IN_PARALLEL = 4
NO_CHILD_TIMEOUT_SECONDS = 3.0
QUOTED = 120
SHORT_WORK, LONG_WORK = 3, 900  # tenths of a second


class Scenario:
    """The steps, in order, on one stage; their measurements go into one report."""

    TOKENS = 3

    def __init__(self, stage: Stage, report: Report) -> None:
        self._stage = stage
        self._api = stage.api
        self._say = stage.say
        self._report = report
        self._check = report.check
        self._tokens = [Token(f"sk-ant-oat01-demo-{secrets.token_hex(24)}") for _ in range(self.TOKENS)]
        self._executions: list[Execution] = []
        self._doomed: list[Execution] = []
        self._to_spawn: float | None = None
        self._to_request: float | None = None
        self._deaths: list[tuple[float | None, float | None, int]] = []  # seconds to signal and to gone, processes
        self._argv: list[str] = []
        stage.timeline.hide(*self._tokens)
        self._api.on_other_tokens("invalid")
        for token in self._tokens:
            self._api.accept(token)

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
            self._switch_under_four()
            self._die_in_the_middle()
            self._die_at_the_start()
            self._turn_away()
            self._heal()
        finally:
            self._take_stock()
        self._look_for_leftovers()

    # -- steps

    def _switch_under_four(self) -> None:
        """Four are in the middle of a tool, the file is written, a fifth begins; then all five go on to their end."""
        old, new = self._tokens[:2]
        four = [self._start_with_a_tool_that_waits(f"task-{number}", "go-on") for number in range(1, IN_PARALLEL + 1)]
        self._stage.until(
            "all four in the middle of a tool", lambda: all(self._is_busy(each) or each.answer for each in four)
        )
        busy = [each for each in four if self._is_busy(each)]
        self._say("demo", f"{len(busy)} executions are in the middle of a tool: now the token is switched")
        self._check(Promise.TOOLS_RUN, len(busy) == IN_PARALLEL, f"only {len(busy)} did")
        self._note_argv(four)

        written_at = self._write(1)
        fifth = self._start_quick("fifth")
        self._end(fifth)
        seen, right = self._requests("fifth", new)
        otherwise = f"{len(seen) - len(right)} of its {len(seen)} requests came with another token"
        self._check(Promise.NEW_TOKEN, bool(seen) and right == seen, otherwise if seen else "no request of it was seen")
        if right:
            self._say("api", f"saw {len(right)} requests of the fifth, all with token {new.fingerprint}")
            self._to_request = time.time() - (time.monotonic() - right[0].at) - written_at
        if started_at := fifth.first_attempt().started_at:
            self._to_spawn = started_at.timestamp() - written_at

        self._say("demo", "the four go on: their tools are let go")
        (self._stage.workspace / "go-on").touch()
        for each in four:
            self._end(each)
            self._check(Promise.FINISH, not flaw(each), flaw(each))
        counts = self._api.seen(old)
        refused = counts.by_status[401]
        self._say("api", f"saw {counts.requests} requests with token {old.fingerprint} so far, and refused {refused}")

    def _die_in_the_middle(self) -> None:
        """The API begins to refuse a token while an execution with processes of its own is at work."""
        execution = self._start_with_a_tool_that_waits("doomed", "die", leaves_a_process=True)
        self._doomed.append(execution)
        self._stage.until("in its tool", lambda: self._is_busy(execution) or execution.answer)
        processes = marked([execution.execution_id])
        token = self._tokens[1]
        self._say("api", f"refuses token {token.fingerprint} from now on: 401, token has expired")
        self._api.on(token, "expired")
        (self._stage.workspace / "die").touch()
        self._watch_death(execution, processes)

    def _die_at_the_start(self) -> None:
        """An execution begins with a token that is dead already."""
        execution = self._start_quick("unlucky")
        self._doomed.append(execution)
        self._stage.until("spawned", lambda: execution.first_attempt().pid or execution.answer)
        if pid := execution.first_attempt().pid:
            processes: set[psutil.Process] = set()
            with contextlib.suppress(psutil.NoSuchProcess):
                processes.add(psutil.Process(pid))
            self._watch_death(execution, processes)
        else:
            self._check(Promise.ANSWER, execution.is_auth, f"the answer was {execution}")

    def _turn_away(self) -> None:
        """Nothing is spawned any more for a generation the API has refused."""
        state = self._stage.client.token().state
        self._say("supervisor", f"says of the token: {state}")
        before = len(self._api.requests)
        execution = Execution(self._stage, "refused")
        self._end(execution)
        nothing_happened = not execution.record() and len(self._api.requests) == before
        held = state == "refused" and execution.is_auth and nothing_happened
        self._check(Promise.TURNED_AWAY, held, f"the token's state was {state}, the answer {execution}")

    def _heal(self) -> None:
        self._write(2)
        self._until_ready()  # the watcher makes the switch known; a task is admitted from then on
        execution = self._start_quick("healed")
        self._end(execution)
        found, (seen, right) = flaw(execution), self._requests("healed", self._tokens[2])
        is_right = bool(seen) and right == seen
        self._check(Promise.HEALED, not found and is_right, found or "it came with another token")

    def _take_stock(self) -> None:
        finished = [each for each in self._executions if not flaw(each)]
        died = [each for each in self._doomed if each.is_auth]
        lost = [each for each in self._executions if each not in finished and each not in died]
        if self._executions:
            self._check(Promise.NOT_LOST, not lost, "; ".join(map(flaw, lost)))
        to_signal, to_gone, processes = zip(*self._deaths, strict=True) if self._deaths else ((), (), ())
        figure = self._report.figure
        figure("executions started", str(len(self._executions)))
        figure("executions finished", str(len(finished)), str(len(self._executions) - len(self._doomed)))
        figure("executions stopped, their token was dead", str(len(died)), str(len(self._doomed)))
        figure("executions lost", str(len(lost)), "0")
        figure("token file written -> first execution on it spawned", seconds(self._to_spawn))
        figure("token file written -> its first request at the API", seconds(self._to_request))
        limit = f"{LINE_TO_SIGNAL_SECONDS * 1000:.0f} ms"
        figure("failing line -> signal", all_of(map(_milliseconds, to_signal)), limit)
        watched = all_of(map(str, processes))
        limit = f"{REFUSAL_TO_GONE_SECONDS:.0f} s"
        figure(
            f"API's 401 -> failing line -> all processes gone ({watched} watched)", all_of(map(seconds, to_gone)), limit
        )

    def _look_for_leftovers(self) -> None:
        left = marked([each.execution_id for each in self._executions])
        children: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self._stage.supervisor.pid).children(recursive=True)
            # Without the fork server, which is there as long as its supervisor.
            own = [each for each in found if each.name() != FORK_SERVER_NAME.decode() and not _checks_cli(each)]
            children = [each for each in psutil.wait_procs(own, NO_CHILD_TIMEOUT_SECONDS)[1] if not _checks_cli(each)]
        otherwise = f"{len(left)} processes with an execution's mark, {len(children)} children of the supervisor"
        self._check(Promise.NOTHING_LEFT, not left and not children, otherwise)
        many = f"{len(left)} are left of {len(self._executions)} executions"
        self._say("demo", f"looked at every process there is: {many}")

    def search_for_tokens(self) -> None:
        """Search all that the supervisor has left behind, answered and passed on for the tokens."""
        texts = [each.text for each in self._executions]
        texts += [argument.encode(errors="replace") for argument in self._argv]
        files = [path for path in self._stage.data_dir.rglob("*") if path.is_file()]
        texts += [path.read_bytes() for path in [*files, self._stage.log]]
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
        token = self._tokens[number]
        written_at = self._stage.write_token(token)
        self._say("backend", f"wrote token {token.fingerprint} to the secret file; that is all it does")
        return written_at

    def _until_ready(self) -> None:
        self._stage.until("ready", lambda: self._stage.client.health().unready is None)

    def _start(self, name: str) -> Execution:
        self._executions.append(Execution(self._stage, name))
        return self._executions[-1]

    def _start_quick(self, name: str) -> Execution:
        self._api.script(name, tool("look around", "ls"), Text(text=result_of(name)))
        return self._start(name)

    def _start_with_a_tool_that_waits(self, name: str, sign: str, *, leaves_a_process: bool = False) -> Execution:
        stays = "setsid sleep 120 </dev/null >/dev/null 2>&1 & " if leaves_a_process else ""
        wait = work(LONG_WORK, until=sign)
        self._api.script(
            name,
            tool(
                "print the environment of its CLI, which holds the token",
                f"tr '\\0' '\\n' </proc/$PPID/environ | grep -a ^CLAUDE_CODE; {work(SHORT_WORK)}",
            ),
            tool(
                "leave a process behind in its own session, and work on" if leaves_a_process else "a long build",
                f"{stays}touch in-tool-{name}; {wait}; echo built",
            ),
            tool("run the tests", f"{work(SHORT_WORK)}; echo tests passed"),
            Text(text=result_of(name)),
        )
        return self._start(name)

    def _is_busy(self, execution: Execution) -> bool:
        """Whether it is in the middle of its tool."""
        return execution.answer is None and (self._stage.workspace / f"in-tool-{execution.name}").exists()

    def _end(self, execution: Execution) -> None:
        self._stage.until(f"an answer to {execution.name}", lambda: execution.answer)

    def _note_argv(self, executions: list[Execution]) -> None:
        for process in marked([each.execution_id for each in executions]):
            with contextlib.suppress(psutil.Error):
                self._argv += process.cmdline()

    def _requests(self, script: str, token: Token) -> tuple[list[SeenRequest], list[SeenRequest]]:
        """Return the requests of an execution that the API saw, and those of them that came with *token*."""
        seen = [request for request in self._api.requests if request.script == script]
        return seen, [request for request in seen if request.carries(token)]

    def _watch_death(self, execution: Execution, processes: set[psutil.Process]) -> None:
        name, check = execution.name, self._check
        gone_at = self._stage.until_gone(execution.execution_id, processes)
        self._end(execution)
        evidence = execution.first_attempt().evidence
        # The CLI also asks for itself, beside the conversation, with the same token: the first refusal of all counts.
        refused = [each.at for each in self._api.requests if each.status == 401 and each.at >= execution.began_at]
        to_gone = gone_at - refused[0] if gone_at is not None and refused else None
        to_signal = evidence.seconds_to_signal if evidence else None
        self._deaths.append((to_signal, to_gone, len(processes)))
        check(Promise.ANSWER, execution.is_auth, f"the answer to {name} was {execution}")
        has_line = evidence is not None and "401" in evidence.line
        check(Promise.EVIDENCE, has_line, f"the evidence of {name} was {evidence or 'missing'}")
        in_time = to_signal is not None and to_signal <= LINE_TO_SIGNAL_SECONDS
        check(Promise.SIGNAL, in_time, f"{name}: {_milliseconds(to_signal)}")
        in_time = to_gone is not None and to_gone <= REFUSAL_TO_GONE_SECONDS
        check(Promise.GONE, in_time, f"{name}: {seconds(to_gone)}")
        if evidence:
            self._say(name, f"failing line, rule {evidence.rule}: {evidence.line[:QUOTED]}...")
        if gone_at is None:
            self._say(name, f"still has processes {GONE_TIMEOUT_SECONDS:.0f} s after the refusal")
        else:
            watched = f"{len(processes)} watched"
            self._say(name, f"no process of it is left ({watched}), {seconds(to_gone)} after the API's 401")


def _checks_cli(process: psutil.Process) -> bool:
    """Whether it belongs to the supervisor's check of the CLI, which may go on beside all executions."""
    with contextlib.suppress(psutil.Error):
        family = [*process.parents(), process, *process.children()]
        return any(DIRECTORY_PREFIX in word for each in family for word in each.cmdline())
    return False


def flaw(execution: Execution) -> str:
    """Return what is wrong with an answer that should be the execution's own result; empty: nothing."""
    answer, name = execution.answer, execution.name
    attempts = answer.metadata.attempts if isinstance(answer, Answer) else None
    if isinstance(answer, Answer) and answer.response == result_of(name):
        return "" if attempts == 1 else f"{name} was answered {execution} after {attempts} attempts"
    return f"{name} got no answer" if answer is None else f"{name} was answered {execution}"


def result_of(name: str) -> str:
    """Return the text that an execution ends with."""
    return f"{name} is done"


def tool(description: str, command: str) -> Tool:
    """Return a call of the CLI's Bash tool."""
    return Tool(command=command, input={"command": command, "description": description})


def work(tenths_of_a_second: int, until: str = "") -> str:
    """Write shell that is busy for a time, at most until a file exists."""
    limit = f"[ $i -lt {tenths_of_a_second} ]" + (f" && [ ! -e {shlex.quote(until)} ]" if until else "")
    return f"i=0; while {limit}; do i=$((i+1)); sleep 0.1; done"


def seconds(number: float | None) -> str:
    """Write a time, or that there is none."""
    return "-" if number is None else f"{number:.3f} s"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.2f} ms"


def all_of(texts: Iterable[str]) -> str:
    """Write several figures, or that there is none."""
    return ", ".join(texts) or "-"
