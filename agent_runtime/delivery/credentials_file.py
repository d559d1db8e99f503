"""
The CLI's own ``.credentials.json`` in its config directory, as far as this supervisor wrote it.

A file that somebody else wrote is never touched. What is ours is told by the fingerprints of the tokens we wrote, kept
in a marker file beside it: so a supervisor that was killed knows its own leftover again, also in a new container that
has only the config directory in common with the old one. The marker is written before the file, so that there is no
moment at which our file is not known as ours.

A running CLI may write the file too: it keeps what MCP servers gave it under keys of its own. Those keys stay.

Source: Claude Code 2.1.30, 2.1.114 and 2.1.330; up to 2.0.76 a running CLI does not read the file again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pwd
import secrets
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent_runtime.errors import SpawnFailed
from agent_runtime.model.tokens import Token

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_NAME = ".credentials.json"
MARKER_NAME = ".agent-runtime-delivered.json"
LOGIN_KEY = "claudeAiOauth"

LIMIT_BYTES = 1024 * 1024
"""A longer file is none of ours, whatever it holds."""

MODE = 0o600
FINGERPRINTS_KEPT = 64
MTIME_STEP_NS = 1_000_000

NOT_OURS = "the config directory holds a login that this supervisor did not write"
"""Said to callers, so without the words that a backend reads as a reason to switch the token."""


class DeliveryImpossible(SpawnFailed):
    """The token cannot be handed over in the CLI's file; the message names the cause."""


class _Login(msgspec.Struct):
    access_token: str = msgspec.field(name="accessToken")


class _Marker(msgspec.Struct):
    """
    What tells that a file is ours.

    Attributes:
        tokens: Fingerprints of tokens we wrote, the latest last.
        rest: SHA-256 of a content that we left behind without a token, because others had written into our file.
    """

    tokens: list[str] = []
    rest: str | None = None


class _Found(msgspec.Struct, frozen=True):
    """
    What the file holds.

    Attributes:
        fingerprint: Of the token in it.
        others: The keys that are not the login's.
    """

    ours: bool = True
    fingerprint: str | None = None
    others: dict[str, msgspec.Raw] = msgspec.field(default_factory=dict)


