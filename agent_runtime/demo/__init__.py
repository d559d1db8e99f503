"""The demo: the supervisor's main job against a stand-in API on loopback, and a table of measurements at the end."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
from collections.abc import Callable

from agent_runtime.client import ClientError
from agent_runtime.delivery.delivery import RELAY
from agent_runtime.demo import relay_scenario, scenario
from agent_runtime.demo.choice import choose_cli
from agent_runtime.demo.report import RELAY_PROMISES, Promise, Report
from agent_runtime.demo.stage import CannotContinue, Interrupted, Stage, interruptible, processes_of
from agent_runtime.demo.timeline import Timeline

__all__ = ["run_demo"]


def run_demo(claude: str | None, *, scripted: bool, delivery: str = "env") -> int:
    """
    Play the main job, print each event as it happens, and then a table of measurements.

    Args:
        claude: Command of the CLI; None: ``claude`` on PATH, else the scripted one.
        scripted: Use the scripted CLI even where there is a real one.
        delivery: ``env``, or ``relay`` for the scenario with the relay.

    Returns:
        0 if every promise held, 1 if one was broken, 128 plus the signal's number if a signal ended it.

    Raises:
        SettingsInvalid: The CLI cannot be run.
    """
    timeline = Timeline(sys.stdout)
    is_relay = delivery == RELAY
    report = Report(RELAY_PROMISES if is_relay else tuple(Promise))
    try:
        cli = choose_cli(claude, scripted=scripted)
        timeline.say("demo", f"the CLI is {cli.name}: {cli.reason}")
        with contextlib.ExitStack() as held:
            new_stage = functools.partial(Stage, cli, timeline, report, held)
            stage = new_stage(delivery=delivery, tokens=relay_scenario.TOKENS if is_relay else scenario.TOKENS)
            play = functools.partial(relay_scenario.play, new_stage=new_stage) if is_relay else scenario.play
            with interruptible():
                report.stuck = _play(stage, play)
            log = stage.save_log() if report.broken else None
    except Interrupted as interrupted:
        timeline.say("demo", f"ended by {signal.Signals(interrupted.number).name}; everything it started is gone")
        return 128 + interrupted.number
    timeline.write(report.table(cli.name, took_seconds=timeline.elapsed_seconds, log=log))
    return 1 if report.broken else 0


def _play(stage: Stage, play: Callable[[Stage], None]) -> str | None:
    """Play a scenario as far as possible, and check what each must keep; return why it could not be finished."""
    try:
        stage.start_supervisor()
        stage.check(Promise.STARTS, held=True, otherwise="")
        try:
            play(stage)
        finally:
            lost = "; ".join(fault for each in stage.executions if (fault := each.fault))
            if stage.executions:
                stage.check(Promise.NOT_LOST, not lost, lost)
        left = len(processes_of([each.execution_id for each in stage.executions]))
        stage.check(Promise.NOTHING_LEFT, not left, f"{left} processes with an execution's mark")
        executions = len(stage.executions)
        stage.say("demo", f"looked at every process there is: {left} are left of {executions} executions")
        exit_code = stage.end_supervisor()
        stage.say("supervisor", f"ended on SIGTERM with exit code {exit_code}")
        stage.check(Promise.ENDS_WELL, exit_code == 0, f"its exit code was {exit_code}")
        searched, found, marked = stage.search_for_tokens()
        stage.check(Promise.NO_TOKEN_SHOWN, found == 0, f"found in {found} places")
        stage.say(
            "demo",
            f"searched log, records, transcripts, answers and argv ({searched} bytes) for the tokens: found {found}; "
            f"where a tool had printed one, its fingerprint stands ({marked} files and answers)",
        )
    except (CannotContinue, ClientError) as error:
        stage.say("demo", f"cannot go on: {error}")
        return str(error)
    return None
