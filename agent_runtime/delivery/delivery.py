"""
Deliver a token to a child.

``env``: in a variable. The value is fixed for the life of the process, so a newer generation reaches the next attempt.

``file``: in the CLI's ``.credentials.json``, without a variable. A running CLI that reads the file again takes a newer
generation without being stopped; its version decides when, see :mod:`agent_runtime.delivery.reload_check`. Only OAuth
tokens are delivered in the file; an API key uses its variable under ``file`` too.

``relay``: the child gets an identity instead of a token, and its requests go through a relay of ours that adds the
token in use to each.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from agent_runtime.delivery.credentials_file import CredentialsFile, DeliveryImpossible
from agent_runtime.delivery.reload_check import ReloadBehaviour
from agent_runtime.delivery.reload_results import BackgroundReloadChecker
from agent_runtime.errors import CannotStart
from agent_runtime.evidence.detector import Detection
from agent_runtime.model.tokens import API_KEY_VARIABLE, OAUTH_VARIABLE, TokenKind
from agent_runtime.secret.generations import Generation
from agent_runtime.settings import PREFIX

ENV, FILE, RELAY = "env", "file", "relay"
"""The ways of delivery, as in the setting."""

PLACEHOLDER_PREFIX = "relay-"
_PLACEHOLDER_BYTES = 16

_VARIABLE_BY_KIND = {TokenKind.OAUTH: OAUTH_VARIABLE, TokenKind.API_KEY: API_KEY_VARIABLE}

log = logging.getLogger(__name__)


class HeldRequest(msgspec.Struct, eq=False):
    """
    A request that waits for another token, or for a limit to end.

    It waits at the relay (:class:`agent_runtime.relay.exchange.Hold`), or the CLI repeats it by itself
    (:class:`agent_runtime.execution.child_token.RepeatedRequest`): each ends the wait in its own way.

    Attributes:
        detection: The API's refusal or limit.
        body: The text that reported the refusal or limit.
        generation: The generation that the request carried.
        limit_seconds: How long the CLI waits for an answer, at least.
        is_over: The wait has ended, by a release or because the child has hung up.
    """

    detection: Detection
    body: bytes
    generation: Generation
    limit_seconds: float = math.inf
    is_over: bool = False

    def release(self, *, replays: bool) -> None:
        """End the wait: send the request again with the token in use (*replays*), or pass on the API's answer."""
        raise NotImplementedError  # a struct cannot be abstract; both kinds of held requests have their own


class Identity:
    """
    The identity by which one attempt uses the relay; any thread may read it.

    The child sends the placeholder as its token. The agent's tools can read the placeholder: it identifies the attempt
    and is no secret.

    Args:
        generation: The generation that the attempt begins with. A later one is used only if its token is of the same
            kind, because the kind decides what else the CLI sends.
        hold_seconds: The attempt's CLI waits at least this long for the first byte of an answer.

    Attributes:
        pid: The CLI's pid, set by the attempt, as the functions are; None: the CLI has not started.
        open_requests: How many requests are being answered.
        on_hold: Called in the relay's thread with each request that is to be held; None: no request is held.
        on_release: Called with a request that is held no longer.
        on_silence: Called when the API did not begin to answer a request for a message in time.
        served: The generation of the last request for a message that the API answered with success.
    """

    def __init__(self, generation: Generation, hold_seconds: float) -> None:
        self.placeholder = PLACEHOLDER_PREFIX + secrets.token_hex(_PLACEHOLDER_BYTES)
        self.hold_seconds = hold_seconds
        self.pid: int | None = None
        self.open_requests = 0
        self.served = generation
        self.on_hold: Callable[[HeldRequest], None] | None = None
        self.on_release: Callable[[HeldRequest], None] = lambda _hold: None
        self.on_silence: Callable[[], None] = lambda: None
        self._newest = generation
        self._carried = (generation, time.monotonic())

    @property
    def kind(self) -> TokenKind:
        """The kind of token that the attempt can use."""
        return self._newest.token.kind

    def choose(self, current: Generation | None) -> Generation:
        """Return the generation for the next request: *current* if newer and of the same kind, else the last chosen."""
        if current is not None and current.token.kind is self.kind and current.number > self._newest.number:
            self._newest = current
        return self._newest

    def carried(self) -> tuple[Generation, float]:
        """Return the generation of the request that was answered last, and the monotonic time when its use began."""
        return self._carried

    def record_answer(self, generation: Generation) -> None:
        """Record that a request with this generation was answered."""
        if generation.number != self._carried[0].number:
            self._carried = (generation, time.monotonic())


def digest_of(placeholder: str) -> bytes:
    """Return the hash by which an identity is found: comparing texts takes longer, the more of a guess is right."""
    return hashlib.sha256(placeholder.encode("utf-8", "surrogateescape")).digest()


def _never() -> ReloadBehaviour:
    return ReloadBehaviour.NEVER


