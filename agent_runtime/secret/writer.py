"""
The writing side of the secret file: ``token put``, ``token show``, and tokens by HTTP or from the environment.

A file is replaced by rename, so that a reader finds the old token or the new one, never a part of either. Mode, group
and owner stay the same, because the reader is often another user with access by the group. Only its owner may read a
new file; in a directory with the setgid bit, the directory's group may read it, too.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path

from agent_runtime.errors import NotWritable, SecretUnreadable
from agent_runtime.files import remove_unfinished, replace_file
from agent_runtime.model.tokens import API_KEY_PREFIX, API_KEY_VARIABLE, OAUTH_PREFIX, OAUTH_VARIABLE, Token
from agent_runtime.secret.content import LIMIT_BYTES, SecretContent, Unusable, parse, text_of
from agent_runtime.secret.mount import SourceKind, source_of
from agent_runtime.secret.reader import read_secret

NEW_FILE_MODE = 0o600
SHARED_FILE_MODE = 0o640
"""The mode of a new file for which a group was named, or whose directory has the setgid bit."""

_UNFINISHED_SECONDS = 3600.0
"""Age from which a file without its name is certainly not being written by another process."""

log = logging.getLogger(__name__)


def put(
    path: Path,
    data: bytes,
    *,
    mode: int | None = None,
    group: int | None = None,
    strict: bool = False,
    force: bool = False,
) -> list[str]:
    """
    Write a token, or a JSON object that holds one, atomically.

    A symbolic link is followed: its target is replaced, not the link. A file that is itself a mount cannot be replaced;
    it is overwritten in one write.

    Args:
        mode: The file's permissions; an existing file's by default.
        group: The id of the group the file belongs to; an existing file's by default.
        strict: Refuse a token whose prefix is not known.
        force: Write any *data* that is neither empty nor too long.

    Returns:
        Warnings about a token that was written.

    Raises:
        SecretUnreadable: A reader would not accept *data*; nothing was written.
        NotWritable: The operating system refuses, or the file's readers could not read the new file.
    """
    content, text = parse(data), text_of(data)
    if isinstance(content, Unusable):
        if not (force and text):
            raise SecretUnreadable(f"the input {content.reason}; give one token on a line, or JSON that holds it")
        warnings = [f"the input {content.reason}: supervisors keep the token that they have"]
    elif strict and not force and not content.token.secret.startswith((OAUTH_PREFIX, API_KEY_PREFIX)):
        # The prefixes are written so that redaction does not take them for tokens.
        raise SecretUnreadable(
            "the input does not begin as a token of Anthropic does (sk-ant, then -oat or -api); "
            "force (--force) writes it"
        )
    else:
        warnings = list(content.warnings)
        if content.expires_at is not None and content.expires_at <= time.time():
            warnings.append("the token has already expired")
        text = text if text.startswith("{") else content.token.secret
    # The newline makes a bare token complete by itself: readers take it at once.
    raw = text.encode() + b"\n"
    if len(raw) > LIMIT_BYTES:
        raise SecretUnreadable("the input is longer than 64 KiB; give one token on a line, or JSON that holds it")
    try:
        target = path.resolve(strict=False)
        source = source_of(target)
        if source is SourceKind.DETACHED:
            raise NotWritable(
                "the secret file was replaced outside this container, and what is written here is seen nowhere: "
                "mount its directory"
            )
        if source is SourceKind.FILE_MOUNT:
            _overwrite(target, raw)
            if (mode, group) != (None, None):
                warnings.append("mode and group of the file were left as they are")
            warnings.append(
                "the file is mounted by itself, so it was overwritten in place: mount its directory instead"
            )
        else:
            finish = functools.partial(_give_access, target, mode=mode, group=group, warnings=warnings)
            remove_unfinished(target.parent, older_than_seconds=_UNFINISHED_SECONDS)
            replace_file(target, raw, durable=True, finish=finish)
    except (OSError, RuntimeError) as problem:  # RuntimeError: resolve() met a loop of links, up to Python 3.12.
        cause = os.strerror(problem.errno) if isinstance(problem, OSError) and problem.errno else "a loop of links"
        raise NotWritable(f"the secret file cannot be written: {cause}; {_remedy(path, problem)}") from None
    return warnings


def put_if_different(path: Path, token: Token) -> None:
    """
    Write a token as :func:`put` does, unless the file holds it already, in any form.

    Raises:
        NotWritable: The file holds another token, and cannot be written.
    """
    found = read_secret(path).found
    if not isinstance(found, SecretContent) or found.token != token:
        put(path, token.secret.encode())


def put_from_environment(path: Path, environ: Mapping[str, str]) -> None:
    """
    Write the environment's token if there is no secret file, and log the result; never raises.

    An existing file stays as it is, whatever it holds, also one that is created at the same moment.
    """
    name = next((name for name in (OAUTH_VARIABLE, API_KEY_VARIABLE) if environ.get(name)), None)
    if name is None or os.path.lexists(path):
        return
    content = parse(environ[name].encode(errors="replace"))
    if isinstance(content, Unusable):
        log.warning("%s is not written to %s: its value %s", name, path, content.reason)
        return
    try:
        finish = functools.partial(_give_access, path, warnings=[])
        replace_file(path, content.token.secret.encode() + b"\n", durable=True, is_new=True, finish=finish)
    except FileExistsError:
        return
    except OSError as problem:
        log.warning("%s cannot be written to %s: %s; %s", name, path, problem.strerror, _remedy(path, problem))
        return
    log.info("%s was written to %s: %s %s", name, path, content.token.kind, content.token.fingerprint)


def describe(path: Path) -> dict[str, str | float | None]:
    """
    Describe the secret file without its secret.

    Returns:
        ``kind``, ``fingerprint``, ``age_seconds`` (since it was written), ``expires_at`` (epoch seconds),
        ``subscription``, ``source`` and ``error``, each None where it does not apply. ``warning`` only where the
        content was unusual and could be corrected.
    """
    path = path.absolute()
    reading = read_secret(path)
    found = reading.found
    content = found if isinstance(found, SecretContent) else None
    return {
        "kind": content.token.kind if content else None,
        "fingerprint": content.token.fingerprint if content else None,
        "age_seconds": None if reading.modified_at is None else round(time.time() - reading.modified_at, 1),
        "expires_at": content.expires_at if content else None,
        "subscription": content.subscription if content else None,
        "source": source_of(path),
        "error": found.sentence if isinstance(found, Unusable) else None,
        **({"warning": "; ".join(content.warnings)} if content and content.warnings else {}),
    }


def _remedy(path: Path, problem: Exception) -> str:
    code = problem.errno if isinstance(problem, OSError) else None
    if code in (errno.ENOENT, errno.ENOTDIR):
        return "make its directory first, or name another file"
    if code == errno.EROFS:
        return "write it where the directory is mounted from"
    if code == errno.EPERM and path.resolve().parent.stat().st_mode & stat.S_ISVTX:
        return "its directory is sticky: write it as root, as the owner of the file, or into another directory"
    if code in (errno.EPERM, errno.EACCES):
        return "write it as root, as a user who may write into its directory, or where that is mounted from"
    return "name a file" if code == errno.EISDIR else "make that possible, or name another file"


def _give_access(
    target: Path, descriptor: int, *, warnings: list[str], mode: int | None = None, group: int | None = None
) -> None:
    """
    Give the new file behind *descriptor* the owner, group and mode of *target*, unless others are named.

    Args:
        warnings: Sentences on who can read the file now are appended to it.

    Raises:
        NotWritable: This user may not give the file that group, or that owner if only the owner may read it.
    """
    new = os.fstat(descriptor)
    try:
        old = target.stat()
    except FileNotFoundError:
        old = None
    if old is None or not stat.S_ISREG(old.st_mode):
        # In a directory with the setgid bit the kernel has given the new file that group.
        is_shared = group is not None or target.parent.stat().st_mode & stat.S_ISGID
        old, kept_mode = new, SHARED_FILE_MODE if is_shared else NEW_FILE_MODE
    else:
        kept_mode = stat.S_IMODE(old.st_mode) & 0o777
    mode = kept_mode if mode is None else mode
    wanted_group = old.st_gid if group is None else group
    if wanted_group != new.st_gid and not _chown(descriptor, group=wanted_group):
        if group is not None:
            raise NotWritable(
                f"the secret file cannot be given to group {group}; write it as root or as a member of that group"
            )
        if mode & stat.S_IRGRP:
            raise NotWritable(
                f"the secret file would lose its group {wanted_group}, which may read it; write it as root or as a "
                "member of that group, or name another group"
            )
    if old.st_uid != new.st_uid and not _chown(descriptor, owner=old.st_uid):
        if old.st_uid != 0 and not mode & (stat.S_IRGRP | stat.S_IROTH):
            raise NotWritable(
                f"the secret file would lose its owner {old.st_uid}, which alone may read it; write it as root or as "
                "that user, or name a group and a mode that lets the group read"
            )
        warnings.append("the file's owner could not be kept: see that its reader may still read it")
    os.fchmod(descriptor, mode)
    if group is not None and not mode & stat.S_IRGRP:
        warnings.append("the file's mode does not let its group read it")
    if mode & stat.S_IROTH:
        warnings.append("every user of this machine may read the file")


def _chown(descriptor: int, owner: int = -1, group: int = -1) -> bool:
    try:
        os.fchown(descriptor, owner, group)
    except PermissionError:
        return False
    return True


def _overwrite(target: Path, raw: bytes) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
    try:
        # Not truncated first, so that a reader never finds it empty. Between the two calls the file holds at worst the
        # new line and the rest of the old one: several lines, which is no token.
        written = os.write(descriptor, raw)
        os.ftruncate(descriptor, written)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if written != len(raw):
        raise NotWritable("the secret file cannot be written: no space left")
