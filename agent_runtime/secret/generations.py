"""Generations of the token: their numbers, and what the API holds against a token; both outlive the process."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from agent_runtime.model.state import TokenTrouble

if TYPE_CHECKING:
    from pathlib import Path

    from agent_runtime.model.tokens import Token

FILE_NAME = "generations.json"
MAX_REFUSED = 1000
"""How many fingerprints in trouble are kept; the oldest goes first, so that the file stays small."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Generation:
    """
    One value of the token, numbered in the order in which values were seen.

    Attributes:
        loaded_at: Epoch seconds at which this process first read it.
        expires_at: Epoch seconds, where the secret file says so.
        subscription: A name for people, where the secret file says so.
        written_at: Epoch seconds at which the content got where it was read; for measuring only.
    """

    number: int
    token: Token
    loaded_at: float
    expires_at: float | None = None
    subscription: str | None = None
    written_at: float | None = field(default=None, compare=False)


class _Kept(msgspec.Struct, omit_defaults=True):
    """
    The file.

    Attributes:
        refused: Every token in trouble, by its fingerprint, and the highest number it had. A version that knows of no
            other trouble takes all of them for refused.
        trouble: Which trouble it is, where it is not refused.
    """

    generation: int = 0
    fingerprint: str = ""
    refused: dict[str, int] = {}
    trouble: dict[str, str] = {}

    def trouble_of(self, fingerprint: str) -> TokenTrouble | None:
        if fingerprint not in self.refused:
            return None
        try:
            return TokenTrouble(self.trouble.get(fingerprint, TokenTrouble.REFUSED))
        except ValueError:
            return TokenTrouble.REFUSED  # a later version's


class GenerationLedger:
    """
    The counter of generations and the fingerprints of tokens in trouble, kept in the data directory.

    Numbers only rise, over restarts too. A trouble belongs to the fingerprint: a refused token that returns under a
    new number is still refused. Where the disk cannot be written the ledger goes on in memory and says so once.

    Every method may be called from any thread.

    Args:
        directory: The data directory; None keeps nothing.
    """

    def __init__(self, directory: Path | None) -> None:
        self._path = None if directory is None else directory / FILE_NAME
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._kept = self._load()
        self._dirty = False
        self._unsynced = False
        self._warned = False

    @property
    def current(self) -> int:
        """The latest number given; 0 before the first."""
        with self._lock:
            return self._kept.generation

    @property
    def last_refused_generation(self) -> int | None:
        """The highest number that was refused and not cleared since."""
        with self._lock:
            kept = self._kept
            numbers = (number for fingerprint, number in kept.refused.items() if fingerprint not in kept.trouble)
            return max(numbers, default=None)

    def number_of(self, token: Token) -> int:
        """Return the number of the value now in the secret file: one higher if it is not the value of last time."""
        fingerprint = token.fingerprint
        with self._lock:
            if fingerprint != self._kept.fingerprint:
                self._kept.generation += 1
                self._kept.fingerprint = fingerprint
                self._dirty = True
            return self._kept.generation

    def trouble_of(self, token: Token) -> TokenTrouble | None:
        """Return what the API holds against this very token, under whatever number: refused, blocked, or billing."""
        with self._lock:
            return self._kept.trouble_of(token.fingerprint)

    def mark(self, generation: Generation, trouble: TokenTrouble) -> None:
        """Record a trouble of the generation's token; on disk when this returns, where that is possible."""
        with self._lock:
            kept, fingerprint = self._kept, generation.token.fingerprint
            kept.refused[fingerprint] = max(generation.number, kept.refused.pop(fingerprint, 0))
            kept.trouble.pop(fingerprint, None)
            if trouble is not TokenTrouble.REFUSED:
                kept.trouble[fingerprint] = trouble
            while len(kept.refused) > MAX_REFUSED:
                oldest = next(iter(kept.refused))
                del kept.refused[oldest]
                kept.trouble.pop(oldest, None)
            self._dirty = True
        self.save()

    def clear(self, token: Token) -> None:
        """Take a trouble back: the API accepted the token after all."""
        with self._lock:
            if self._kept.refused.pop(token.fingerprint, None) is None:
                return
            self._kept.trouble.pop(token.fingerprint, None)
            self._dirty = True
        self.save()

    def save(self, *, durable: bool = True) -> bool:
        """
        Write the ledger if it has changed, so that a reader finds the old or the new one whole.

        Args:
            durable: Wait for the disk, so that it outlives the machine; without, it outlives the process.

        Returns:
            Whether what is in memory is also on disk.
        """
        if self._path is None:
            return False
        with self._saving:
            with self._lock:
                if not self._dirty and not (durable and self._unsynced):
                    return True
                raw = msgspec.json.encode(self._kept)
                self._dirty = False
            try:
                _replace(self._path, raw, durable=durable)
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

    def _load(self) -> _Kept:
        if self._path is None:
            return _Kept()
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return _Kept()
        except OSError as problem:
            logger.warning("cannot read %s, generations are counted from 1: %s", self._path, problem)
        except (msgspec.DecodeError, UnicodeDecodeError):
            logger.warning("%s is damaged, generations are counted from 1", self._path)
        return _Kept()


def _replace(path: Path, raw: bytes, *, durable: bool) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 a descriptor, not a path
        file.write(raw)
        file.flush()
        if durable:
            os.fsync(descriptor)
    temporary.replace(path)