class Delivered(msgspec.Struct, frozen=True):
    """
    The delivery of a token to one child.

    Attributes:
        generation: The delivered one; newer than the requested one if that was overtaken meanwhile.
        way: ``env``, ``file`` or ``relay``; without a relay an API key goes by ``env`` whatever the setting.
        variables: What the child's environment must contain.
        reload_behaviour: Returns when the child takes a newer generation; None: it reads a file, but it is not yet
            known when.
        holds: Returns whether a generation, or a newer one, is in the file that the child reads.
        relayed: The child's identity at the relay, if it has one.
        by_port: To be used instead of *variables*, which lead to the relay's socket, where the CLI may start programs
            without a shell; None: *variables* do not lead to a socket.
    """

    generation: Generation
    way: str
    variables: Mapping[str, str]
    reload_behaviour: Callable[[], ReloadBehaviour | None] = _never
    holds: Callable[[Generation], bool] | None = None
    relayed: Identity | None = None
    by_port: Mapping[str, str] | None = None

    def __repr__(self) -> str:
        return f"<Delivered {self.generation!r} by {self.way}>"

    def is_reached_by(self, newer: Generation) -> bool:
        """
        Whether the running child gets *newer* without being stopped: it is delivered, and the child will read it.

        False if *newer* is of another kind, and without a relay for every API key: a variable never changes, and it
        overrides the file.
        """
        return self.reload_behaviour() not in {None, ReloadBehaviour.NEVER} and self.can_receive(newer)

    def can_receive(self, newer: Generation) -> bool:
        """Whether *newer* is in the child's file, even if the child does not read that again, or the relay uses it."""
        is_of_its_kind = newer.token.kind is self.generation.token.kind
        return is_of_its_kind and self.holds is not None and self.holds(newer)


def by_variable(generation: Generation) -> Delivered:
    """Deliver a token in the variable for its kind; nothing is written."""
    return Delivered(generation, ENV, {_VARIABLE_BY_KIND[generation.token.kind]: generation.token.secret})


class TokenRelay(Protocol):
    """Gives children access to the API without a token."""

    @property
    def reason(self) -> str:
        """How the next child reaches the API, for a person."""

    def deliver(self, generation: Generation) -> Delivered:
        """Make the identity by which one child uses the relay; :meth:`release` must follow."""

    def release(self, delivered: Delivered) -> None:
        """End a delivery, because its child is gone or was never spawned."""


class Choice(msgspec.Struct, frozen=True):
    """A way of delivery, and the reason for it in words for callers."""

    name: str
    reason: str


def choose(setting: str, kind: TokenKind, reload_behaviour: ReloadBehaviour | None, obstacle: str | None) -> Choice:
    """
    Choose the way of the next child's token.

    Args:
        setting: ``auto``, ``env`` or ``file``.
        reload_behaviour: The result of the check of this CLI; None: not known yet.
        obstacle: Why the file cannot be written; None: it can.
    """
    if setting == ENV:
        return Choice(ENV, "the setting asks for it")
    if kind is TokenKind.API_KEY:
        return Choice(ENV, "an API key goes by its variable")
    reason = obstacle or _RELOAD_IN_WORDS[reload_behaviour]
    if setting == FILE:
        return Choice(FILE, f"the setting asks for it; {reason}")
    return Choice(ENV if obstacle or reload_behaviour in {None, ReloadBehaviour.NEVER} else FILE, reason)


_RELOAD_IN_WORDS = {
    None: "it is not known yet whether this CLI takes a newer token while it runs",
    ReloadBehaviour.NEVER: "this CLI takes no newer token while it runs",
    ReloadBehaviour.ON_REFUSAL: "this CLI takes a newer token when its own is refused",
    ReloadBehaviour.ON_REQUEST: "this CLI takes a newer token at its next request",
}


