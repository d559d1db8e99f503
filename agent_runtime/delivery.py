"""
How a token reaches a child.

``env``: in a variable. The value is fixed for the life of the process, a newer generation reaches the next attempt.

``file``: in the CLI's ``.credentials.json``, and no variable. A running CLI that reads it again takes a newer
generation without being stopped; when it does so is a matter of its version, see :class:`Reach`. Only OAuth tokens can
be handed over so; an API key goes by its variable under ``file``, too.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from agent_runtime.credentials_file import CredentialsFile, DeliveryImpossible
from agent_runtime.tokens import TokenKind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agent_runtime.generations import Generation
    from agent_runtime.tokens import Token

__all__ = ["Delivered", "Delivery", "DeliveryImpossible", "EnvironmentDelivery", "FileDelivery", "Reach"]

VARIABLE_BY_KIND = {TokenKind.OAUTH: "CLAUDE_CODE_OAUTH_TOKEN", TokenKind.API_KEY: "ANTHROPIC_API_KEY"}

log = logging.getLogger(__name__)


class Reach(StrEnum):
    """
    When a running CLI takes a newer token from its credentials file.

    ``never``: up to 2.0.76, or not known. ``on_refusal``: on its own retry after a 401, and no sooner: until the token
    it has is refused it goes on with that one (2.1.30). ``on_request``: on its next request (2.1.114, 2.1.330).

    Source: measured on these versions and 1.0.128.
    """

    NEVER = "never"
    ON_REFUSAL = "on_refusal"
    ON_REQUEST = "on_request"


@dataclass(frozen=True, slots=True)
class Delivered:
    """
    What one child gets.

    Attributes:
        generation: The one it really gets; newer than the one asked for where that was overtaken meanwhile.
        way: ``env`` or ``file``; an API key goes by ``env`` whatever the setting.
        variables: What its environment must hold.
        reach: When it takes a newer generation, as far as that was known when it was spawned.
        at: Epoch seconds.
    """

    generation: Generation
    way: str
    variables: Mapping[str, str] = field(repr=False)
    reach: Reach = Reach.NEVER
    at: float = field(default_factory=time.time, compare=False)

    def is_reached_by(self, newer: Generation) -> bool:
        """
        Whether the running child gets *newer*, once that is delivered, without being stopped.

        Not where either of the two is an API key: a variable stays as it is, and it beats the file.
        """
        return self.reach is not Reach.NEVER and newer.token.kind is TokenKind.OAUTH


class Delivery(Protocol):
    """
    One way to hand tokens to children; every method may be called from any thread.

    Attributes:
        name: As in the setting.
        reaches_running: Whether a newer generation can get to a child that runs already; which one gets to which child
            is said by :meth:`Delivered.is_reached_by`.
    """

    name: str
    reaches_running: bool

    def deliver(self, generation: Generation) -> Delivered:
        """
        Hand *generation* over: to the child that is spawned next, and to those running that can be reached.

        Never goes back: where a newer one was delivered already, that one stays.

        Raises:
            DeliveryImpossible: It cannot be handed over this way now.
        """

    def ended(self, delivered: Delivered) -> None:
        """Note that the child that got this is gone, or was never spawned; once for each :meth:`deliver`."""

    def close(self) -> None:
        """Take away what was written."""


class EnvironmentDelivery:
    """Put the token into the variable that its kind calls for."""

    name = "env"
    reaches_running = False

    def deliver(self, generation: Generation) -> Delivered:
        """Tell the one variable; nothing is written anywhere."""
        return Delivered(generation, self.name, self.variables(generation.token))

    def variables(self, token: Token) -> dict[str, str]:
        """Tell the one variable, with the token in it."""
        return {VARIABLE_BY_KIND[token.kind]: token.secret}

    def ended(self, delivered: Delivered) -> None:
        """Nothing depends on it."""

    def close(self) -> None:
        """Nothing was written."""


class FileDelivery:
    """
    Keep the CLI's credentials file at the newest OAuth token.

    While an API key is the newest generation, the file stays for the children that live on it and goes with the last of
    them: a running CLI whose file is taken away ends at once, or goes on without any credential, although its token may
    still be good (2.1.114, 2.1.330). Children with an API key do not look at the file.

    Args:
        user: Whom the file must belong to; None: to us.
    """

    name = "file"
    reaches_running = True

    def __init__(self, config_dir: Path, user: str | None = None) -> None:
        self._file = CredentialsFile(config_dir, user)
        self._by_variable = EnvironmentDelivery()
        self._lock = threading.Lock()
        self._newest: Generation | None = None
        self._readers = 0
        self.reach = Reach.NEVER
        """When the CLI in use takes a newer token; whoever proves it sets it, for the children spawned from then on."""

    @property
    def obstacle(self) -> str | None:
        """Why a token cannot be handed over so, as far as can be told beforehand; None: it can."""
        with self._lock:
            return self._file.obstacle

    @property
    def readers(self) -> int:
        """How many children live on the file."""
        return self._readers

    def deliver(self, generation: Generation) -> Delivered:
        """
        Write an OAuth token into the file for a child that is to be spawned; of an API key tell the variable.

        The content is compared each time: where a running CLI has put an older token of ours back while it wrote
        something of its own, the newest one is restored.

        Raises:
            DeliveryImpossible: Somebody else's file is there, or it cannot be written.
        """
        with self._lock:
            newest = self._advance(generation)
            if newest.token.kind is TokenKind.API_KEY:
                return self._by_variable.deliver(newest)
            self._readers += 1
            return Delivered(newest, self.name, {}, self.reach)

    def renew(self, generation: Generation) -> bool:
        """
        Hand a new generation to the children that run, and tell whether the file holds that one now.

        Raises:
            DeliveryImpossible: As :meth:`deliver`.
        """
        with self._lock:
            newest = self._advance(generation)
            return newest.number == generation.number and newest.token.kind is TokenKind.OAUTH

    def ended(self, delivered: Delivered) -> None:
        """Note that a child is gone; the file goes with the last one that needed it."""
        if delivered.way != self.name:
            return
        with self._lock:
            self._readers -= 1
            if self._readers == 0 and self._newest is not None and self._newest.token.kind is TokenKind.API_KEY:
                self._take_away()

    def close(self) -> None:
        """Take the token away, also one that an earlier supervisor of this config directory has left."""
        with self._lock:
            self._take_away()
            self._newest = None

    def _advance(self, generation: Generation) -> Generation:
        """Bring the file to the newer of *generation* and the one before, and return that."""
        newest = self._newest
        if newest is None or generation.number >= newest.number:
            newest = generation
        if newest.token.kind is TokenKind.OAUTH:
            self._file.write(newest.token)
        elif self._readers == 0:
            self._take_away()
        self._newest = newest
        return newest

    def _take_away(self) -> None:
        try:
            self._file.take_away()
        except OSError as error:
            log.warning("cannot take the token away from %s: %s", self._file.path, error.strerror)


# PLACEHOLDER by the lead until the delivery helper's own Deliveries is here.
class Deliveries:
    """Placeholder."""

    def for_spawn(self, generation: Generation) -> Delivered:
        """Placeholder."""
        return EnvironmentDelivery().deliver(generation)

    def generation_loaded(self, generation: Generation) -> None:
        """Placeholder."""

    def close(self) -> None:
        """Placeholder."""
