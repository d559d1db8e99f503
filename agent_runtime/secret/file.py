"""
The secret file, and which token in it to use now.

The file is read immediately before every spawn, so no lost event or late timer can make a child start with an old
token; the watching thread only makes a change known sooner. Both read by the same method, under one lock.

Two delays, on the monotonic clock, apply to the content of the file:

- A content that may be half written is used when it has not changed for :data:`SETTLE_SECONDS`. A content that is
  complete by itself (it ends with a newline, is a JSON object, or the kubelet swapped it in) is used at once.
- A content without a token leaves the last good generation in use, with :attr:`SecretStatus.error` set. After
  ``withdraw_after_seconds`` without a token the generation is withdrawn.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import msgspec
from msgspec.structs import replace

from agent_runtime.errors import SecretUnreadable
from agent_runtime.model.tokens import Token
from agent_runtime.secret.content import SecretContent, SecretFault, Unusable
from agent_runtime.secret.generations import Generation, GenerationLedger
from agent_runtime.secret.mount import SourceKind, source_of
from agent_runtime.secret.reader import Reading, came_by_rename, read_secret
from agent_runtime.secret.watcher import TICK_SECONDS, DirectoryWatch

__all__ = ["Generation", "GenerationLedger", "SecretFile", "SecretState", "SecretStatus", "SourceKind"]

SETTLE_SECONDS = 0.1
RECHECK_SECONDS = 0.005
"""How often a spawn that waits for a content to settle reads again."""
SOURCE_SECONDS = 10.0
"""How often it is looked up how a file is mounted for which no reading shows a change; that takes as long as a tick."""

UNREAD = Unusable("has not been read yet", SecretFault.OTHER)
UNSETTLED = Unusable("has only just been written", SecretFault.UNSETTLED)
DETACHED = Unusable("was replaced outside, which cannot be seen from here: mount its directory", SecretFault.DETACHED)
FILE_MOUNT = "is mounted as a single file, so that a rename outside is not seen: mount its directory"

logger = logging.getLogger(__name__)


class SecretState(StrEnum):
    """Whether the file gives a token; the API's opinion of the token is not known here."""

    MISSING = "missing"
    INVALID = "invalid"
    READY = "ready"


class SecretStatus(msgspec.Struct, frozen=True):
    """
    What is known of the secret file.

    Attributes:
        generation: The generation in use; None unless *state* is ``ready``.
        unusable: What is wrong with the file now, even while *generation* is still in use.
        last_loaded_at: Epoch seconds at which the newest generation was read, even if it was withdrawn since.
    """

    state: SecretState
    generation: Generation | None = None
    unusable: Unusable | None = None
    source: SourceKind = SourceKind.DIRECTORY
    last_loaded_at: float | None = None

    @property
    def error(self) -> str | None:
        """What is wrong with the file now, as a sentence that is safe to show."""
        return None if self.unusable is None else self.unusable.sentence


