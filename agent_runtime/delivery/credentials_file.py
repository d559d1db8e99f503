"""
The CLI's own ``.credentials.json`` in its config directory, as far as this supervisor wrote it.

A file that anybody else wrote is never touched. A marker file beside it holds the fingerprints of the tokens that we
wrote. By the marker a new supervisor recognises the file that a killed one has left, even in a new container that
shares only the config directory. The marker is written first, so our file is recognisable at any moment.

A running CLI may write the file too: it stores the logins of MCP servers under other keys. Those keys stay.

Source: Claude Code 2.1.30, 2.1.114 and 2.1.330; up to 2.0.76 a running CLI does not read the file again.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent_runtime.delivery.private_files import make_directory, owner_of
from agent_runtime.errors import SpawnFailed
from agent_runtime.files import read_file, replace_file
from agent_runtime.model.tokens import Token
from agent_runtime.process.users import look_up

log = logging.getLogger(__name__)

FILE_NAME = ".credentials.json"
MARKER_NAME = ".agent-runtime-delivered.json"
LOGIN_KEY = "claudeAiOauth"

LIMIT_BYTES = 1024 * 1024
"""A longer file is not ours, whatever its content."""

MOST_FINGERPRINTS = 64
MTIME_STEP_NS = 1_000_000

NOT_OURS = "the config directory holds a login that this supervisor did not write"
"""Callers see this text, so it has none of the words at which a backend switches the token."""


class DeliveryImpossible(SpawnFailed):
    """The token cannot be delivered by the CLI's file; the message names the cause."""


class _Login(msgspec.Struct):
    access_token: str = msgspec.field(name="accessToken")


class _Marker(msgspec.Struct):
    """
    The marker file.

    Attributes:
        tokens: Fingerprints of the tokens that we wrote, the latest last.
        rest: SHA-256 of the content that we left without a token, because others had written into our file.
    """

    tokens: list[str] = []
    rest: str | None = None


class _Content(msgspec.Struct, frozen=True):
    """
    The content of the credentials file.

    Attributes:
        ours: This supervisor or an earlier one wrote the file, or there is no file.
        fingerprint: That of the token in the file; None: there is no token.
        others: The keys besides the login's, undecoded.
    """

    ours: bool = True
    fingerprint: str | None = None
    others: dict[str, msgspec.Raw] = msgspec.field(default_factory=dict)


