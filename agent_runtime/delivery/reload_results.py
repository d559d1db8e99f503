"""
The results of reload checks, stored in the data directory with the hash of the executable that they are about.

An image that includes its CLI makes the check when it is built, with
``python -m agent_runtime.delivery.reload_results DIRECTORY COMMAND`` and the directory of the virtual environment.
Such a result counts unless the data directory has another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from agent_runtime.claude.executable import Binary
from agent_runtime.delivery.check_run import DoesNotRun
from agent_runtime.delivery.cli_options import CliOptions, depends_on_cli
from agent_runtime.delivery.reload_check import ReloadResult, ask_for_help, check_reload
from agent_runtime.errors import AgentRuntimeError, SpawnFailed
from agent_runtime.files import read_file, replace_file
from agent_runtime.process.spawn import Spawner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent_runtime.delivery.cli_check import CliCheck
    from agent_runtime.delivery.delivery import ReloadBehaviour
    from agent_runtime.errors import InvalidRequest
    from agent_runtime.model.task import Task

FILE_NAME = "proofs.json"
BUILT_IN = Path(sys.prefix) / FILE_NAME
"""The results of an image, beside the packages that were installed with it."""

MOST_RESULTS = 32
"""How many results, and how many hashes, are stored; the oldest is dropped first."""

RETRY_SECONDS = 300.0
"""The pause after a failed check: the machine may have been busy."""

log = logging.getLogger(__name__)

V = TypeVar("V")


class _Stored(msgspec.Struct, rename={"reload_results": "proofs"}):
    """
    The content of the file.

    Attributes:
        hashes: Of executables' contents, by :attr:`~agent_runtime.claude.executable.Binary.key`.
        reload_results: By that hash.
        options: Likewise.
    """

    hashes: dict[str, str] = {}
    reload_results: dict[str, ReloadResult] = {}
    options: dict[str, CliOptions] = {}


class ReloadResults:
    """
    Look up and store results; every method may be called from any thread, and other processes may write the file too.

    If the disk cannot be written, results are held in memory.

    Args:
        data_dir: None: nothing is stored on disk.
        built_in: A file with further results.
    """

    def __init__(self, data_dir: Path | None, built_in: Path = BUILT_IN) -> None:
        self._built_in = built_in
        self._path = None if data_dir is None else data_dir / FILE_NAME
        self._lock = threading.Lock()
        self._stored = self._load()

    def known(
        self, command: tuple[str, ...], search_path: str | None = None, *, hash_it: bool = True
    ) -> ReloadResult | None:
        """
        Return the result for the executable that *command* runs now; None: there is none.

        Args:
            search_path: As the variable ``PATH``; None: this process's.
            hash_it: Read an executable that has not been seen before, which takes a second; otherwise its result is not
                known.

        Raises:
            SpawnFailed: There is no such executable.
        """
        content_hash = self._hash_of(Binary.of(command, search_path), hash_it=hash_it)
        with self._lock:
            return self._stored.reload_results.get(content_hash)

    def known_options(self, binary: Binary, *, hash_it: bool = True) -> CliOptions | None:
        """Return what a CLI knows; None: that is not known. *hash_it*: as for :meth:`known`."""
        content_hash = self._hash_of(binary, hash_it=hash_it)
        with self._lock:
            return self._stored.options.get(content_hash)

    def _hash_of(self, binary: Binary, *, hash_it: bool) -> str:
        """Return the hash of a binary's content; empty: it would have to be read."""
        with self._lock:
            content_hash = self._stored.hashes.get(binary.key)
        if content_hash is None and hash_it:
            content_hash = binary.content_hash()
            with self._lock:
                _put(self._stored.hashes, binary.key, content_hash)
                if content_hash in self._stored.reload_results:
                    self._save()
        return content_hash or ""

    def store_options(self, binary: Binary, options: CliOptions) -> None:
        """Store what a CLI knows, on disk if that is possible."""
        content_hash = self._hash_of(binary, hash_it=True)
        with self._lock:
            self._merge()
            _put(self._stored.options, content_hash, options)
            self._save()

    def store(self, binary: Binary, reload_result: ReloadResult) -> None:
        """Store a result, on disk if that is possible."""
        with self._lock:
            self._merge()
            _put(self._stored.hashes, binary.key, reload_result.binary_hash)
            _put(self._stored.reload_results, reload_result.binary_hash, reload_result)
            self._save()

    def _merge(self) -> None:
        """Add what another process has written."""
        newer = self._load()
        newer.hashes.update(self._stored.hashes)
        newer.reload_results.update(self._stored.reload_results)
        newer.options.update(self._stored.options)
        self._stored = newer

    def _load(self) -> _Stored:
        stored = _read(self._built_in)
        if self._path is not None:
            ours = _read(self._path)
            stored.hashes |= ours.hashes
            stored.reload_results |= ours.reload_results
            stored.options |= ours.options
        return stored

    def _save(self) -> None:
        if self._path is None:
            return
        try:
            replace_file(self._path, msgspec.json.encode(self._stored))
        except OSError as error:
            log.warning("cannot write %s, the result is held in memory only: %s", self._path, error.strerror)


def _put(table: dict[str, V], key: str, value: V) -> None:
    table.pop(key, None)
    table[key] = value
    while len(table) > MOST_RESULTS:
        del table[next(iter(table))]


def _read(path: Path) -> _Stored:
    try:
        return msgspec.json.decode(read_file(path), type=_Stored)
    except FileNotFoundError:
        return _Stored()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("cannot use %s, the CLI is checked again: %s", path, type(error).__name__)
        return _Stored()


