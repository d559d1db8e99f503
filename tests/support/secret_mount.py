"""A directory with a secret file; each method writes the file in the way of some real writer."""

from __future__ import annotations

import itertools
import os
import queue
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent_runtime.secret.file import SecretState, SecretStatus

TEAR_SECONDS = 0.03
"""The pause of a torn write: part of the injected fault, not a wait for anything."""


def token(number: int | str) -> str:
    """Make up an OAuth token; tokens of different numbers have the same length up to 99999."""
    return f"sk-ant-oat01-{number:0>5}-made-up-for-tests"


def number_in(secret: str) -> int:
    """Return the number that a made-up token was made from."""
    return int(secret.split("-")[3])


class SecretMount:
    """A directory with the secret file in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "token"
        self._names = itertools.count()

    def publish(self, content: str | bytes) -> None:
        """Write a temporary file and rename it, as ``token put`` does."""
        temporary = self.directory / f".token.{next(self._names)}"
        temporary.write_bytes(_raw(content))
        temporary.rename(self.path)

    def overwrite(self, content: str | bytes) -> None:
        """Truncate and write, as ``echo TOKEN >FILE`` does."""
        self.path.write_bytes(_raw(content))

    def patch(self, content: str | bytes) -> None:
        """Write over the old content without truncating, as ``dd conv=notrunc`` does."""
        descriptor = os.open(self.path, os.O_WRONLY)
        os.write(descriptor, _raw(content))
        os.close(descriptor)

    def copy_preserving(self, content: str | bytes) -> None:
        """Copy in place with an old modification time, as ``cp -p`` and backups do."""
        origin = self.directory.parent / "origin"
        origin.write_bytes(_raw(content))
        os.utime(origin, (1_700_000_000, 1_700_000_000))
        subprocess.run(["cp", "-p", origin, self.path], check=True)

    def tear(self, content: str | bytes) -> None:
        """Truncate, write one half, write the rest, with a pause after each."""
        raw = _raw(content)
        with self.path.open("wb", buffering=0) as file:
            for part in (raw[: len(raw) // 2], raw[len(raw) // 2 :]):
                time.sleep(TEAR_SECONDS)
                file.write(part)

    def unlink_and_create(self, content: str | bytes) -> None:
        """Remove the file and, a little later, create another."""
        self.path.unlink()
        time.sleep(0.02)
        self.overwrite(content)

    def renamed_away(self) -> None:
        """Rename the directory and make a new, empty one in its place."""
        self.directory.rename(self.directory.with_name("old"))
        self.directory.mkdir()

    def made_anew(self) -> None:
        """Remove the directory and make it again; most file systems give it the same inode number."""
        shutil.rmtree(self.directory)
        self.directory.mkdir()


class KubernetesVolume(SecretMount):
    """A projected volume as the kubelet's AtomicWriter lays it out; its values have no newline at the end."""

    def publish(self, content: str | bytes) -> None:
        """Write a new directory, swap the ``..data`` link, remove the old directory."""
        data = self.directory / "..data"
        old = data.resolve() if data.is_symlink() else None
        new = self.directory / f"..2026_11_21_10_00_{next(self._names):09}"
        new.mkdir()
        (new / "token").write_bytes(_raw(content))
        link = self.directory / "..data_tmp"
        link.symlink_to(new.name)
        link.rename(data)
        if old is None:
            self.path.symlink_to("..data/token")
        else:
            shutil.rmtree(old)


class Changes:
    """A listener for :class:`~agent_runtime.secret.file.SecretFile` that lets a test wait for a status."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, SecretStatus]] = []
        self._queue: queue.Queue[SecretStatus] = queue.Queue()

    def __call__(self, status: SecretStatus) -> None:
        self.seen.append((time.monotonic(), status))
        self._queue.put(status)

    def until(self, holds: Callable[[SecretStatus], bool], *, within_seconds: float) -> SecretStatus:
        """Return the first status for which *holds* is true, among those that no call has looked at yet."""
        deadline = time.monotonic() + within_seconds
        while True:
            try:
                status = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"not seen within {within_seconds} s; last: {self.seen[-1:]}") from None
            if holds(status):
                return status

    def until_token(self, secret: str, *, within_seconds: float) -> SecretStatus:
        """Return the first status that has this token in use."""
        return self.until(lambda status: has_token(status, secret), within_seconds=within_seconds)

    def until_state(self, state: SecretState, *, within_seconds: float) -> SecretStatus:
        """Return the first status in this state."""
        return self.until(lambda status: status.state is state, within_seconds=within_seconds)

    def tokens(self) -> Iterator[tuple[float, str]]:
        """Yield when each token was first in use, and the token, in order."""
        last = None
        for at, status in self.seen:
            if status.generation is not None and status.generation.token.secret != last:
                last = status.generation.token.secret
                yield at, last


def has_token(status: SecretStatus, secret: str) -> bool:
    """Whether this token is in use."""
    return status.generation is not None and status.generation.token.secret == secret


def _raw(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content
