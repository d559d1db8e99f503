"""One reading of the secret file: its content now, and a mark that shows whether it has changed."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import msgspec

from agent_runtime.model.tokens import Token
from agent_runtime.secret.content import LIMIT_BYTES, SecretContent, SecretFault, Unusable, parse, secrets_in

SWAPPED_LINK = "..data"
"""
The symbolic link that the kubelet replaces by rename once every file behind it is whole.

Source: ``AtomicWriter`` in Kubernetes ``pkg/volume/util/atomic_writer.go``.
"""


class Reading(msgspec.Struct, frozen=True):
    """
    The result of one reading.

    Attributes:
        mark: Equal for two readings only if the file was neither written nor replaced in between; holds a digest, never
            the content.
        modified_at: Epoch seconds; None where there is no file.
        changed_at: When the inode changed last (ctime), epoch seconds: a rename counts, and no writer can set it.
        secrets: Possible secrets in the content, usable or not, that no output must show.
    """

    found: SecretContent | Unusable
    mark: tuple[object, ...]
    modified_at: float | None = None
    changed_at: float | None = None
    secrets: tuple[Token, ...] = ()


def read_secret(path: Path, known: Reading | None = None) -> Reading:
    """
    Read the secret file once, without blocking: neither a FIFO nor a device is opened.

    Every error of the file system becomes an :class:`~agent_runtime.secret.content.Unusable`.

    Args:
        known: An earlier reading; it is returned if the file has not changed since.
    """
    try:
        if (fault := _fault_of_type(path.stat().st_mode)) is None:
            # O_NONBLOCK: the file may become a FIFO between the two calls, and opening one would wait for its writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                info = os.fstat(descriptor)
                fault = _fault_of_type(info.st_mode)
                raw = file.read(LIMIT_BYTES + 1) if fault is None else b""
        if fault is not None:
            return Reading(Unusable(fault, SecretFault.NO_FILE), (fault,))
    except (FileNotFoundError, NotADirectoryError):
        return Reading(Unusable("is missing", SecretFault.MISSING), ("missing",))
    except OSError as problem:
        reason = f"cannot be read: {os.strerror(problem.errno or 0)}"
        return Reading(Unusable(reason, SecretFault.UNREADABLE), (reason,))
    # A file that lost a name may have been replaced where this cannot be seen: see agent_runtime.secret.mount.
    mark = (info.st_dev, info.st_ino, info.st_nlink, info.st_size, info.st_mtime_ns, hashlib.sha256(raw).digest())
    if known is not None and known.mark == mark:
        return known
    found = parse(raw)
    return Reading(found, mark, info.st_mtime, info.st_ctime, secrets_in(raw, found))


def came_by_rename(path: Path) -> bool:
    """
    Whether the file is known to have come by one rename, so that its content is never half written.

    A rename of the file itself cannot be told from an in-place write with ``cp -p`` or ``chmod``. The kubelet's layout
    can be recognised: there the path leads through a symbolic link that is replaced as a whole.
    """
    try:
        if path.readlink().parts[:1] == (SWAPPED_LINK,):
            return True
    except OSError:
        pass  # the file is no link; one of the directories above it may be
    return any(part.startswith("..") and part != ".." for part in (*path.parts, *Path(os.path.realpath(path)).parts))


def _fault_of_type(mode: int) -> str | None:
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        return "is a directory"
    if stat.S_ISFIFO(mode):
        return "is a FIFO"
    return "is not a regular file"
