"""
How a token reaches a child.

``env``: in a variable. The value is fixed for the life of the process, a newer generation reaches the next attempt.

``file``: in the CLI's ``.credentials.json``, and no variable. A running CLI that reads it again takes a newer
generation without being stopped; when it does so is a matter of its version, see :class:`ReloadBehaviour`.
Only OAuth tokens can
be handed over so; an API key goes by its variable under ``file``, too.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from agent_runtime.delivery.credentials_file import CredentialsFile, DeliveryImpossible
from agent_runtime.errors import CannotStart
from agent_runtime.model.tokens import TokenKind
from agent_runtime.settings import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agent_runtime.model.tokens import Token
    from agent_runtime.secret.generations import Generation

__all__ = [
    "Choice",
    "Delivered",
    "Deliveries",
    "Delivery",
    "DeliveryImpossible",
    "EnvironmentDelivery",
    "FileDelivery",
    "ReloadBehaviour",
    "ReloadChecker",
    "choose",
]

VARIABLE_BY_KIND = {TokenKind.OAUTH: "CLAUDE_CODE_OAUTH_TOKEN", TokenKind.API_KEY: "ANTHROPIC_API_KEY"}

log = logging.getLogger(__name__)


class ReloadBehaviour(StrEnum):
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
        learned: Where it was not: tells what is known of this CLI by now; None: still nothing.
        holds: Tells whether a generation, or a newer one, is where the child looks.
        at: Epoch seconds.
    """

    generation: Generation
    way: str
    variables: Mapping[str, str] = field(repr=False)
    reload_behaviour: ReloadBehaviour = ReloadBehaviour.NEVER
    holds: Callable[[Generation], bool] | None = field(default=None, repr=False, compare=False)
    learned: Callable[[], ReloadBehaviour | None] | None = field(default=None, repr=False, compare=False)
    at: float = field(default_factory=time.time, compare=False)

    @property
    def known_reload_behaviour(self) -> ReloadBehaviour | None:
        """When the child takes a newer generation; None: it looks at a file, and it is not known yet when."""
        return self.reload_behaviour if self.learned is None else self.learned()

    def is_reached_by(self, newer: Generation) -> bool:
        """
        Whether the running child gets *newer* without being stopped: it was delivered, and the child will look.

        Not where either of the two is an API key: a variable stays as it is, and it beats the file.
        """
        return self.known_reload_behaviour not in {None, ReloadBehaviour.NEVER} and self.can_receive(newer)

    def can_receive(self, newer: Generation) -> bool:
        """Whether *newer* is where the child looks, if it looks."""
        return newer.token.kind is not TokenKind.API_KEY and self.holds is not None and self.holds(newer)


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
        self.reload_behaviour = ReloadBehaviour.NEVER
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
            return Delivered(newest, self.name, {}, self.reload_behaviour, self.holds)

    def renew(self, generation: Generation) -> None:
        """
        Hand a new generation to the children that run.

        Raises:
            DeliveryImpossible: As :meth:`deliver`.
        """
        with self._lock:
            self._advance(generation)

    def holds(self, generation: Generation) -> bool:
        """Tell whether the file was brought to this generation or a newer one."""
        newest = self._newest
        return newest is not None and newest.number >= generation.number and newest.token.kind is TokenKind.OAUTH

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


class ReloadChecker(Protocol):
    """Who knows, or finds out, when the CLI in use takes a newer token from its file."""

    def reload_behaviour(self) -> ReloadBehaviour | None:
        """Tell without waiting; None: not known of the executable that is there now."""

    def begin(self) -> None:
        """Find out in the background; nothing happens where that is under way, or has just failed."""

    def close(self) -> None:
        """End what is under way."""


class Choice(msgspec.Struct, frozen=True):
    """Which way a token goes, and why, fit to be shown."""

    name: str
    reason: str


def choose(setting: str, kind: TokenKind, reload_behaviour: ReloadBehaviour | None, obstacle: str | None) -> Choice:
    """
    Choose the way of the next child's token.

    Args:
        setting: ``auto``, ``env`` or ``file``.
        reach: What was proved of the CLI; None: nothing yet.
        obstacle: Why the file cannot be written; None: it can.
    """
    if setting == EnvironmentDelivery.name:
        return Choice("env", "the setting asks for it")
    if kind is TokenKind.API_KEY:
        return Choice("env", "an API key goes by its variable")
    if setting == FileDelivery.name:
        return Choice("file", f"the setting asks for it; {obstacle or _RELOAD_IN_WORDS[reload_behaviour]}")
    if obstacle is not None:
        return Choice("env", obstacle)
    if reload_behaviour is None or reload_behaviour is ReloadBehaviour.NEVER:
        return Choice("env", _RELOAD_IN_WORDS[reload_behaviour])
    return Choice("file", _RELOAD_IN_WORDS[reload_behaviour])


