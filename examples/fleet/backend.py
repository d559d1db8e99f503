"""
A backend that keeps a fleet of agents on usable subscriptions; small, so that it can be copied.

It follows ``GET /api/events`` of every agent. An event only says when to look: what is true is said by
``GET /api/token``, which is asked first, and once more where events are missing, so nothing is done twice. One agent's
limit is news about its subscription, so all agents that share it are switched at once, before they meet it.

What is yours to replace: where subscriptions come from (:class:`Subscription`), which one is next (``_choose``),
and how a secret file is written where the backend does not see it (``_write``: a Kubernetes Secret, a secret store).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent_runtime.client import AgentClient
from agent_runtime.errors import AgentRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from agent_runtime.model.tokens import Token

UNKNOWN_LIMIT_SECONDS = 300.0
"""How long a subscription rests whose limit does not say when it ends, or that cannot pay."""

RECONNECT_SECONDS = (0.5, 2.0)
"""From and to; at random, so that a fleet does not come back in one moment."""

LOAD_SECONDS = 0.5
"""How long an agent may take to load a file that was just written, before it is written again."""

LOOK_AGAIN_SECONDS = 5.0
"""How often agents without a usable token are looked after: a limit has ended, a file can be written again."""


@dataclass(slots=True)
class Subscription:
    """
    What tokens are drawn on.

    Attributes:
        usable_at: Epoch seconds from which it can be used; infinite: the API refuses it, somebody must log in again.
    """

    name: str
    token: Token
    usable_at: float = 0.0

    @property
    def content(self) -> str:
        """What is written into a secret file; the name shows in ``GET /api/token``."""
        return json.dumps({"token": self.token.secret, "subscription": self.name})


@dataclass(slots=True)
class Agent:
    """One supervisor, the secret file it reads as this backend sees it, and what was last written there."""

    name: str
    url: str
    token_file: Path
    subscription: Subscription | None = None
    access_key: str | None = field(default=None, repr=False)


class Backend:
    """
    Switch agents while :meth:`run` lasts.

    Args:
        tell: Told of each event and of each file written, by the agent's name; for a log.
    """

    def __init__(
        self, agents: Sequence[Agent], subscriptions: Sequence[Subscription], tell: Callable[[str, str], None]
    ) -> None:
        self.agents = agents
        self.subscriptions = subscriptions
        self._tell = tell
        self._deciding = asyncio.Lock()
        self._clients = {agent.name: AgentClient(agent.url, access_key=agent.access_key) for agent in agents}

    async def run(self) -> None:
        """Give every agent a token, and a usable one whenever its own is not."""
        async with contextlib.AsyncExitStack() as clients:
            for client in self._clients.values():
                await clients.enter_async_context(client)
            await self.settle()
            async with asyncio.TaskGroup() as group:
                for agent in self.agents:
                    group.create_task(self._follow(agent))
                group.create_task(self._now_and_then())

    async def settle(self) -> None:
        """Move every agent whose subscription cannot be used; one decision at a time, so a burst is one switch."""
        async with self._deciding:
            moved = []
            for agent in self.agents:
                if agent.subscription is not None and agent.subscription.usable_at <= time.time():
                    continue
                fresh = self._choose()
                if fresh is None:
                    self._tell(agent.name, "no subscription can be used")
                    continue  # executions stay parked, or are answered 429; _now_and_then comes back to it
                agent.subscription = fresh
                moved.append(agent)
            await asyncio.gather(*(self._write(agent) for agent in moved))

    def _choose(self) -> Subscription | None:
        """Take the usable subscription with the fewest agents."""
        usable = [one for one in self.subscriptions if one.usable_at <= time.time()]
        return min(usable, key=lambda one: sum(agent.subscription is one for agent in self.agents), default=None)

    async def _write(self, agent: Agent) -> None:
        if agent.subscription is None:
            return
        try:
            await self._clients[agent.name].write_token(agent.token_file, agent.subscription.content)
            self._tell(agent.name, f"written {agent.subscription.name}")
        except AgentRuntimeError as error:  # its text holds no token
            agent.subscription = None
            self._tell(agent.name, f"not written: {error}")

    async def _follow(self, agent: Agent) -> None:
        """Listen to one agent for ever; that it cannot be reached is nothing to act on."""
        position = 0
        while True:
            try:
                await self._look(agent)
                self._tell(agent.name, "connected")
                async for event in self._clients[agent.name].events(after=position):
                    position = event.id
                    self._tell(agent.name, event.type)
                    if event.type == "gap" or (event.type.startswith("token.") and event.type != "token.loaded"):
                        await self._look(agent)
            except AgentRuntimeError as error:
                self._tell(agent.name, f"out of reach: {type(error).__name__}")
            await asyncio.sleep(random.uniform(*RECONNECT_SECONDS))  # noqa: S311 - nothing secret

    async def _look(self, agent: Agent) -> None:
        """Do what the agent's state asks for."""
        token = await self._clients[agent.name].token()
        if token.state in ("missing", "invalid") or token.error:
            await asyncio.sleep(LOAD_SECONDS)
            token = await self._clients[agent.name].token()
        unknown = time.time() + UNKNOWN_LIMIT_SECONDS
        if token.state == "limited" and token.limit_model is None:
            self._rest(token.fingerprint, token.limited_until.timestamp() if token.limited_until else unknown)
        elif token.state == "billing":
            self._rest(token.fingerprint, unknown)
        elif token.state in ("refused", "blocked", "expired"):
            self._rest(token.fingerprint, math.inf)
        elif token.state in ("missing", "invalid") or token.error:
            await self._write(agent)
        await self.settle()

    def _rest(self, fingerprint: str | None, usable_at: float) -> None:
        """Take note of when a subscription can be used; about a token that no agent has any more this is old news."""
        for subscription in self.subscriptions:
            if subscription.token.fingerprint == fingerprint:
                subscription.usable_at = max(subscription.usable_at, usable_at)

    async def _now_and_then(self) -> None:
        while True:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            await self.settle()