class CredentialsFile:
    """
    Write, replace and take away the file; a reader always finds a whole one or none.

    Not for several threads at once: the caller sees to that.

    Args:
        user: Name or number of the user the children run as; None: as we do.
    """

    def __init__(self, config_dir: Path, user: str | None = None) -> None:
        self._config_dir = self._held_dir = config_dir.absolute()
        self._owner = owner_of(user)
        self._marker = self._read_marker()
        self._mtime_ns = 0

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._held_dir / FILE_NAME

    @property
    def _marker_path(self) -> Path:
        return self._held_dir / MARKER_NAME

    @contextlib.contextmanager
    def _hold(self) -> Iterator[None]:
        """
        Keep the directory open while it is worked in, so that a child cannot put another in its place.

        Raises:
            OSError: It cannot be opened; or the children's user may not write to it, but could have put it in place of
                the one meant, by a link: a file that we give away there would be more than that user had.
        """
        descriptor = os.open(self._config_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if self._owner is not None and not _may_write(os.fstat(descriptor), *self._owner):
                above = (*self._config_dir.parents, *Path(f"/proc/self/fd/{descriptor}").readlink().parents)
                if any(_may_write(one.lstat(), *self._owner) for one in above):
                    raise PermissionError(errno.EPERM, "it is not the children's, who may have put it there")
            self._held_dir = Path(f"/proc/self/fd/{descriptor}")
            yield
        finally:
            self._held_dir = self._config_dir
            os.close(descriptor)

    @property
    def obstacle(self) -> str | None:
        """Why the file cannot be written, as far as can be told without writing; None: it can."""
        try:
            with self._hold():
                found = self._look()
        except OSError as error:
            return f"the config directory cannot be read: {error.strerror}"
        if not found.ours:
            return NOT_OURS
        if not os.access(self._config_dir, os.W_OK | os.X_OK):
            return "the config directory cannot be written"
        return None

    def write(self, token: Token) -> bool:
        """
        Put *token* into the file and tell whether that changed anything.

        Raises:
            DeliveryImpossible: Somebody else's file is there, or the operating system refuses.
        """
        try:
            with self._hold():
                is_new = not os.path.lexists(self.path)
                found = self._look()
                if not found.ours:
                    raise DeliveryImpossible(NOT_OURS)
                if found.fingerprint == token.fingerprint:
                    return False
                self._remember(token.fingerprint)
                self._replace(msgspec.json.encode({**found.others, LOGIN_KEY: login(token)}), is_new=is_new)
        except FileExistsError:
            raise DeliveryImpossible(NOT_OURS) from None
        except OSError as error:
            raise DeliveryImpossible(f"the config directory cannot be written: {error.strerror}") from None
        return True

    def take_away(self) -> bool:
        """
        Take our token away and tell whether it was there; what others wrote stays.

        Raises:
            OSError: It is still there.
        """
        with contextlib.suppress(FileNotFoundError), self._hold():
            return self._taken_away()
        return False

    def _taken_away(self) -> bool:
        found = self._look()
        if not found.ours or found.fingerprint is None:
            if found.ours and not found.others:
                self._forget()
            return False
        if found.others:
            rest = msgspec.json.encode(found.others)
            self._marker.rest = hashlib.sha256(rest).hexdigest()
            self._save_marker()
            self._replace(rest, is_new=False)
        else:
            self.path.unlink(missing_ok=True)
            self._forget()
        return True

    def _look(self) -> _Found:
        raw = _read(self.path)
        if not raw:
            return _Found(ours=raw is not None)
        try:
            keys = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
            kept = keys.pop(LOGIN_KEY, None)
            fingerprint = None
            if kept is not None:
                fingerprint = Token(msgspec.json.decode(kept, type=_Login).access_token).fingerprint
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _Found(ours=False)
        if fingerprint is None:
            return _Found(ours=hashlib.sha256(raw).hexdigest() == self._marker.rest, others=keys)
        return _Found(ours=fingerprint in self._marker.tokens, fingerprint=fingerprint, others=keys)

    def _replace(self, raw: bytes, *, is_new: bool) -> None:
        """
        Put *raw* in place of the file.

        Raises:
            FileExistsError: There is a file that was not there when we looked.
        """
        temporary = self.path.with_name(f"{FILE_NAME}.{secrets.token_hex(4)}.tmp")
        try:
            self._write_new(temporary, raw, self._owner)
            # Only what we have looked at is replaced: a link, unlike a rename, does not overwrite.
            if not (is_new and _linked(temporary, self.path)):
                temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _write_new(self, path: Path, raw: bytes, owner: tuple[int, int] | None) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            if owner is not None:
                os.fchown(descriptor, *owner)
            mtime_ns = self._next_mtime_ns()
            os.utime(descriptor, ns=(mtime_ns, mtime_ns))

    def _next_mtime_ns(self) -> int:
        """
        Return a time that no earlier content of the file had.

        A running CLI reads the file again where its time of change is another one; the kernel's own clock for that
        stands still for some milliseconds.

        Source: Claude Code 2.1.330, ``lastCredentialsMtimeMs``; 4 ms on Linux 6.18.
        """
        with contextlib.suppress(OSError):
            self._mtime_ns = max(self._mtime_ns, self.path.stat().st_mtime_ns)
        self._mtime_ns = max(time.time_ns(), self._mtime_ns + MTIME_STEP_NS)
        return self._mtime_ns

    # -- the marker

    def _remember(self, fingerprint: str) -> None:
        if self._marker.tokens[-1:] == [fingerprint] and os.path.lexists(self._marker_path):
            return
        kept = [known for known in self._marker.tokens if known != fingerprint]
        self._marker.tokens = [*kept[1 - FINGERPRINTS_KEPT :], fingerprint]
        self._save_marker()

    def _forget(self) -> None:
        self._marker = _Marker()
        self._marker_path.unlink(missing_ok=True)

    def _save_marker(self) -> None:
        temporary = self._marker_path.with_name(f"{MARKER_NAME}.{secrets.token_hex(4)}.tmp")
        try:
            self._write_new(temporary, msgspec.json.encode(self._marker), None)
            temporary.replace(self._marker_path)
        finally:
            temporary.unlink(missing_ok=True)

    def _read_marker(self) -> _Marker:
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError), self._hold():
            return msgspec.json.decode(_read(self._marker_path) or b"", type=_Marker)
        return _Marker()


def login(token: Token) -> dict[str, object]:
    """
    Build what the CLI takes for a login; without ``scopes`` it says "Not logged in".

    Source: measured on 2.1.30, 2.1.114 and 2.1.330.
    """
    return {
        "accessToken": token.secret,
        "refreshToken": None,
        "expiresAt": None,
        "scopes": ["user:inference"],
        "subscriptionType": None,
    }


def _read(path: Path) -> bytes | None:
    """Return what a file holds, nothing where there is none; None: it is nothing that we can have written."""
    try:
        # O_NONBLOCK: opening a FIFO would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link, a socket
            return None
        raise
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        raw = file.read(LIMIT_BYTES + 1)
    return raw if len(raw) <= LIMIT_BYTES else None


def _linked(temporary: Path, path: Path) -> bool:
    """Give the file its second name, if the file system has such; FileExistsError if the name is taken."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _may_write(directory: os.stat_result, uid: int, gid: int) -> bool:
    """Tell whether a user may replace what is in a directory, or may allow itself to."""
    if directory.st_uid == uid:
        return True
    if directory.st_mode & stat.S_ISVTX:
        return False
    try:
        groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        groups = [gid]
    return bool(directory.st_mode & (stat.S_IWGRP if directory.st_gid in groups else stat.S_IWOTH))


def owner_of(user: str | None) -> tuple[int, int] | None:
    """Tell whom the file must belong to; None: to us."""
    if user is None:
        return None
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        # A number needs no name; an unknown name is told when the child is spawned.
        uid, gid = (int(user), int(user)) if user.isdecimal() else (os.geteuid(), os.getegid())
    else:
        uid, gid = entry.pw_uid, entry.pw_gid
    return None if uid == os.geteuid() else (uid, gid)
