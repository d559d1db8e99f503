"""What is played: a token switched under four executions, a token that dies, and a new one that heals it."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psutil

from agent_runtime.demo.execution import Execution
from agent_runtime.demo.outside import Watch, marked
from agent_runtime.demo.report import LINE_TO_SIGNAL_SECONDS, REFUSAL_TO_GONE_SECONDS, Promise
from agent_runtime.keeper import NURSERY_NAME
from agent_runtime.standins.messages_api import Text, Tool
from agent_runtime.tokens import Token

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from agent_runtime.demo.report import Report
    from agent_runtime.demo.stage import Stage

IN_PARALLEL = 4
GONE_TIMEOUT_SECONDS = 10.0
NO_CHILD_TIMEOUT_SECONDS = 3.0
QUOTED = 120
SHORT_WORK, LONG_WORK = 3, 900  # tenths of a second


@dataclass(frozen=True, slots=True)
class Switch:
    """From the moment the token file was complete to the first execution that was given after it."""

    seconds_to_spawn: float | None = None
    seconds_to_request: float | None = None


@dataclass(frozen=True, slots=True)
class Death:
    """How one execution ended whose token had died."""

    seconds_to_signal: float | None
    seconds_to_gone: float | None
    processes: int


class Scenario:
    """The acts, in order, on one stage; what they find goes into one report."""

    def __init__(self, stage: Stage, report: Report) -> None:
        self._stage = stage
        self._api = stage.api
        self._say = stage.say
        self._report = report
        self._tokens = [_made_up_token() for _ in range(3)]
        self._executions: list[Execution] = []
        self._expected_deaths: list[Execution] = []
        self._deaths: list[Death] = []
        self._switch = Switch()
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
            self._first_token()
            self._switch_under_four()
            self._die_in_the_middle()
            self._die_at_the_start()
            self._turn_away()
            self._heal()
        finally:
            self._take_stock()
        self._look_for_leftovers()

    # -- acts

    def _first_token(self) -> None:
        self._write(0)
        self._stage.until("ready", lambda: self._stage.client.get("/readyz").status_code == 200)
        self._report.check(Promise.STARTS, held=True, otherwise="")  # until() raises otherwise

    def _switch_under_four(self) -> None:
        """Four are in the middle of a tool, the file is written, a fifth begins; then all five go on to their end."""
        old, new = self._tokens[:2]
        go_on = self._stage.workspace / "go-on"
        four = [self._start_with_a_tool_that_waits(f"task-{number}", go_on) for number in range(1, IN_PARALLEL + 1)]
        self._stage.until(
            "all four in the middle of a tool",
            lambda: all(self._is_in_its_tool(each) or each.is_over for each in four),
        )
        busy = [each for each in four if self._is_in_its_tool(each) and not each.is_over]
        self._say("demo", f"{len(busy)} executions are in the middle of a tool: now the token is switched")
        self._report.check(Promise.TOOLS_RUN, len(busy) == IN_PARALLEL, f"only {len(busy)} did")
        self._argv += _arguments(marked(each.execution_id for each in four))

        written_at = self._write(1)
        self._api.script("fifth", *_quick("fifth"))
        fifth = self._start("fifth")
        fifth.wait()
        seen = [request for request in self._api.requests if request.script == "fifth"]
        right = [request for request in seen if request.carries(new)]
        self._report.check(
            Promise.NEW_TOKEN,
            bool(seen) and len(right) == len(seen),
            f"{len(seen) - len(right)} of its {len(seen)} requests came with another token"
            if seen
            else "no request of it was seen",
        )
        if right:
            self._say("api", f"saw {len(right)} requests of the fifth, all with token {new.fingerprint}")
        self._finished(fifth)
        started_at = fifth.first_attempt().get("started_at")
        self._switch = Switch(
            seconds_to_spawn=_epoch(started_at) - written_at if started_at else None,
            seconds_to_request=_epoch_of(right[0].at) - written_at if right else None,
        )
        self._say("demo", "the four go on: their tools are let go")
        go_on.touch()
        for each in four:
            each.wait()
        for each in four:
            self._report.check(Promise.FINISH, *self._finished(each))
        counts = self._api.seen(old)
        self._say(
            "api",
            f"saw {counts.requests} requests with token {old.fingerprint} so far, and refused {counts.by_status[401]}",
        )

    def _die_in_the_middle(self) -> None:
        """The API begins to refuse a token while an execution with processes of its own is at work."""
        token, die = self._tokens[1], self._stage.workspace / "die"
        execution = self._start_with_a_tool_that_waits("doomed", die, leaves_a_process=True)
        self._expected_deaths.append(execution)
        self._stage.until("in its tool", lambda: self._is_in_its_tool(execution) or execution.is_over)
        with Watch(execution.execution_id) as watch:
            watch.look()
            self._kill_token(token)
            die.touch()
            self._watch_death(execution, watch)

    def _die_at_the_start(self) -> None:
        """An execution begins with a token that is dead already."""
        self._api.script("unlucky", *_quick("unlucky"))
        execution = self._start("unlucky")
        self._expected_deaths.append(execution)
        self._stage.until("spawned", lambda: bool(execution.first_attempt().get("pid")) or execution.is_over)
        with Watch(execution.execution_id) as watch:
            if pid := execution.first_attempt().get("pid"):
                watch.add(pid)
                self._watch_death(execution, watch)
            else:
                answer = execution.wait()
                self._report.check(Promise.ANSWER, answer is not None and answer.is_auth, f"the answer was {answer}")

    def _turn_away(self) -> None:
        """Nothing is spawned any more for a generation the API has refused."""
        state = self._stage.client.get("/api/token").json().get("state")
        self._say("supervisor", f"says of the token: {state}")
        before = len(self._api.requests)
        execution = Execution(self._stage, "refused")
        answer = execution.wait()
        self._report.check(
            Promise.TURNED_AWAY,
            state == "refused"
            and answer is not None
            and answer.is_auth
            and not execution.record()
            and len(self._api.requests) == before,
            f"the token's state was {state}, the answer {answer}",
        )

    def _heal(self) -> None:
        self._write(2)
        self._api.script("healed", *_quick("healed"))
        # The watcher makes the switch known; a task is admitted from then on.
        self._stage.until("the new token known", lambda: self._stage.client.get("/readyz").status_code == 200)
        execution = self._start("healed")
        execution.wait()
        held, otherwise = self._finished(execution)
        seen = [request for request in self._api.requests if request.script == "healed"]
        right = bool(seen) and all(request.carries(self._tokens[2]) for request in seen)
        self._report.check(Promise.HEALED, held and right, otherwise if not held else "it came with another token")

    def _take_stock(self) -> None:
        finished = [each for each in self._executions if self._finished(each)[0]]
        died = [each for each in self._expected_deaths if each.answer is not None and each.answer.is_auth]
        lost = [each for each in self._executions if each not in finished and each not in died]
        if self._executions:
            self._report.check(Promise.NOT_LOST, not lost, "; ".join(self._finished(each)[1] for each in lost))
        expected = len(self._executions) - len(self._expected_deaths)
        self._report.figure("executions started", str(len(self._executions)))
        self._report.figure("executions finished", str(len(finished)), str(expected))
        self._report.figure("executions stopped, their token was dead", str(len(died)), str(len(self._expected_deaths)))
        self._report.figure("executions lost", str(len(lost)), "0")
        self._report.figure(
            "token file written -> first execution on it spawned", _seconds(self._switch.seconds_to_spawn)
        )
        self._report.figure(
            "token file written -> its first request at the API", _seconds(self._switch.seconds_to_request)
        )
        self._report.figure(
            "failing line -> signal",
            _all(_milliseconds(death.seconds_to_signal) for death in self._deaths),
            f"{LINE_TO_SIGNAL_SECONDS * 1000:.0f} ms",
        )
        self._report.figure(
            f"API's 401 -> failing line -> all processes gone ({_all(str(d.processes) for d in self._deaths)} watched)",
            _all(_seconds(death.seconds_to_gone) for death in self._deaths),
            f"{REFUSAL_TO_GONE_SECONDS:.0f} s",
        )

    def _look_for_leftovers(self) -> None:
        left = [process.pid for process in marked(each.execution_id for each in self._executions)]
        children = _children(self._stage.supervisor.pid) if self._stage.supervisor is not None else []
        self._report.check(
            Promise.NOTHING_LEFT,
            not left and not children,
            f"{len(left)} processes with an execution's mark, {len(children)} children of the supervisor",
        )
        self._say(
            "demo", f"looked at every process there is: {len(left)} are left of {len(self._executions)} executions"
        )

    def search_for_tokens(self) -> None:
        """Search all that the supervisor has left behind, answered and passed on for the tokens."""
        texts = [each.answer.text.encode() for each in self._executions if each.answer is not None]
        texts += [argument.encode(errors="replace") for argument in self._argv]
        files = [path for path in self._stage.data_dir.rglob("*") if path.is_file()]
        texts += [path.read_bytes() for path in [*files, self._stage.log]]
        hits = sum(token.secret.encode() in text for token in self._tokens for text in texts)
        self._report.check(Promise.NO_TOKEN_SHOWN, hits == 0, f"found in {hits} places")
        marks = [f"[token:{token.fingerprint}]".encode() for token in self._tokens]
        shown = sum(any(mark in text for mark in marks) for text in texts)
        searched = sum(len(text) for text in texts)
        self._say(
            "demo",
            f"searched log, records, transcripts, answers and argv ({searched} bytes) for the tokens: found {hits}; "
            f"where a tool had printed one, its fingerprint stands ({shown} files and answers)",
        )

    # -- what they are made of

    def _write(self, number: int) -> float:
        token = self._tokens[number]
        written_at = self._stage.write_token(token)
        self._say("backend", f"wrote token {token.fingerprint} to the secret file; that is all it does")
        return written_at

    def _kill_token(self, token: Token) -> None:
        self._say("api", f"refuses token {token.fingerprint} from now on: 401, token has expired")
        self._api.on(token, "expired")

    def _start(self, name: str) -> Execution:
        execution = Execution(self._stage, name)
        self._executions.append(execution)
        return execution

    def _start_with_a_tool_that_waits(self, name: str, sign: Path, *, leaves_a_process: bool = False) -> Execution:
        ready = shlex.quote(f"in-tool-{name}")
        stays = "setsid sleep 120 </dev/null >/dev/null 2>&1 & " if leaves_a_process else ""
        wait = _work(LONG_WORK, until=sign.name)
        self._api.script(
            name,
            _tool(
                "print the environment of its CLI, which holds the token",
                f"tr '\\0' '\\n' </proc/$PPID/environ | grep -a ^CLAUDE_CODE; {_work(SHORT_WORK)}",
            ),
            _tool(
                "leave a process behind in its own session, and work on" if leaves_a_process else "a long build",
                f"{stays}touch {ready}; {wait}; echo built",
            ),
            _tool("run the tests", f"{_work(SHORT_WORK)}; echo tests passed"),
            Text(text=_result_of(name)),
        )
        return self._start(name)

    def _is_in_its_tool(self, execution: Execution) -> bool:
        return (self._stage.workspace / f"in-tool-{execution.name}").exists()

    def _finished(self, execution: Execution) -> tuple[bool, str]:
        """Tell whether the caller got this execution's own result, and if not, what it got."""
        answer = execution.answer
        if answer is None:
            return False, f"{execution.name} got no answer" + (f": {execution.failure}" if execution.failure else "")
        good = answer.status == 200 and answer.body.get("response") == _result_of(execution.name)
        attempts = answer.body.get("metadata", {}).get("attempts")
        if good and attempts == 1:
            return True, ""
        return False, f"{execution.name} was answered {answer}" + (f" after {attempts} attempts" if good else "")

    def _watch_death(self, execution: Execution, watch: Watch) -> None:
        gone_at = watch.wait_until_gone(GONE_TIMEOUT_SECONDS)
        answer = execution.wait()
        attempt = execution.first_attempt()
        evidence: dict[str, Any] = attempt.get("evidence") or {}
        # The CLI also asks for itself, beside the conversation, with the same token: the first refusal of all counts.
        refused = [each.at for each in self._api.requests if each.status == 401 and each.at >= execution.began_at]
        to_gone = gone_at - refused[0] if gone_at is not None and refused else None
        to_signal = evidence.get("seconds_to_signal")
        self._deaths.append(Death(to_signal, to_gone, watch.count))
        check, name = self._report.check, execution.name
        check(Promise.ANSWER, answer is not None and answer.is_auth, f"the answer to {name} was {answer}")
        check(
            Promise.EVIDENCE, "401" in evidence.get("line", ""), f"the evidence of {name} was {evidence or 'missing'}"
        )
        check(
            Promise.SIGNAL,
            to_signal is not None and to_signal <= LINE_TO_SIGNAL_SECONDS,
            f"{name}: {_milliseconds(to_signal)}",
        )
        check(
            Promise.GONE,
            to_gone is not None and to_gone <= REFUSAL_TO_GONE_SECONDS,
            f"{name}: {_seconds(to_gone)}",
        )
        if evidence:
            self._say(name, f"failing line, rule {evidence.get('rule')}: {str(evidence.get('line'))[:QUOTED]}...")
        if gone_at is None:
            self._say(name, f"still has processes {GONE_TIMEOUT_SECONDS:.0f} s after the refusal")
        else:
            self._say(
                name, f"no process of it is left ({watch.count} watched), {_seconds(to_gone)} after the API's 401"
            )


