"""
Play it: twenty agents on one subscription, which hits its usage limit while all of them work.

``python -m examples.fleet`` in a checkout; everything is on loopback, no account, no network. The exit code is 0 if no
execution was lost and every agent was switched exactly once.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agent_runtime.client import AgentClient, ClientError
from agent_runtime.model.tokens import Token
from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, UsageLimit, serve
from examples.fleet.backend import Backend, Subscription
from examples.fleet.stage import SCRIPTED_CLI, SLOTS, fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_runtime.client import Answer
    from examples.fleet.backend import Agent

AGENTS = 20
REAL_CLIS = 2
"""How many agents run the real CLI where one is given: each of its processes takes some 190 MB."""

TASKS_PER_AGENT = SLOTS + 1
PARK_SECONDS = 60.0
"""How long an execution may wait for the backend to switch; its caller then sees nothing of it."""

STEP_TIMEOUT_SECONDS = 60.0


class Journal:
    """When the backend heard what of whom, and when it wrote."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, str, str]] = []

    def note(self, agent: str, what: str) -> None:
        """Take a note, with the time."""
        self.entries.append((time.monotonic(), agent, what))

    def times(self, what: str, after: float = 0.0) -> dict[str, float]:
        """Tell when this was first noted of each agent."""
        found: dict[str, float] = {}
        for at, agent, noted in self.entries:
            if noted == what and at >= after:
                found.setdefault(agent, at)
        return found

    def count(self, agent: str, prefix: str) -> int:
        """Tell how often something that begins so was noted of an agent."""
        return sum(noted.startswith(prefix) for _, name, noted in self.entries if name == agent)


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def play(clis: list[str], home: Path) -> bool:
    """Play it and print the table; tell whether all promises were kept."""
    api, journal = MessagesApi(), Journal()
    first, second = (Subscription(name, Token(f"sk-ant-oat01-{secrets.token_hex(24)}")) for name in ("first", "second"))
    api.on_other_tokens("invalid")
    for subscription in (first, second):
        api.accept(subscription.token)
    api.script("work", Tool(command="true"), Tool(command="true", gate="half-way"), Text(text="done"))
    begun = time.monotonic()
    with serve(api) as api_url:
        async with fleet(home, api_url, clis) as agents, asyncio.TaskGroup() as group:
            say(f"{len(agents)} supervisors are listening after {time.monotonic() - begun:.1f} s")
            second.usable_at = time.time() + 3600  # so that all of them begin on the first
            backend = Backend(agents, (first, second), journal.note)
            serving = group.create_task(backend.run())
            await until(lambda: len(journal.times("token.loaded")) == len(agents), "all agents have a token")
            second.usable_at = 0.0

            submitted = time.monotonic()
            callers = [
                group.create_task(call(agent, number)) for agent in agents for number in range(1, TASKS_PER_AGENT + 1)
            ]
            running = SLOTS * len(agents)
            say(f"{len(callers)} executions are submitted, {running} run, all on one subscription")
            await until(lambda: api.seen(first.token).requests >= 2 * running, "all slots are half-way")
            api.on(first.token, UsageLimit(claim="five_hour", resets_in_seconds=3600))
            api.open_gate("half-way")
            say("the subscription has hit its limit")
            answers = await asyncio.gather(*callers)
            finished = time.monotonic()
            generations = []
            for agent in agents:
                async with AgentClient(agent.url, access_key=agent.access_key) as client:
                    generations.append((await client.token()).generation or 0)
            serving.cancel()
    lost = [answer for answer in answers if isinstance(answer, str)]
    good = [answer for answer in answers if not isinstance(answer, str)]
    refused_at = [request.at for request in api.requests if request.status == 429 and request.carries(first.token)]
    met = min(refused_at)
    heard = min(journal.times("token.limited").values())
    written, known = journal.times("written second"), journal.times("token.loaded", after=heard)
    switches = [journal.count(agent.name, "written") - 1 for agent in agents]
    to_known = sorted(1000 * (known[name] - at) for name, at in written.items() if name in known)
    rows = [
        ("agents, executions", f"{len(agents)}, {len(answers)}", ""),
        ("executions lost", str(len(lost)), "0"),
        ("switches per agent, fewest and most", f"{min(switches)}, {max(switches)}", "1, 1"),
        ("token generations per agent, fewest and most", f"{min(generations)}, {max(generations)}", "2, 2"),
        ("executions that met the limit and were resumed", str(sum(a.metadata.resumes > 0 for a in good)), ""),
        ("requests that the limit refused", str(len(refused_at)), ""),
        ("agents that told of the limit", str(len(journal.times("token.limited"))), ""),
        ("first refused request to the backend's knowing", f"{1000 * (heard - met):.0f} ms", ""),
        ("that to the last of the files written", f"{1000 * (max(written.values()) - heard):.0f} ms", ""),
        (
            "a file written to its token.loaded heard, median and longest",
            f"{statistics.median(to_known):.0f}, {to_known[-1]:.0f} ms",
            "",
        ),
        ("submitted to the last answer", f"{finished - submitted:.1f} s", ""),
        ("the example as a whole", f"{time.monotonic() - begun:.1f} s", "60 s"),
    ]
    width = max(len(name) for name, _, _ in rows)
    say(f"\n{'measured in this run':<{width}}  {'':>10}  promised\n{'-' * (width + 22)}")
    for name, measured, promised in rows:
        say(f"{name:<{width}}  {measured:>10}  {promised}".rstrip())
    for answer in dict.fromkeys(lost):
        say(f"LOST: {answer}")
    return not lost and {*switches} == {1} and {*generations} == {2}


async def call(agent: Agent, number: int) -> Answer | str:
    """Be one caller; what goes wrong is told as a text."""
    async with AgentClient(agent.url, access_key=agent.access_key) as client:
        try:
            return await client.run(
                f"[[script:work]] Do it, {number}.", execution_id=f"work-{number}", park_seconds=PARK_SECONDS
            )
        except ClientError as error:
            return f"{type(error).__name__}: {error}"


async def until(holds: Callable[[], bool], what: str) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + STEP_TIMEOUT_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {STEP_TIMEOUT_SECONDS:.0f} s: {what}")
        await asyncio.sleep(0.01)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and play."""
    parser = argparse.ArgumentParser(prog="python -m examples.fleet", description=__doc__)
    parser.add_argument("--agents", type=int, default=AGENTS)
    parser.add_argument(
        "--claude", help=f"command of the real CLI: {REAL_CLIS} agents run it, the others the scripted one"
    )
    options = parser.parse_args(arguments)
    real = min(REAL_CLIS, options.agents) if options.claude else 0
    clis = [options.claude] * real + [SCRIPTED_CLI] * (options.agents - real)
    with tempfile.TemporaryDirectory(prefix="agent-runtime-fleet-") as home:
        kept = asyncio.run(play(clis, Path(home)))
    say("\nAll promises were kept." if kept else "\nNOT ALL PROMISES WERE KEPT.")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
