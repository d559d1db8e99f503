"""
Facts about the CLI, stored in the data directory under the hash of the executable that they are about.

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
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent_runtime.claude.executable import Binary
from agent_runtime.delivery.check_run import DoesNotRun
from agent_runtime.delivery.cli_check import CliCheck
from agent_runtime.delivery.cli_options import CliOptions, depends_on_cli
from agent_runtime.delivery.reload_check import HELP, RELOAD, SOCKET, CheckedCli, CliFacts, ReloadBehaviour
from agent_runtime.errors import AgentRuntimeError, InvalidRequest, SpawnFailed
from agent_runtime.files import read_file, replace_file
from agent_runtime.model.task import Task
from agent_runtime.process.spawn import Spawner

FILE_NAME = "proofs.json"
"""The file and its key ``proofs`` have the names that earlier versions gave them, so that stored results stay known."""
BUILT_IN = Path(sys.prefix) / FILE_NAME
"""The results of an image, beside the packages that were installed with it."""

MOST_HASHES = 32
"""How many hashes of executables are stored; the oldest is dropped first."""

RETRY_SECONDS = 300.0
"""The pause after a failed check: the machine may have been busy."""

log = logging.getLogger(__name__)


class _Stored(msgspec.Struct, rename={"facts": "proofs"}):
    """
    The content of the file.

    Attributes:
        hashes: Hash of an executable's content, by :attr:`~agent_runtime.claude.executable.Binary.key`.
        facts: Facts about an executable, by that hash.
    """

    hashes: dict[str, str] = {}
    facts: dict[str, CliFacts] = {}

    def updated(self, newer: _Stored) -> _Stored:
        """Return this content with that of *newer* added."""
        facts = {key: self.facts.get(key, CliFacts()).updated(found) for key, found in newer.facts.items()}
        return _Stored(self.hashes | newer.hashes, self.facts | facts)


class ReloadResults:
    """
    Look up and store facts; every method may be called from any thread, and other processes may write the file too.

    If the disk cannot be written, facts are held in memory.

    Args:
        data_dir: The directory of the file with the facts; None: nothing is stored on disk.
        built_in: A file with further facts.
    """

    def __init__(self, data_dir: Path | None, built_in: Path = BUILT_IN) -> None:
        self._built_in = built_in
        self._path = None if data_dir is None else data_dir / FILE_NAME
        self._lock = threading.Lock()
        self._stored = self._load()

    def known(self, binary: Binary, *, hash_it: bool = True) -> CliFacts:
        """
        Return the known facts about an executable.

        Args:
            hash_it: Read an executable that has not been seen before, which takes a second; if False, nothing is known
                of such an executable.

        Raises:
            SpawnFailed: The executable cannot be read.
        """
        with self._lock:
            content_hash = self._stored.hashes.get(binary.key)
        if content_hash is None and hash_it:
            content_hash = binary.content_hash()
            with self._lock:
                hashes = {**self._stored.hashes, binary.key: content_hash}
                self._stored.hashes = dict(list(hashes.items())[-MOST_HASHES:])
                if content_hash in self._stored.facts:
                    self._save()
        with self._lock:
            return self._stored.facts.get(content_hash or "", CliFacts())

    def store(self, binary: Binary, facts: CliFacts) -> CliFacts:
        """Add facts about an executable, on disk if that is possible; return all that are known now."""
        facts = self.known(binary).updated(facts)
        with self._lock:
            content_hash = self._stored.hashes[binary.key]
            self._stored = self._load().updated(self._stored).updated(_Stored(facts={content_hash: facts}))
            self._save()
        return facts

    def _load(self) -> _Stored:
        built_in = _read(self._built_in)
        return built_in if self._path is None else built_in.updated(_read(self._path))

    def _save(self) -> None:
        if self._path is None:
            return
        try:
            replace_file(self._path, msgspec.json.encode(self._stored))
        except OSError as error:
            log.warning("cannot write %s, the result is held in memory only: %s", self._path, error.strerror)


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
    Find out the missing facts about the installed CLI in a thread, and again after it was replaced.

    Args:
        starts: Gets a report of whether the CLI could be started.
        checks_socket: Also find out whether the CLI's requests go to a Unix socket, for the relay.
    """

    def __init__(
        self, cli: CheckedCli, results: ReloadResults, starts: CliCheck | None = None, *, checks_socket: bool = False
    ) -> None:
        self._cli = cli
        self._results = results
        self._starts = starts
        self._wanted = (RELOAD, SOCKET) if checks_socket else (RELOAD,)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._not_before: dict[tuple[str, ...], float] = {}
        self._asking = asyncio.Lock()  # an asyncio lock, so that waiting callers occupy no worker thread

    def reload_behaviour(self) -> ReloadBehaviour | None:
        """Return the behaviour of the executable that is there now, without reading it; None: not known."""
        facts = self._known()
        return None if facts.is_missing_any(self._wanted) else facts.reload_behaviour

    def takes_socket(self) -> bool | None:
        """Whether the executable that is there now sends its requests to a Unix socket; None: not known."""
        return self._known().takes_socket

    def known_options(self) -> CliOptions | None:
        """Return the options of the executable that is there now, without starting it; None: not known."""
        return self._known().options

    def _known(self) -> CliFacts:
        try:
            return self._results.known(self._cli.binary(), hash_it=False)
        except AgentRuntimeError:
            return CliFacts()  # the spawn reports a missing CLI

    async def fault(self, task: Task) -> InvalidRequest | None:
        """
        Return the error for a field of *task* that the installed CLI does not support; None: it supports all.

        The CLI is asked for its options once, if they are not known. If it does not list any, the result is None: the
        CLI then ends with "unknown option", which becomes the same error.
        """
        if not depends_on_cli(task):
            return None
        try:
            async with self._asking:
                options = (await asyncio.to_thread(self._ensure_known, HELP)).options
        except AgentRuntimeError as error:
            log.warning("it is unknown which options the CLI knows: %s", error)
            return None
        return None if options is None else options.fault(task)

    def _ensure_known(self, *wanted: str) -> CliFacts:
        """
        Return the facts about the CLI, after a check if one of those *wanted* is not known.

        Raises:
            AgentRuntimeError: The CLI could not be checked.
        """
        binary = self._cli.binary()
        facts = self._results.known(binary)
        if facts.is_missing_any(wanted) and self._is_check_due(wanted):
            self._not_before[wanted] = time.monotonic() + RETRY_SECONDS
            facts = self._results.store(binary, self._cli.find_out(*wanted))
            if not facts.is_missing_any(wanted):
                del self._not_before[wanted]
        return facts

    def _is_check_due(self, wanted: tuple[str, ...]) -> bool:
        return time.monotonic() >= self._not_before.get(wanted, 0.0)

    def begin(self) -> None:
        """Begin a check unless one is running, or has failed within the last :data:`RETRY_SECONDS`."""
        with self._lock:
            is_running = self._thread is not None and self._thread.is_alive()
            if is_running or self._cli.cancelled.is_set() or not self._is_check_due(self._wanted):
                return
            self._thread = threading.Thread(target=self._run, name="reload-check")
            self._thread.start()

    def close(self) -> None:
        """Cancel the running check and wait for its end, up to a second if it reads an executable."""
        with self._lock:
            self._cli.cancelled.set()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        try:
            facts = self._ensure_known(*self._wanted)
            if self._starts is not None:
                self._starts.record_start()
            log.info("the CLI %s takes a newer token from its file: %s", facts.version, facts.reload_behaviour)
        except AgentRuntimeError as error:
            if self._starts is not None and isinstance(error, DoesNotRun):
                self._starts.record_failure(str(error), is_certain=True)
            elif self._starts is not None and isinstance(error, SpawnFailed):
                self._starts.record_failed_spawn(error)
            if not self._cli.cancelled.is_set():
                log.warning("it is unknown whether the CLI takes a newer token from its file: %s", error)


def main(arguments: Sequence[str]) -> int:
    """Check a CLI and store the result in a directory, readable for everybody: it holds no secret."""
    directory, *command = arguments
    with contextlib.closing(Spawner()) as spawner:
        cli = CheckedCli(spawner, tuple(command), os.environ)
        facts = cli.find_out(HELP, RELOAD, SOCKET)
    ReloadResults(Path(directory)).store(cli.binary(), facts)
    (Path(directory) / FILE_NAME).chmod(0o644)
    print(f"{facts.version}: takes a newer token: {facts.reload_behaviour}")  # noqa: T201 - for the log of the build
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
