"""Identify the CLI's executable by its content, so that what was measured on one is not used for another."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent_runtime.claude.invocation import resolve
from agent_runtime.claude.last_words import presentable
from agent_runtime.errors import SpawnFailed

WRAPPER_LIMIT_BYTES = 64 * 1024
"""A longer file is taken for the program itself, not for a script that starts it."""

WRAPPER_LEVELS = 3
"""How many scripts may start one another before the program."""

PLACEHOLDER = b"claude native binary not installed"
"""The content of the CLI's file in npm's package until install.cjs has run (2.1.332)."""

HEAD_BYTES = 4096
ELF = b"\x7fELF"
_LOADER = rb"\0(/[!-~]{1,200}/ld[!-~]{0,60}\.so[.\d]*)\0"
"""The content of the segment PT_INTERP, which linkers put at the beginning (GNU ld, lld, mold)."""

SCRIPT_DIRECTORY = "$basedir"
"""The expression for a script's own directory, in scripts that package managers write into ``bin``."""


class Binary(msgspec.Struct, frozen=True):
    """
    The files of a command, in their present state.

    Attributes:
        files: The executable, links followed, and the files that it or a further word of the command names.
        key: Paths, sizes, times and inodes of the files, and further words of the command. It changes when a file is
            replaced or written, or gets another mode.
    """

    command: tuple[str, ...]
    files: tuple[Path, ...]
    key: str

    @classmethod
    def of(cls, command: tuple[str, ...], search_path: str | None) -> Binary:
        """
        Find the files of *command*, including programs that small scripts start.

        Raises:
            SpawnFailed: There is no such executable.
        """
        executable, *words = resolve(command, search_path)
        files: dict[Path, str] = {}
        try:
            _add_files(Path(executable), files, WRAPPER_LEVELS)
            for word in words:
                if "/" in word and Path(word).is_file():
                    _add_files(Path(word), files, WRAPPER_LEVELS)
        except OSError as error:
            raise SpawnFailed(f"the CLI cannot be read: {error.strerror}") from None
        return cls(command, tuple(files), "\n".join((*files.values(), *words)))

    def content_hash(self) -> str:
        """
        Return the SHA-256 of the executable, or of all files and words together if there are more.

        This takes about a second for the 380 MB of a current CLI; other threads run meanwhile.

        Raises:
            SpawnFailed: A file cannot be read.
        """
        try:
            hashes = [_hash(path) for path in self.files]
        except OSError as error:
            raise SpawnFailed(f"the CLI cannot be read: {error.strerror}") from None
        if len(hashes) == 1 and len(self.command) == 1:
            return hashes[0]
        return hashlib.sha256("\n".join((*hashes, *self.command[1:])).encode()).hexdigest()


def launch_fault(command: tuple[str, ...], search_path: str | None) -> str | None:
    """
    Return why the kernel will not start *command*, judged by the first bytes of its files; None: no reason found.

    Raises:
        SpawnFailed: There is no such executable.
    """
    binary = Binary.of(command, search_path)
    try:
        heads = [_head(path) for path in binary.files]
    except OSError:
        return None  # an unreadable file may be executable all the same
    if any(PLACEHOLDER in head for head in heads):
        return (
            f'npm\'s placeholder stands in its place ("{PLACEHOLDER.decode()}"): run install.cjs of its package, or '
            "install it without --ignore-scripts and --omit=optional"
        )
    head = heads[0]
    if not head:
        return "its file is empty"
    if head.startswith(b"#!"):
        return _interpreter_fault(head, search_path)
    if head.startswith(ELF):
        return _loader_fault(head)
    return None if b"\0" in head else "its file is a text without a line #! that names its interpreter"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _interpreter_fault(head: bytes, search_path: str | None) -> str | None:
    words = head.partition(b"\n")[0][2:].decode(errors="replace").split(" ")
    words = [word for word in words if word]
    if not words or not Path(words[0]).exists():
        return f"its interpreter {presentable(words[0]) if words else ''} is missing"
    if Path(words[0]).name == "env":
        names = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        if names and shutil.which(names[0], path=search_path) is None:
            return f"its interpreter {presentable(names[0])} is not on PATH"
    return None


def _loader_fault(head: bytes) -> str | None:
    """Check that the loader of an ELF file exists; each C library has its own (musl, glibc)."""
    found = re.search(_LOADER, head)
    loader = "" if found is None else found[1].decode()
    return None if not loader or Path(loader).exists() else f"its loader {presentable(loader)} is missing here"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add_files(path: Path, files: dict[Path, str], levels: int) -> None:
    path = path.resolve(strict=True)
    if path in files:
        return
    info = path.stat()
    files[path] = f"{path}:{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}:{info.st_ino}"
    if levels == 0 or info.st_size > WRAPPER_LIMIT_BYTES:
        return
    raw = path.read_bytes()
    if raw.startswith(b"#!"):
        for started in _files_named_in(raw.decode(errors="replace").replace(SCRIPT_DIRECTORY, str(path.parent))):
            _add_files(started, files, levels - 1)


def _files_named_in(script: str) -> Iterator[Path]:
    """Yield the files that a script names by absolute path, below its first line."""
    for line in script.splitlines()[1:]:
        for word in line.replace('"', " ").replace("'", " ").split():
            try:
                if word.startswith("/") and Path(word).is_file():
                    yield Path(word)
            except OSError:
                continue  # too long for a path