class CredentialsFile:
    """
    Write, replace and remove the credentials file; a reader always finds a whole file or none.

    Not thread-safe: the caller holds a lock.

    Args:
        user: Name or number of the user the children run as; None: the supervisor's own user.
    """

    def __init__(self, config_dir: Path, user: str | None = None) -> None:
        self._config_dir = self._open_dir = config_dir.absolute()
        self._owner = owner_of(user)
        self._marker = self._read_marker()
        self._mtime_ns = 0

    @property
    def path(self) -> Path:
        """The file's path; inside :meth:`_opened` it is below the open descriptor of the directory."""
        return self._open_dir / FILE_NAME

    @property
    def _marker_path(self) -> Path:
        return self._open_dir / MARKER_NAME

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        """
        Hold the directory open while working in it, so that a child cannot replace it.

        Raises:
            OSError: The directory cannot be opened. Or the children's user may not write to it, but may write to a
                directory above it, and so may have put a link to a foreign directory in its place. A file that we
                write there and give away would give that user more access than it has.
        """
        descriptor = os.open(self._config_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found, owner = os.fstat(descriptor), self._owner
            user = None if owner is None or owner[0] == found.st_uid else look_up(str(owner[0]))
            if user is not None and not user.may_replace_in(found):
                above = (*self._config_dir.parents, *Path(f"/proc/self/fd/{descriptor}").readlink().parents)
                if any(user.may_replace_in(one.lstat()) for one in above):
                    raise PermissionError(errno.EPERM, "it is not the children's, who may have put it there")
            self._open_dir = Path(f"/proc/self/fd/{descriptor}")
            yield
        finally:
            self._open_dir = self._config_dir
            os.close(descriptor)

    def restore_directory(self) -> None:
        """Make the config directory again if it is gone, and give it to the children's user."""
        directory = self._config_dir
        if os.path.lexists(directory):
            return
        try:
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_directory(directory.parent, directory.name, self._owner)
        except OSError as error:
            log.error("the config directory %s is gone and cannot be made again: %s", directory, error.strerror)
        else:
            log.error("the config directory %s was gone, with its sessions, and was made again", directory)

    @property
    def obstacle(self) -> str | None:
        """Why the file cannot be written, as far as that is known without writing; None: it can."""
        try:
            with self._opened():
                content = self._read_content()
        except OSError as error:
            return f"the config directory cannot be read: {error.strerror}"
        if not content.ours:
            return NOT_OURS
        if not os.access(self._config_dir, os.W_OK | os.X_OK):
            return "the config directory cannot be written"
        return None

    def write(self, token: Token) -> None:
        """
        Put *token* into the file, unless it is there.

        Raises:
            DeliveryImpossible: Somebody else wrote the file, or the operating system refuses.
        """
        try:
            with self._opened():
                is_new = not os.path.lexists(self.path)
                content = self._read_content()
                if not content.ours:
                    raise DeliveryImpossible(NOT_OURS)
                if content.fingerprint != token.fingerprint:
                    self._add_to_marker(token.fingerprint)
                    self._replace(msgspec.json.encode({**content.others, LOGIN_KEY: login(token)}), is_new=is_new)
        except FileExistsError:
            raise DeliveryImpossible(NOT_OURS) from None
        except OSError as error:
            raise DeliveryImpossible(f"the config directory cannot be written: {error.strerror}") from None

    def remove_token(self) -> None:
        """
        Remove our token, if it is there. Keys of others stay.

        Raises:
            OSError: The token is still there.
        """
        with contextlib.suppress(FileNotFoundError), self._opened():
            content = self._read_content()
            if content.ours and not content.others:
                if content.fingerprint is not None:
                    self.path.unlink(missing_ok=True)
                self._marker = _Marker()
                self._marker_path.unlink(missing_ok=True)
            elif content.ours and content.fingerprint is not None:
                rest = msgspec.json.encode(content.others)
                self._marker.rest = hashlib.sha256(rest).hexdigest()
                self._write_marker()
                self._replace(rest, is_new=False)

    def _read_content(self) -> _Content:
        raw = _read(self.path)
        if not raw:
            return _Content(ours=raw is not None)
        try:
            keys = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
            stored = keys.pop(LOGIN_KEY, None)
            if stored is None:
                return _Content(ours=hashlib.sha256(raw).hexdigest() == self._marker.rest, others=keys)
            fingerprint = Token(msgspec.json.decode(stored, type=_Login).access_token).fingerprint
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _Content(ours=False)
        return _Content(ours=fingerprint in self._marker.tokens, fingerprint=fingerprint, others=keys)

    def _replace(self, raw: bytes, *, is_new: bool) -> None:
        """
        Put *raw* in place of the file, with a modification time that no earlier content of it had.

        A running CLI reads the file again if its modification time has changed. The kernel's own times for two writes
        within some milliseconds are the same.

        Source: Claude Code 2.1.330, ``lastCredentialsMtimeMs``; 4 ms on Linux 6.18.

        Raises:
            FileExistsError: The file has appeared since it was read.
        """
        with contextlib.suppress(OSError):
            self._mtime_ns = max(self._mtime_ns, self.path.stat().st_mtime_ns)
        self._mtime_ns = max(time.time_ns(), self._mtime_ns + MTIME_STEP_NS)
        finish = functools.partial(os.utime, ns=(self._mtime_ns, self._mtime_ns))
        replace_file(self.path, raw, owner=self._owner, is_new=is_new, finish=finish)

    # -- the marker

    def _add_to_marker(self, fingerprint: str) -> None:
        if self._marker.tokens[-1:] == [fingerprint] and os.path.lexists(self._marker_path):
            return
        others = [known for known in self._marker.tokens if known != fingerprint]
        self._marker.tokens = [*others[1 - MOST_FINGERPRINTS :], fingerprint]
        self._write_marker()

    def _write_marker(self) -> None:
        replace_file(self._marker_path, msgspec.json.encode(self._marker))

    def _read_marker(self) -> _Marker:
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError), self._opened():
            return msgspec.json.decode(_read(self._marker_path) or b"", type=_Marker)
        return _Marker()


def login(token: Token) -> dict[str, object]:
    """
    Build the login with *token* as the CLI stores it; without ``scopes`` the CLI reports "Not logged in".

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
    """Return the content of a file, empty if it is missing; None: it is not a file as we write it."""
    try:
        return read_file(path, limit_bytes=LIMIT_BYTES, follow=False)
    except FileNotFoundError:
        return b""
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EINVAL, errno.EFBIG):  # a link, a socket, a FIFO, too long
            return None
        raise