def _made_up_token() -> Token:
    return Token(f"sk-ant-oat01-demo-{secrets.token_hex(24)}")


def _result_of(name: str) -> str:
    return f"{name} is done"


def _tool(description: str, command: str) -> Tool:
    return Tool(command=command, input={"command": command, "description": description})


def _work(tenths_of_a_second: int, until: str = "") -> str:
    """Write shell that is busy for a time, at most until a file exists."""
    limit = f"[ $i -lt {tenths_of_a_second} ]" + (f" && [ ! -e {shlex.quote(until)} ]" if until else "")
    return f"i=0; while {limit}; do i=$((i+1)); sleep 0.1; done"


def _quick(name: str) -> tuple[Tool, Text]:
    return _tool("look around", "ls"), Text(text=_result_of(name))


def _children(pid: int) -> list[psutil.Process]:
    """
    Return what descends from this process, zombies too, after a short time for the last ones to be reaped.

    Without the nursery, which is there as long as its supervisor.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        found = [p for p in psutil.Process(pid).children(recursive=True) if p.name() != NURSERY_NAME.decode()]
        return list(psutil.wait_procs(found, NO_CHILD_TIMEOUT_SECONDS)[1])
    return []


def _arguments(processes: Iterable[psutil.Process]) -> list[str]:
    found: list[str] = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found += process.cmdline()
    return found


def _epoch(rfc3339: str) -> float:
    return datetime.fromisoformat(rfc3339).timestamp()


def _epoch_of(monotonic_seconds: float) -> float:
    return time.time() - (time.monotonic() - monotonic_seconds)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f} s"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.2f} ms"


def _all(texts: Iterable[str]) -> str:
    return ", ".join(texts) or "-"
