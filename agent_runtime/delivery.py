"""
How a token reaches a child.

``env``: in a variable. The value is fixed for the life of the process, a newer generation reaches the next attempt.

``file``: in the CLI's ``.credentials.json``, and no variable. A running CLI that reads it again takes a newer
generation at its next API request. Only OAuth tokens can be handed over so; an API key goes by its variable under
``file``, too.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from agent_runtime.credentials_file import CredentialsFile, DeliveryImpossible
from agent_runtime.tokens import TokenKind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agent_runtime.generations import Generation
    from agent_runtime.tokens import Token

__all__ = ["Delivered", "Delivery", "DeliveryImpossible", "EnvironmentDelivery", "FileDelivery"]

VARIABLE_BY_KIND = {TokenKind.OAUTH: "CLAUDE_CODE_OAUTH_TOKEN", TokenKind.API_KEY: "ANTHROPIC_API_KEY"}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivered:
    """
    What a child gets.

    Attributes:
        generation: The one it really gets; newer than the one asked for where that was overtaken meanwhile.
        variables: What its environment must hold.
        way: ``env`` or ``file``; an API key goes by ``env`` whatever the setting.
        at: Epoch seconds.
    """

    generation: Generation
    way: str
    variables: Mapping[str, str] = field(repr=False)
    at: float = field(default_factory=time.time, compare=False)

    def is_reached_by(self, newer: Generation) -> bool:
        """
        Whether the running child gets *newer*, once that is delivered, at its next API request.

        Not where either of the two is an API key: a variable stays as it is, and it beats the file.
        """
        return self.way == FileDelivery.name and newer.token.kind is TokenKind.OAUTH


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

    def close(self) -> None:
        """Nothing was written."""


class FileDelivery:
    """
    Keep the CLI's credentials file at the newest generation.

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

    @property
    def obstacle(self) -> str | None:
        """Why a token cannot be handed over so, as far as can be told beforehand; None: it can."""
        with self._lock:
            return self._file.obstacle

    @property
    def delivered(self) -> Generation | None:
        """The newest generation that was handed over."""
        return self._newest

    def deliver(self, generation: Generation) -> Delivered:
        """
        Write an OAuth token into the file; for an API key take the file away and tell the variable.

        The content is compared each time: where a running CLI has put an older token of ours back while it wrote
        something of its own, the newest one is restored.

        Raises:
            DeliveryImpossible: Somebody else's file is there, or it cannot be written.
        """
        with self._lock:
            newest = self._newest
            if newest is None or generation.number >= newest.number:
                newest = generation
            if newest.token.kind is TokenKind.API_KEY:
                self._take_away()
                delivered = self._by_variable.deliver(newest)
            else:
                self._file.write(newest.token)
                delivered = Delivered(newest, self.name, {})
            self._newest = newest
            return delivered

    def close(self) -> None:
        """Take the token away, also one that an earlier supervisor of this config directory has left."""
        with self._lock:
            self._take_away()
            self._newest = None

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