_RELOAD_IN_WORDS = {
    None: "it is not known yet whether this CLI takes a newer token while it runs",
    ReloadBehaviour.NEVER: "this CLI takes no newer token while it runs",
    ReloadBehaviour.ON_REFUSAL: "this CLI takes a newer token when its own is refused",
    ReloadBehaviour.ON_REQUEST: "this CLI takes a newer token at its next request",
}


class Deliveries:
    """
    Hand every generation over in the way that is right for it; every method may be called from any thread.

    Args:
        setting: ``auto``, ``env`` or ``file``.
        file: None, or without a *reload checker*: variables only, nothing is written.

    Raises:
        CannotStart: The setting is ``file``, and the file cannot be written.
    """

    def __init__(
        self, setting: str = "env", file: FileDelivery | None = None, reload_checker: ReloadChecker | None = None
    ) -> None:
        self._setting = setting if reload_checker is not None else EnvironmentDelivery.name
        self._file = file
        self._by_variable = EnvironmentDelivery()
        self._reload_checker = reload_checker
        self._kind = TokenKind.OAUTH
        self._trouble: str | None = None
        if setting == FileDelivery.name and (obstacle := self._obstacle) is not None:
            raise CannotStart(
                f"{PREFIX}TOKEN_DELIVERY: file is not possible here: {obstacle}; auto takes what there is"
            )

    def start(self) -> None:
        """Take away what an earlier supervisor of this config directory has left, and have the CLI proved."""
        if self._file is not None:
            self._file.close()
        self._reload_behaviour()

    def for_spawn(self, generation: Generation) -> Delivered:
        """
        Hand *generation*, or a newer one, to the child that is spawned next; :meth:`ended` must follow.

        Raises:
            DeliveryImpossible: The setting is ``file``, and that is not possible now.
        """
        reload_behaviour = self._reload_behaviour()
        self._kind = generation.token.kind
        choice = choose(self._setting, generation.token.kind, reload_behaviour, None)
        if self._file is not None and choice.name == FileDelivery.name:
            self._file.reload_behaviour = reload_behaviour or ReloadBehaviour.NEVER
            try:
                delivered = self._file.deliver(generation)
            except DeliveryImpossible as error:
                self._note(str(error))
                if self._setting == FileDelivery.name:
                    raise
            else:
                self._note(None)
                if reload_behaviour is None and delivered.way == FileDelivery.name and self._reload_checker is not None:
                    return replace(delivered, learned=self._reload_checker.reload_behaviour)
                return delivered
        return self._by_variable.deliver(generation)

    def generation_loaded(self, generation: Generation) -> None:
        """
        Hand a new generation to the children that run and can be reached; never raises.

        Which of them were is told by :meth:`Delivered.is_reached_by`.
        """
        self._kind = generation.token.kind
        choice = choose(self._setting, generation.token.kind, self._reload_behaviour(), None)
        if self._file is None or (choice.name != FileDelivery.name and self._file.readers == 0):
            return
        try:
            self._file.renew(generation)
        except DeliveryImpossible as error:
            self._note(str(error))
        else:
            self._note(None)

    def ended(self, delivered: Delivered) -> None:
        """Note that the child that got this is gone, or was never spawned."""
        if self._file is not None:
            self._file.ended(delivered)

    def close(self) -> None:
        """End the proof and take away what was written; no child needs it any more."""
        if self._reload_checker is not None:
            self._reload_checker.close()
        if self._file is not None:
            self._file.close()

    @property
    def state(self) -> dict[str, str]:
        """``delivery``, ``reason`` and ``setting``, for ``/health``."""
        reload_behaviour = None if self._reload_checker is None else self._reload_checker.reload_behaviour()
        choice = choose(self._setting, self._kind, reload_behaviour, self._trouble or self._obstacle)
        return {"delivery": choice.name, "reason": choice.reason, "setting": self._setting}

    @property
    def hinders(self) -> bool:
        """Whether no attempt can start, because the file is asked for and cannot be written."""
        return self._setting == FileDelivery.name and (self._trouble or self._obstacle) is not None

    @property
    def _obstacle(self) -> str | None:
        return "there is no file" if self._file is None else self._file.obstacle

    def _reload_behaviour(self) -> ReloadBehaviour | None:
        if self._reload_checker is None or self._setting == EnvironmentDelivery.name:
            return None
        reload_behaviour = self._reload_checker.reload_behaviour()
        if reload_behaviour is None:
            self._reload_checker.begin()
        return reload_behaviour

    def _note(self, trouble: str | None) -> None:
        """Say once when the file cannot be written, and once when it can be again."""
        before, self._trouble = self._trouble, trouble
        if trouble is not None and trouble != before:
            log.warning("a token cannot be handed over by file: %s", trouble)
        elif trouble is None and before is not None:
            log.info("tokens can be handed over by file again")
