"""The demo: the supervisor's main job against a stand-in API on loopback, and a table of measurements at the end."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
from typing import TYPE_CHECKING

from agent_runtime.client import ClientError
from agent_runtime.delivery.delivery import RELAY
from agent_runtime.demo.choice import choose_cli
from agent_runtime.demo.environment import CannotContinue, Environment, Interrupted, interruptible
from agent_runtime.demo.relay_scenario import RelayScenario
from agent_runtime.demo.report import RELAY_PROMISES, Promise, Report
from agent_runtime.demo.scenario import Scenario
from agent_runtime.demo.timeline import Timeline

if TYPE_CHECKING:
    from pathlib import Path

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
    report = Report(RELAY_PROMISES) if delivery == RELAY else Report()
    saved_log: Path | None = None
    try:
        cli = choose_cli(claude, scripted=scripted)
        timeline.say("demo", f"the CLI is {cli.name}: {cli.reason}")
        with contextlib.ExitStack() as held:
            new_environment = functools.partial(Environment, cli, timeline, held)
            environment = new_environment(delivery=delivery)
            scenario = (
                RelayScenario(environment, report, new_environment)
                if delivery == RELAY
                else Scenario(environment, report)
            )
            with interruptible():
                _play(environment, scenario, report)
            if report.broken:
                saved_log = environment.save_log()
    except Interrupted as interrupted:
        timeline.say("demo", f"ended by {signal.Signals(interrupted.number).name}; everything it started is gone")
        return 128 + interrupted.number
    timeline.write(report.table(cli.name, took_seconds=timeline.elapsed_seconds, log=saved_log))
    return 1 if report.broken else 0


def _play(environment: Environment, scenario: Scenario, report: Report) -> None:
    """Play the scenario as far as possible; a promise that was not checked counts as broken."""
    try:
        environment.start_supervisor()
        scenario.play()
        exit_code = environment.end_supervisor()
        environment.say("supervisor", f"ended on SIGTERM with exit code {exit_code}")
        report.check(Promise.ENDS_WELL, exit_code == 0, f"its exit code was {exit_code}")
        scenario.search_for_tokens()
    except CannotContinue as stuck:
        report.stuck = str(stuck)
    except ClientError as error:
        report.stuck = f"the supervisor did not answer: {error}"
    if report.stuck is not None:
        environment.say("demo", f"cannot go on: {report.stuck}")