class Deliveries:
    """
    Deliver every generation in the right way; every method may be called from any thread.

    While an API key is the newest generation, the credentials file stays as long as a child depends on it. A running
    CLI whose file is removed ends at once, or continues without any credential, although its token may still be good
    (2.1.114, 2.1.330). Children with an API key do not read the file.

    Args:
        setting: ``auto``, ``env``, ``file`` or ``relay``.
        relay: The relay, if the setting is ``relay``; else None.

    Raises:
        CannotStart: The setting is ``file``, and the file cannot be written.
    """

    def __init__(
        self,
        setting: str,
        file: CredentialsFile,
        reload_checker: BackgroundReloadChecker,
        relay: TokenRelay | None = None,
    ) -> None:
        self._setting = setting
        self._relay = relay
        self._file = file
        self._reload_checker = reload_checker
        self._lock = threading.Lock()
        self._newest: Generation | None = None
        self._readers = 0  # how many children depend on the file
        self._kind = TokenKind.OAUTH
        self._trouble: str | None = None
        if setting == FILE and (obstacle := file.obstacle) is not None:
            raise CannotStart(
                f"{PREFIX}TOKEN_DELIVERY: file is not possible here: {obstacle}; auto takes what there is"
            )

    def start(self) -> None:
        """Remove the token that an earlier supervisor of this config directory has left, and begin the check."""
        self._remove_token()
        self._reload_behaviour()

    def deliver(self, generation: Generation) -> Delivered:
        """
        Deliver *generation*, or a newer one, to the child that is spawned next; :meth:`release` must follow.

        A newer generation that was delivered before stays, and is what the child gets. The file's content is compared
        each time: a running CLI that writes something of its own may have put an older token of ours back.

        Raises:
            DeliveryImpossible: The setting is ``file``, and the file cannot be written now.
        """
        reload_behaviour = self._reload_behaviour()
        with self._lock:
            self._file.restore_directory()  # every child needs it, whatever its token
            self._kind = generation.token.kind
            if self._relay is not None:
                return self._relay.deliver(generation)
            if choose(self._setting, self._kind, reload_behaviour, None).name == ENV:
                return by_variable(generation)
            try:
                newest = self._advance(generation)
            except DeliveryImpossible:
                if self._setting == FILE:
                    raise
                return by_variable(generation)
            if newest.token.kind is TokenKind.API_KEY:
                return by_variable(newest)
            self._readers += 1
        known = self._reload_checker.reload_behaviour if reload_behaviour is None else lambda: reload_behaviour
        return Delivered(newest, FILE, {}, known, self._holds)

    def renew(self, generation: Generation) -> None:
        """
        Deliver a new generation to the running children that can be reached; never raises.

        :meth:`Delivered.is_reached_by` answers for each child.
        """
        reload_behaviour = self._reload_behaviour()
        with self._lock:
            self._kind = generation.token.kind
            is_by_file = choose(self._setting, self._kind, reload_behaviour, None).name == FILE
            if self._relay is None and (is_by_file or self._readers or self._kind is TokenKind.API_KEY):
                self._file.restore_directory()
                with contextlib.suppress(DeliveryImpossible):
                    self._advance(generation)

    def release(self, delivered: Delivered) -> None:
        """End a delivery: its child is gone or was never spawned. The last one that needed the file removes it."""
        if self._relay is not None:
            self._relay.release(delivered)
        if delivered.way == FILE:
            with self._lock:
                self._readers -= 1
                self._remove_unused()

    def close(self) -> None:
        """End the check and remove the token; no child needs it any more."""
        self._reload_checker.close()
        with self._lock:
            self._remove_token()
            self._newest = None

    @property
    def state(self) -> dict[str, str]:
        """``delivery``, ``reason`` and ``setting``, for ``/health``."""
        if self._relay is not None:
            return {"delivery": RELAY, "reason": self._relay.reason, "setting": self._setting}
        reload_behaviour = self._reload_checker.reload_behaviour()
        choice = choose(self._setting, self._kind, reload_behaviour, self._obstacle)
        return {"delivery": choice.name, "reason": choice.reason, "setting": self._setting}

    @property
    def cannot_deliver(self) -> bool:
        """Whether no attempt can start, because the setting is ``file`` and the file cannot be written."""
        return self._setting == FILE and self._obstacle is not None

    @property
    def _obstacle(self) -> str | None:
        with self._lock:
            return self._trouble or self._file.obstacle

    def _reload_behaviour(self) -> ReloadBehaviour | None:
        """Return the known behaviour; begin the check if nothing is known."""
        if self._setting == ENV:
            return None
        reload_behaviour = self._reload_checker.reload_behaviour()
        if reload_behaviour is None:
            self._reload_checker.begin()
        return reload_behaviour

    def _holds(self, generation: Generation) -> bool:
        """Whether the file was updated to this generation or a newer one."""
        newest = self._newest
        return newest is not None and newest.number >= generation.number and newest.token.kind is TokenKind.OAUTH

    def _advance(self, generation: Generation) -> Generation:
        """
        Update the file to *generation*, or leave it at a newer one, and return the generation that counts.

        Raises:
            DeliveryImpossible: Somebody else wrote the file, or it cannot be written; logged once, as is the end of it.
        """
        newest = self._newest
        if newest is None or generation.number >= newest.number:
            newest = generation
        before, self._trouble = self._trouble, None
        if newest.token.kind is TokenKind.OAUTH:
            try:
                self._file.write(newest.token)
            except DeliveryImpossible as error:
                self._trouble = str(error)
                if self._trouble != before:
                    log.warning("a token cannot be delivered by file: %s", error)
                raise
        if before is not None:
            log.info("tokens can be delivered by file again")
        self._newest = newest
        self._remove_unused()
        return newest

    def _remove_unused(self) -> None:
        if self._readers == 0 and self._newest is not None and self._newest.token.kind is TokenKind.API_KEY:
            self._remove_token()

    def _remove_token(self) -> None:
        try:
            self._file.remove_token()
        except OSError as error:
            log.warning("cannot remove the token from %s: %s", self._file.path, error.strerror)
