"""Which executable a command runs, told by its content: what was found out about one is never said of another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent_runtime.command import resolve
from agent_runtime.errors import SpawnFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

WRAPPER_LIMIT_BYTES = 64 * 1024
"""What is longer is the program itself, not a script that starts another."""

WRAPPERS_DEEP = 3
HERE = "$basedir"
"""How the scripts that package managers put into ``bin`` name their own directory."""


class Binary(msgspec.Struct, frozen=True):
    """
    The files a command consists of, as they are now.

    Attributes:
        files: The executable, links followed, and what it or a further word of the command names.
        key: Changes whenever one of the files is replaced or written; made without reading them.
    """

    command: tuple[str, ...]
    files: tuple[Path, ...]
    key: str

    @classmethod
    def of(cls, command: tuple[str, ...], search_path: str | None) -> Binary:
        """
        Find the files of *command*; small scripts are looked through for the program that they start.

        Raises:
            SpawnFailed: There is no such executable.
        """
        executable, *words = resolve(command, search_path)
        files: dict[Path, str] = {}
        try:
            _add(Path(executable), files, WRAPPERS_DEEP)
            for word in words:
                if "/" in word and Path(word).is_file():
                    _add(Path(word), files, WRAPPERS_DEEP)
        except OSError as error:
            raise SpawnFailed(f"the CLI cannot be read: {error.strerror}") from None
        return cls(command, tuple(files), "\n".join((*files.values(), *words)))

    def content_hash(self) -> str:
        """
        Return the SHA-256 of the executable; where there are more files or words, of all of them together.

        Takes about a second for the 380 MB of a current CLI; other threads go on meanwhile.

        Raises:
            SpawnFailed: It cannot be read.
        """
        try:
            hashes = [_hash(path) for path in self.files]
        except OSError as error:
            raise SpawnFailed(f"the CLI cannot be read: {error.strerror}") from None
        if len(hashes) == 1 and len(self.command) == 1:
            return hashes[0]
        return hashlib.sha256("\n".join((*hashes, *self.command[1:])).encode()).hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add(path: Path, files: dict[Path, str], deep: int) -> None:
    path = path.resolve(strict=True)
    if path in files:
        return
    info = path.stat()
    files[path] = f"{path}:{info.st_size}:{info.st_mtime_ns}:{info.st_ino}"
    if deep == 0 or info.st_size > WRAPPER_LIMIT_BYTES:
        return
    raw = path.read_bytes()
    if raw.startswith(b"#!"):
        for started in _named_in(raw.decode(errors="replace").replace(HERE, str(path.parent))):
            _add(started, files, deep - 1)


def _named_in(script: str) -> Iterator[Path]:
    """Yield the files that a script names by their whole path, in its lines below the first."""
    for line in script.splitlines()[1:]:
        for word in line.replace('"', " ").replace("'", " ").split():
            try:
                if word.startswith("/") and Path(word).is_file():
                    yield Path(word)
            except OSError:
                continue  # longer than a name can be: no path