class BackgroundReloadChecker:
    """
    Check the CLI in use in a thread, unless its result is known; again when the CLI was replaced.

    Args:
        environ: The supervisor's.
        cli: Is told whether the CLI can be started.
        user: The user that children run as; None: as we do.
        mark: As for :func:`agent_runtime.delivery.reload_check.check_reload`; so are *directory* and *proves_socket*.
    """

    def __init__(
        self,
        spawner: Spawner,
        command: tuple[str, ...],
        environ: Mapping[str, str],
        reload_results: ReloadResults,
        cli: CliCheck | None = None,
        *,
        user: str | None = None,
        mark: Callable[[], str] | None = None,
        directory: Path | None = None,
        proves_socket: bool = False,
    ) -> None:
        self._spawner = spawner
        self._command = command
        self._environ = environ
        self._reload_results = reload_results
        self._cli = cli
        self._user = user
        self._mark = mark
        self._directory = directory
        self._proves_socket = proves_socket
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None
        self._not_before = 0.0
        self._asking = asyncio.Lock()  # of the event loop, so that callers who wait take no worker thread
        self._not_asked_before = 0.0

    def reload_behaviour(self) -> ReloadBehaviour | None:
        """Return the result for the executable that is there now, by its size and times; None: not known."""
        reload_result = self._known()
        return None if reload_result is None else reload_result.reload_behaviour

    def known_options(self) -> CliOptions | None:
        """Return what the executable that is there now knows, without starting it; None: that is not known."""
        try:
            return self._reload_results.known_options(self._binary(), hash_it=False)
        except AgentRuntimeError:
            return None

    async def fault(self, task: Task) -> InvalidRequest | None:
        """
        Return what the CLI in use does not know of *task*; it is asked once, where that is not known.

        Where it does not say, every option is given to it: it ends with "unknown option", which is the same error.
        """
        if not depends_on_cli(task):
            return None
        async with self._asking:
            options = await asyncio.to_thread(self._options)
        return None if options is None else options.fault(task)

    def _options(self) -> CliOptions | None:
        try:
            binary = self._binary()
            options = self._reload_results.known_options(binary)
            if options is None and time.monotonic() >= self._not_asked_before:
                self._not_asked_before = time.monotonic() + RETRY_SECONDS
                asked = ask_for_help(
                    self._spawner,
                    self._command,
                    self._environ,
                    user=self._user,
                    cancelled=self._cancelled,
                    mark=self._mark,
                    directory=self._directory,
                )
                if not asked.is_usable:
                    log.warning("the CLI's --help lists no options: it gets those of a task unchecked")
                    return None
                self._not_asked_before = 0.0
                self._reload_results.store_options(binary, asked)
                options = asked
        except AgentRuntimeError as error:
            log.warning("it is unknown which options the CLI knows: %s", error)
            return None
        return options

    def _binary(self) -> Binary:
        return Binary.of(self._command, self._environ.get("PATH"))

    def takes_socket(self) -> bool | None:
        """Whether the executable that is there now takes its requests to a Unix socket; None: not known."""
        reload_result = self._known()
        return None if reload_result is None else reload_result.takes_socket

    def _known(self) -> ReloadResult | None:
        try:
            result = self._reload_results.known(self._command, self._environ.get("PATH"), hash_it=False)
        except AgentRuntimeError:
            return None  # the spawn reports a missing CLI
        return result if self._is_enough(result) else None

    def _is_enough(self, result: ReloadResult | None) -> bool:
        return result is not None and not (self._proves_socket and result.takes_socket is None)

    def begin(self) -> None:
        """Begin a check unless one is under way, or has failed within the last :data:`RETRY_SECONDS`."""
        with self._lock:
            is_running = self._thread is not None and self._thread.is_alive()
            if is_running or self._cancelled.is_set() or time.monotonic() < self._not_before:
                return
            self._thread = threading.Thread(target=self._run, name="reload-check")
            self._thread.start()

    def close(self) -> None:
        """Cancel the check under way and wait for its end; that takes up to a second if it reads an executable."""
        with self._lock:
            self._cancelled.set()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        try:
            path = self._environ.get("PATH")
            binary = Binary.of(self._command, path)
            result = self._reload_results.known(self._command, path)
            if result is None or not self._is_enough(result):
                result = check_reload(
                    self._spawner,
                    self._command,
                    self._environ,
                    user=self._user,
                    cancelled=self._cancelled,
                    mark=self._mark,
                    directory=self._directory,
                    proves_socket=self._proves_socket,
                )
                self._reload_results.store(binary, result)
            if self._cli is not None:
                self._cli.began()
            log.info("the CLI %s takes a newer token from its file: %s", result.version, result.reload_behaviour)
        except AgentRuntimeError as error:
            self._not_before = time.monotonic() + RETRY_SECONDS
            if self._cli is not None and isinstance(error, DoesNotRun):
                self._cli.failed(str(error), is_certain=True)
            elif self._cli is not None and isinstance(error, SpawnFailed):
                self._cli.not_spawned(error)
            if not self._cancelled.is_set():
                log.warning("it is unknown whether the CLI takes a newer token from its file: %s", error)


def main(arguments: Sequence[str]) -> int:
    """Check a CLI and store the result in a directory, readable for everybody: it holds no secret."""
    directory, *command = arguments
    with contextlib.closing(Spawner()) as spawner:
        result = check_reload(spawner, tuple(command), os.environ, proves_socket=True)
        options = ask_for_help(spawner, tuple(command), os.environ)
    binary, results = Binary.of(tuple(command), os.environ.get("PATH")), ReloadResults(Path(directory))
    results.store(binary, result)
    if options.is_usable:
        results.store_options(binary, options)
    (Path(directory) / FILE_NAME).chmod(0o644)
    print(f"{result.version}: takes a newer token: {result.reload_behaviour}")  # noqa: T201 - for the log of the build
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
