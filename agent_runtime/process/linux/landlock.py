"""
Landlock: a process gives up access to files, and to processes outside, for itself and all its descendants.

A ruleset can only allow. To close a directory, the ruleset therefore allows everything beside it: in each of its parent
directories every entry that does not lead to it. An entry that is made in such a parent later is not allowed.

Source: https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from agent_runtime.errors import SpawnFailed

CREATE_RULESET, ADD_RULE = 444, 445  # the same on every architecture
LEAST_ABI = 2
"""Linux 5.19; before it a process under Landlock could rename no file into another directory."""

MOST_RULES = 16_384

_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 14
_REMOVE_MAKE_AND_REFER = sum(1 << bit for bit in range(4, 14))
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3
_TRUNCATE_ABI, _SCOPE_ABI = 3, 6
_READ = _EXECUTE | _READ_FILE

_libc = ctypes.CDLL(None, use_errno=True)


class Mode(StrEnum):
    """How a child is kept away from the secret and the supervisor."""

    OFF = "off"
    USER = "user"
    LANDLOCK = "landlock"


class Confinement(msgspec.Struct, frozen=True):
    """
    What a child cannot reach.

    Attributes:
        asked: The setting: a mode, or ``auto``.
        closed: Files and directories that a child must not reach, by their real paths.
        open: Directories that a child may use even if they lie below a closed one.
        reached: For each thing that a trial child tried to reach, whether it could.
        warnings: Sentences about where agents cannot make files because of *closed*, and what they can still replace.
        lacking: For each mode that was asked for, or would be better, the reason why it is not available here.
    """

    mode: Mode = Mode.OFF
    asked: str = Mode.OFF
    closed: tuple[Path, ...] = ()
    open: tuple[Path, ...] = ()
    reached: dict[str, bool] = {}
    warnings: tuple[str, ...] = ()
    lacking: dict[str, str] = {}

    def ruleset(self, needs: Iterable[Path] = ()) -> int:
        """
        Return a new descriptor of a ruleset for one child, for the caller to close.

        Args:
            needs: Directories below closed ones whose files the child must read and execute.

        Raises:
            SpawnFailed: More than :data:`MOST_RULES` entries lie beside *closed*, or the operating system refuses.
        """
        try:
            return self._ruleset(needs)
        except OSError as error:
            raise SpawnFailed(f"cannot start the CLI: it cannot be confined: {error.strerror}") from None

    def _ruleset(self, needs: Iterable[Path]) -> int:
        abi = version()
        everything = _READ | _WRITE_FILE | _REMOVE_MAKE_AND_REFER | (_TRUNCATE if abi >= _TRUNCATE_ABI else 0)
        scopes = _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if abi >= _SCOPE_ABI else 0
        attributes = struct.pack("=QQQ", everything, 0, scopes)
        ruleset = _call(CREATE_RULESET, ctypes.c_char_p(attributes), len(attributes), 0)
        try:
            os.set_inheritable(ruleset, False)
            for count, path in enumerate(beside(self.closed)):
                if count >= MOST_RULES:
                    raise OSError(errno.E2BIG, "too much stands beside what is closed")
                _allow(ruleset, path, everything)
            for place in self.open:
                _allow(ruleset, os.fspath(place), everything)
            for place in needs:
                _allow(ruleset, os.fspath(place), _READ)
        except BaseException:
            os.close(ruleset)
            raise
        return ruleset


UNCONFINED = Confinement()


def version() -> int:
    """Return the version of Landlock's interface (ABI); 0: this kernel has none, or the container forbids it."""
    try:
        return _call(CREATE_RULESET, None, 0, _VERSION)
    except OSError:
        return 0


def beside(closed: Iterable[Path], directory: str = "/") -> Iterator[str]:
    """
    Yield paths below *directory* that together contain everything but *closed*.

    A directory that contains a closed one is not yielded; its entries are, by the same rule. Symbolic links are left
    out, because Landlock judges their targets.

    Raises:
        OSError: A directory that contains a closed one cannot be listed.
    """
    barred = {os.fspath(path) for path in closed}
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.path in barred or entry.is_symlink():
                continue
            if any(path.startswith(f"{entry.path}/") for path in barred):
                yield from beside(closed, entry.path)
            else:
                yield entry.path


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return  # gone, or closed to us too
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            access &= _READ | _WRITE_FILE | _TRUNCATE
        rule = struct.pack("=Qi", access, place)
        _call(ADD_RULE, ruleset, _PATH_BENEATH, ctypes.c_char_p(rule), 0)
    finally:
        os.close(place)


def _call(number: int, *arguments: int | ctypes.c_char_p | None) -> int:
    longs = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *longs))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
