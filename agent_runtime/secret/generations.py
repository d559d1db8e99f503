"""Number the generations of the token, and store which tokens are refused, blocked or unpaid, also over restarts."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import msgspec

from agent_runtime.files import read_file, replace_file
from agent_runtime.model.state import TokenTrouble
from agent_runtime.model.tokens import Token

FILE_NAME = "generations.json"
MAX_REFUSED = 1000
"""How many fingerprints of tokens in trouble are stored; the oldest is dropped first."""

logger = logging.getLogger(__name__)


class Generation(msgspec.Struct, frozen=True):
    """
    One value of the token, numbered in the order in which values were read.

    Attributes:
        loaded_at: Epoch seconds at which this process first read it.
        expires_at: Epoch seconds, where the secret file says so.
        subscription: A name for people, where the secret file says so.
        written_at: Epoch seconds at which the content was put in its place; for metrics only.
    """

    number: int
    token: Token
    loaded_at: float
    expires_at: float | None = None
    subscription: str | None = None
    written_at: float | None = None

    def has_expired(self, now: float) -> bool:
        """Whether :attr:`expires_at` is known and not after *now* (epoch seconds)."""
        return self.expires_at is not None and self.expires_at <= now


class _Stored(msgspec.Struct, omit_defaults=True):
    """
    The content of the stored file.

    Attributes:
        generation: The latest number given.
        fingerprint: The fingerprint of the token that has this number.
        refused: The highest generation of every token in trouble, by fingerprint. Old versions of this package know no
            other trouble, and take them all for refused.
        trouble: The trouble, by fingerprint, of those tokens that are in another trouble than refused.
    """

    generation: int = 0
    fingerprint: str = ""
    refused: dict[str, int] = {}
    trouble: dict[str, str] = {}


class GenerationLedger:
    """
    The counter of generations and the fingerprints of tokens in trouble (refused, blocked, unpaid), stored on disk.

    Numbers only rise, over restarts too. A trouble belongs to the fingerprint: a refused token that returns under a
    new number is still refused. Where the disk cannot be written, the ledger goes on in memory and warns once.

    Every method may be called from any thread.

    Args:
        directory: The data directory; None: nothing is stored on disk.
    """

    def __init__(self, directory: Path | None) -> None:
        self._path = None if directory is None else directory / FILE_NAME
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._stored = self._load()
        self._dirty = False
        self._unsynced = False
        self._warned = False

    @property
    def current(self) -> int:
        """The latest number given; 0 before the first."""
        with self._lock:
            return self._stored.generation

    @property
    def last_refused_generation(self) -> int | None:
        """The highest generation that was refused and has not been cleared since."""
        with self._lock:
            stored = self._stored
            numbers = (number for fingerprint, number in stored.refused.items() if fingerprint not in stored.trouble)
            return max(numbers, default=None)

    def number_of(self, token: Token) -> int:
        """Return the number of *token*, just read from the file: the latest number, or the next for another token."""
        fingerprint = token.fingerprint
        with self._lock:
            if fingerprint != self._stored.fingerprint:
                self._stored.generation += 1
                self._stored.fingerprint = fingerprint
                self._dirty = True
            return self._stored.generation

    def trouble_of(self, token: Token) -> TokenTrouble | None:
        """Return the trouble of this token, under any number: refused, blocked, billing or None."""
        fingerprint = token.fingerprint
        with self._lock:
            if fingerprint not in self._stored.refused:
                return None
            try:
                return TokenTrouble(self._stored.trouble.get(fingerprint, TokenTrouble.REFUSED))
            except ValueError:
                return TokenTrouble.REFUSED  # a trouble that only a later version knows

    def mark(self, generation: Generation, trouble: TokenTrouble) -> None:
        """Record a trouble of the generation's token; it is on disk on return, unless the disk cannot be written."""
        with self._lock:
            stored, fingerprint = self._stored, generation.token.fingerprint
            stored.refused[fingerprint] = max(generation.number, stored.refused.pop(fingerprint, 0))
            stored.trouble.pop(fingerprint, None)
            if trouble is not TokenTrouble.REFUSED:
                stored.trouble[fingerprint] = trouble
            while len(stored.refused) > MAX_REFUSED:
                oldest = next(iter(stored.refused))
                del stored.refused[oldest]
                stored.trouble.pop(oldest, None)
            self._dirty = True
        self.save()

    def clear(self, token: Token) -> None:
        """Remove the trouble of a token that the API has accepted."""
        with self._lock:
            if self._stored.refused.pop(token.fingerprint, None) is None:
                return
            self._stored.trouble.pop(token.fingerprint, None)
            self._dirty = True
        self.save()

    def save(self, *, durable: bool = True) -> bool:
        """
        Write the ledger atomically, if it has changed.

        Args:
            durable: Wait for the disk, so that it survives a crash of the machine, not only of the process.

        Returns:
            Whether the present content is on disk.
        """
        if self._path is None:
            return False
        with self._saving:
            with self._lock:
                if not self._dirty and not (durable and self._unsynced):
                    return True
                raw = msgspec.json.encode(self._stored)
                self._dirty = False
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                replace_file(self._path, raw, durable=durable)
                self._unsynced = not durable
            except OSError as problem:
                with self._lock:
                    self._dirty = True
                if not self._warned:
                    logger.warning("cannot write %s, generations are kept in memory only: %s", self._path, problem)
                self._warned = True
                return False
            if self._warned:
                logger.info("%s can be written again", self._path)
            self._warned = False
            return True

    def _load(self) -> _Stored:
        if self._path is None:
            return _Stored()
        try:
            return msgspec.json.decode(read_file(self._path), type=_Stored)
        except FileNotFoundError:
            return _Stored()
        except OSError as problem:
            logger.warning("cannot read %s, generations are counted from 1: %s", self._path, problem)
        except (msgspec.DecodeError, UnicodeDecodeError):
            logger.warning("%s is damaged, generations are counted from 1", self._path)
        return _Stored()
