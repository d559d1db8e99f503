"""
The proofs that were made, kept in the data directory with the hash of the executable they are about.

An image that brings its CLI makes the proof when it is built,
``python -m agent_runtime.delivery.reload_results DIRECTORY COMMAND``,
with the directory of the virtual environment: what is found there counts wherever the data directory knows nothing
else.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from agent_runtime.claude.executable import Binary
from agent_runtime.delivery.reload_check import DoesNotRun, ReloadResult, check_reload
from agent_runtime.errors import AgentRuntimeError, SpawnFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent_runtime.delivery.cli_check import CliCheck
    from agent_runtime.delivery.delivery import ReloadBehaviour

FILE_NAME = "proofs.json"
BUILT_IN = Path(sys.prefix) / FILE_NAME
"""The proofs of an image, beside the packages that were installed with it."""

KEPT = 32
"""How many proofs, and how many hashes, are kept; the oldest goes first."""

RETRY_SECONDS = 300.0
"""After a proof that could not be made: the machine may have been busy."""

log = logging.getLogger(__name__)

V = TypeVar("V")


class _Kept(msgspec.Struct, rename={"reload_results": "proofs"}):
    """
    What the file holds.

    Attributes:
        hashes: Of executables' contents, by :attr:`~agent_runtime.claude.executable.Binary.key`.
        reload_results: By that hash; the file of earlier versions has them as ``proofs``.
    """

    hashes: dict[str, str] = {}
    reload_results: dict[str, ReloadResult] = {}


class ReloadResults:
    """
    Look up and keep proofs; every method may be called from any thread, and other processes may write the file, too.

    Where the disk cannot be written they are kept in memory.

    Args:
        data_dir: None keeps nothing on disk.
        built_in: Results that were made elsewhere, to begin with.
    """

    def __init__(self, data_dir: Path | None, built_in: Path = BUILT_IN) -> None:
        self._built_in = built_in
        self._path = None if data_dir is None else data_dir / FILE_NAME
        self._lock = threading.Lock()
        self._kept = self._load()

    def known(
        self, command: tuple[str, ...], search_path: str | None = None, *, read_it: bool = True
    ) -> ReloadResult | None:
        """
        Return the proof about the executable that *command* runs now, if there is one.

        Args:
            search_path: As the variable ``PATH``; None: this process's.
            read_it: Read the executable where it has not been seen before, which takes a second; otherwise such a one
                is not known.

        Raises:
            SpawnFailed: There is no such executable.
        """
        binary = Binary.of(command, search_path)
        with self._lock:
            content_hash = self._kept.hashes.get(binary.key)
        if content_hash is None:
            if not read_it:
                return None
            content_hash = binary.content_hash()
            with self._lock:
                self._put(self._kept.hashes, binary.key, content_hash)
                if content_hash in self._kept.reload_results:
                    self._save()
        with self._lock:
            return self._kept.reload_results.get(content_hash)

    def keep(self, binary: Binary, reload_result: ReloadResult) -> None:
        """Keep *proof*, on disk when this returns, where that is possible."""
        with self._lock:
            newer = self._load()
            newer.hashes.update(self._kept.hashes)
            newer.reload_results.update(self._kept.reload_results)
            self._kept = newer
            self._put(newer.hashes, binary.key, reload_result.binary_hash)
            self._put(newer.reload_results, reload_result.binary_hash, reload_result)
            self._save()

    def _put(self, kept: dict[str, V], key: str, value: V) -> None:
        kept.pop(key, None)
        kept[key] = value
        while len(kept) > KEPT:
            del kept[next(iter(kept))]

    def _load(self) -> _Kept:
        kept = _read(self._built_in)
        if self._path is not None:
            ours = _read(self._path)
            kept.hashes |= ours.hashes
            kept.reload_results |= ours.reload_results
        return kept

    def _save(self) -> None:
        if self._path is None:
            return
        temporary = self._path.with_name(f"{FILE_NAME}.{secrets.token_hex(4)}.tmp")
        try:
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(msgspec.json.encode(self._kept))
                    file.flush()
                    os.fsync(descriptor)
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot write %s, the proof is kept in memory only: %s", self._path, error.strerror)


def _read(path: Path) -> _Kept:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Kept)
    except FileNotFoundError:
        return _Kept()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("cannot use %s, proofs are made anew: %s", path, type(error).__name__)
        return _Kept()


class BackgroundReloadChecker:
    """
    Make the proof about the CLI in use in a thread of its own, unless it is known, and again when the CLI was replaced.

    Args:
        environ: The supervisor's.
        cli: To be told whether it can be started.
        user: As whom children run; None: as we do.
        mark: As for :func:`agent_runtime.delivery.reload_check.prove`, and so is *directory*.
    """

    def __init__(
        self,
        command: tuple[str, ...],
        environ: Mapping[str, str],
        reload_results: ReloadResults,
        cli: CliCheck | None = None,
        *,
        user: str | None = None,
        mark: Callable[[], str] | None = None,
        directory: Path | None = None,
    ) -> None:
        self._command = command
        self._environ = environ
        self._reload_results = reload_results
        self._cli = cli
        self._user = user
        self._mark = mark
        self._directory = directory
        self._lock = threading.Lock()
        self._called_off = threading.Event()
        self._thread: threading.Thread | None = None
        self._not_before = 0.0

    def reload_behaviour(self) -> ReloadBehaviour | None:
        """Tell what was proved of the executable that is there now, by its size and times; None: nothing."""
        try:
            reload_result = self._reload_results.known(self._command, self._environ.get("PATH"), read_it=False)
        except AgentRuntimeError:
            return None  # without a CLI there will be no child; whoever spawns says so
        return None if reload_result is None else reload_result.reload_behaviour

    def begin(self) -> None:
        """Begin the proof unless it is under way; after one that failed, not before :data:`RETRY_SECONDS` are over."""
        with self._lock:
            if self._called_off.is_set() or time.monotonic() < self._not_before:
                return
            if self._thread is not None and self._thread.is_alive():
                return
            self._thread = threading.Thread(target=self._run, name="proof")
            self._thread.start()

    def close(self) -> None:
        """Call off what is under way and wait for its end: a second at most while a large executable is read."""
        with self._lock:
            self._called_off.set()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        try:
            path = self._environ.get("PATH")
            binary = Binary.of(self._command, path)
            reload_result = self._reload_results.known(self._command, path)
            if reload_result is None:
                reload_result = check_reload(
                    self._command,
                    self._environ,
                    user=self._user,
                    called_off=self._called_off,
                    mark=self._mark,
                    directory=self._directory,
                )
                self._reload_results.keep(binary, reload_result)
            if self._cli is not None:
                self._cli.began()
            log.info(
                "the CLI %s takes a newer token from its file: %s",
                reload_result.version,
                reload_result.reload_behaviour,
            )
        except AgentRuntimeError as error:
            self._not_before = time.monotonic() + RETRY_SECONDS
            if self._cli is not None:
                self._note(self._cli, error)
            if not self._called_off.is_set():
                log.warning("whether the CLI takes a newer token from its file cannot be told: %s", error)

    def _note(self, cli: CliCheck, error: AgentRuntimeError) -> None:
        if isinstance(error, DoesNotRun):
            cli.failed(str(error), is_certain=True)
        elif isinstance(error, SpawnFailed):
            cli.not_spawned(error)


def main(arguments: Sequence[str]) -> int:
    """Make the proof about a CLI and keep it in a directory, readable for everybody: it holds no secret."""
    directory, *command = arguments
    reload_results = ReloadResults(Path(directory))
    binary = Binary.of(tuple(command), os.environ.get("PATH"))
    reload_result = check_reload(tuple(command), os.environ)
    reload_results.keep(binary, reload_result)
    (Path(directory) / FILE_NAME).chmod(0o644)
    print(f"{reload_result.version}: takes a newer token: {reload_result.reload_behaviour}")  # noqa: T201 - for the log of the build
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