class SecretFile:
    """
    The token in a file that another process writes.

    Every method may be called from any thread. :meth:`start` begins the watching thread, which does not depend on any
    event loop. Without that thread, changes are noticed only by :meth:`read` and :meth:`poll`.

    Args:
        path: Made absolute, since the working directory may change later. Nothing is read yet.
        on_change: Called with each new status, in order, by the thread that noticed the change. The lock is held: the
            callback must return quickly.
        on_secret: Called in the same way with each possible secret in a content, before that content is used.
    """

    def __init__(
        self,
        path: Path,
        *,
        ledger: GenerationLedger,
        withdraw_after_seconds: float = 10.0,
        on_change: Callable[[SecretStatus], None] = lambda _: None,
        on_secret: Callable[[Token], None] = lambda _: None,
    ) -> None:
        self._path = path.absolute()
        self._ledger = ledger
        self._withdraw_after_seconds = withdraw_after_seconds
        self._on_change = on_change
        self._on_secret = on_secret
        self._lock = threading.RLock()
        self._status = SecretStatus(SecretState.MISSING, unusable=UNREAD)
        self._source = SourceKind.DIRECTORY
        self._reading: Reading | None = None
        self._still_since = 0.0
        self._settles_at: float | None = None
        self._without_token_since: float | None = None
        self._accepted: SecretContent | None = None
        self._directory: DirectoryWatch | None = None
        self._thread: threading.Thread | None = None

    @property
    def path(self) -> Path:
        """The absolute path."""
        return self._path

    @property
    def status(self) -> SecretStatus:
        """The status after the latest reading by any thread; takes no lock."""
        return self._status

    def read(self) -> Generation:
        """
        Return the generation that a child spawned now must carry, after :meth:`settle`.

        Raises:
            SecretUnreadable: The file holds no usable token, and no earlier generation is still in use.
        """
        self.settle()
        status = self._status
        if self._thread is None:
            self._ledger.save(durable=False)
        if status.generation is None:
            raise SecretUnreadable(status.error or "there is no token")
        return status.generation

    def settle(self) -> None:
        """Read, and wait while the content may be half written: 100 ms as a rule, at most the withdraw time."""
        give_up_at = time.monotonic() + self._withdraw_after_seconds
        while (settles_at := self._advance()) is not None and (now := time.monotonic()) < give_up_at:
            time.sleep(min(max(settles_at - now, 0), RECHECK_SECONDS))

    def poll(self) -> SecretStatus:
        """Read once and return the status, without waiting for a content to settle."""
        with self._lock:
            self._advance()
            self._update_source()
            status = self._status
        self._ledger.save(durable=False)
        return status

    def start(self) -> None:
        """Read the file for the first time and begin to watch it."""
        if self._thread is not None:
            return
        self.poll()
        self._directory = DirectoryWatch(self._path.parent)
        self._thread = threading.Thread(target=self._watch, args=(self._directory,), name="secret-file")
        self._thread.start()

    def stop(self) -> None:
        """End the watching thread, and wait until it has ended."""
        thread, directory = self._thread, self._directory
        self._thread = self._directory = None
        if thread is None or directory is None:
            return
        directory.stop()
        thread.join()
        directory.close()
        self._ledger.save()

    def _watch(self, directory: DirectoryWatch) -> None:
        source_due_at, seen = 0.0, self._reading
        while not directory.stopped:
            announced = directory.wait(self._due_in_seconds())
            with self._lock:
                self._advance()
                before, seen = seen, self._reading  # a spawn may have read first
                now = time.monotonic()
                if seen is not before or now >= source_due_at:
                    self._update_source()
                    source_due_at = now + SOURCE_SECONDS
            self._ledger.save(durable=False)
            if announced:
                continue
            # No event is pending, so a slow disk delays nothing.
            self._ledger.save()
            if before is None or seen is None or before.mark != seen.mark:
                # The directory may have been replaced by one with the same inode number.
                directory.renew()

    def _due_in_seconds(self) -> float:
        with self._lock:
            now = time.monotonic()
            due_at = [now + TICK_SECONDS]
            if self._settles_at is not None:
                due_at.append(self._settles_at)
            if self._without_token_since is not None:
                due_at.append(self._without_token_since + self._withdraw_after_seconds)
            # Times in the past are left out: they would make this a busy loop.
            return min(at for at in due_at if at > now) - now

    def _advance(self) -> float | None:
        """Read once and update the status; return when (monotonic) the content will have settled, None if it has."""
        with self._lock:
            before = self._reading
            reading = self._reading = read_secret(self._path, before)
            if reading is before and self._settles_at is None and self._without_token_since is None:
                return None  # the usual case: unchanged, and its token in use
            now = time.monotonic()
            if before is None or reading.mark != before.mark:
                self._still_since = now
                for secret in reading.secrets:
                    self._on_secret(secret)
            settles_at = self._still_since + SETTLE_SECONDS
            settled = now >= settles_at
            found = reading.found
            if isinstance(found, SecretContent) and (settled or self._is_whole(found)):
                settled = True
                self._accept(found, reading.changed_at)
            else:
                self._mark_unusable(found, now, settled=settled)
            self._settles_at = None if settled else settles_at
            return self._settles_at

    def _is_whole(self, content: SecretContent) -> bool:
        generation = self._status.generation
        if content.complete or (generation is not None and content.token == generation.token):
            return True
        return came_by_rename(self._path)

    def _accept(self, content: SecretContent, written_at: float | None) -> None:
        self._without_token_since = None
        generation = self._status.generation
        if generation is not None and generation.token == content.token:
            generation = replace(generation, expires_at=content.expires_at, subscription=content.subscription)
        else:
            token = content.token
            number = self._ledger.number_of(token)
            generation = Generation(number, token, time.time(), content.expires_at, content.subscription, written_at)
            logger.debug("generation %s loaded: %s %s", number, token.kind, token.fingerprint)
        if content != self._accepted:  # the same content may have been written anew
            for warning in content.warnings:
                logger.warning("%s: %s", self._path, warning)
        self._accepted = content
        self._publish(SecretState.READY, generation, None)

    def _mark_unusable(self, found: SecretContent | Unusable, now: float, *, settled: bool) -> None:
        if self._without_token_since is None:
            self._without_token_since = now
        unusable = found if isinstance(found, Unusable) else UNSETTLED
        generation = self._status.generation
        if generation is not None and now - self._without_token_since < self._withdraw_after_seconds:
            if settled and self._status.unusable != unusable:
                logger.warning(
                    "%s %s, generation %s stays in use for now", self._path, unusable.reason, generation.number
                )
                self._publish(SecretState.READY, generation, unusable)
            return
        if generation is not None:
            logger.warning("%s %s, generation %s is withdrawn", self._path, unusable.reason, generation.number)
        is_absent = unusable.fault in (SecretFault.MISSING, SecretFault.EMPTY)
        self._publish(SecretState.MISSING if is_absent else SecretState.INVALID, None, unusable)

    def _update_source(self) -> None:
        source = source_of(self._path)
        if source is self._source:
            return
        self._source = source
        if source is SourceKind.FILE_MOUNT:
            logger.warning("%s %s", self._path, FILE_MOUNT)
        elif source is SourceKind.DETACHED:
            logger.warning("%s %s", self._path, DETACHED.reason)
        status = self._status
        self._publish(status.state, status.generation, None if status.unusable == DETACHED else status.unusable)

    def _publish(self, state: SecretState, generation: Generation | None, unusable: Unusable | None) -> None:
        if unusable is None and self._source is SourceKind.DETACHED:
            unusable = DETACHED
        loaded_at = self._status.last_loaded_at if generation is None else generation.loaded_at
        status = SecretStatus(state, generation, unusable, self._source, loaded_at)
        if status == self._status:
            return
        self._status = status
        try:
            self._on_change(status)
        except Exception as problem:  # noqa: BLE001 a fault of the callback must not end the watching
            logger.error("the callback for a changed secret file failed: %s", type(problem).__name__)
