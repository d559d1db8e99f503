"""The directories that executions work in: opened below the workspace, made, and deleted where that is asked for."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import time
from typing import TYPE_CHECKING

from agent_runtime.errors import InvalidRequest, SpawnFailed
from agent_runtime.process.directories import open_below, path_of
from agent_runtime.process.users import other_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_runtime.model.task import Task
    from agent_runtime.settings import Settings

log = logging.getLogger(__name__)

OWN = "executions"
"""Where the directories are that executions have of their own."""

PER_EXECUTION = "per_execution"

_RETIRED = ".retired"
"""Where in it those are that are being deleted; no id begins with a dot."""

_DELETE_SECONDS = 0.2
_REAL = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_REASONS = {
    errno.ENOENT: "there is no such directory below the workspace",
    errno.ENOTDIR: "a part of it is no directory",
    errno.EXDEV: "a link on the way leads out of the workspace",
    errno.ELOOP: "there are too many links on the way",
    errno.EACCES: "it is not permitted to enter it, or to make it",
    errno.EPERM: "it is not permitted to enter it, or to make it",
    errno.ENAMETOOLONG: "it is too long or too deep",
}


class Workspaces:
    """
    Open and make the directories that executions run in; every method may be called from any thread.

    Attributes:
        has_retired: There may be something for :meth:`delete_some`.
    """

    def __init__(self, settings: Settings) -> None:
        self._top = settings.workspace
        self._has_own = settings.workspaces == PER_EXECUTION
        self._child_user = settings.child_user
        self.has_retired = not settings.retain_workspaces
        self._stuck: set[str] = set()

    def own(self, execution_id: str) -> str | None:
        """Return the directory of an execution that names none; None: the workspace itself."""
        return f"{OWN}/{execution_id}" if self._has_own else None

    def obstacle(self, task: Task) -> InvalidRequest | None:
        """Return why a directory that a task names cannot be used now; None: it can, or can perhaps be made."""
        for field, path in (("cwd", task.cwd), *(("add_dirs", path) for path in task.add_dirs or ())):
            try:
                if path is not None:
                    os.close(self._opened(path))
            except OSError as error:
                may_be_made = field == "cwd" and task.create_cwd and error.errno == errno.ENOENT
                if not may_be_made and error.errno not in _SHORTAGES:
                    return _refusal(field, error)
        return None

    def open(self, task: Task, execution_id: str, cwd: str | None) -> int:
        """
        Open the directory that an attempt runs in; return a descriptor for the caller to close.

        Args:
            cwd: As in the record; None: the workspace itself.

        Raises:
            InvalidRequest: What the task asks for is not there, or leads out of the workspace.
            SpawnFailed: The fault is not the task's.
        """
        is_own = cwd == f"{OWN}/{execution_id}"
        try:
            # No agent has the own directory of a later execution lead to one of its choice.
            return self._opened(cwd or ".", follow=not is_own, make=is_own or bool(task.create_cwd and task.cwd))
        except OSError as error:
            if cwd is not None and not is_own and error.errno not in _SHORTAGES:
                raise _refusal("cwd" if task.cwd else "resume_session_id", error) from None
            raise SpawnFailed(f"cannot start the CLI: its directory cannot be opened: {error.strerror}") from None

    def added(self, task: Task) -> list[str]:
        """
        Return the real paths of the further directories of a task, which the CLI opens itself.

        Raises:
            InvalidRequest: One is not there, or leads out of the workspace.
        """
        paths = []
        for path in task.add_dirs or ():
            try:
                descriptor = self._opened(path)
            except OSError as error:
                raise _refusal("add_dirs", error) from None
            paths.append(path_of(descriptor))
            os.close(descriptor)
        return paths

    def retire(self, execution_id: str) -> None:
        """Take an execution's own directory out of the way, at once and whole; :meth:`delete_some` deletes it."""
        try:
            with self._retired(make=True) as (own, retired):
                os.close(_writable(execution_id, own))
                os.rename(execution_id, secrets.token_hex(8), src_dir_fd=own, dst_dir_fd=retired)
                self.has_retired = True
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("cannot delete the directory: %s", error.strerror, extra={"execution_id": execution_id})

    def delete_some(self) -> None:
        """
        Delete retired directories for a moment.

        No link is followed, and nothing is recursive: a directory in a retired one is retired itself.
        """
        ends_at = time.monotonic() + _DELETE_SECONDS
        self.has_retired = False
        with contextlib.suppress(OSError), self._retired() as (_, retired):
            while names := set(os.listdir(retired)) - self._stuck:  # noqa: PTH208 - pathlib takes no descriptor
                for name in names:
                    try:
                        if not _delete(name, retired, ends_at):
                            self.has_retired = True
                            return
                    except OSError as error:
                        self._stuck.add(name)
                        log.warning("cannot delete %s/%s/%s: %s", OWN, _RETIRED, name, error.strerror)

    @contextlib.contextmanager
    def _retired(self, *, make: bool = False) -> Iterator[tuple[int, int]]:
        """Open where own directories are, and where the retired ones are; neither may be a link."""
        with contextlib.ExitStack() as held:
            own = os.open(self._top / OWN, os.O_RDONLY | _REAL)
            held.callback(os.close, own)
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(_RETIRED, 0o700, dir_fd=own)
            retired = os.open(_RETIRED, os.O_RDONLY | _REAL, dir_fd=own)
            held.callback(os.close, retired)
            yield own, retired

    def _opened(self, path: str, *, follow: bool = True, make: bool = False) -> int:
        owner = other_user(self._child_user)
        descriptor = open_below(self._top, path, follow=follow, make=make, owner=owner)
        if owner is None and not os.access(".", os.X_OK, dir_fd=descriptor):
            os.close(descriptor)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return descriptor


def not_entered(task: Task) -> InvalidRequest | None:
    """Return the refusal of a task whose directory the user of the children may not enter; None: it names none."""
    return None if task.cwd is None else _refusal("cwd", PermissionError(errno.EACCES, ""))


def _refusal(field: str, error: OSError) -> InvalidRequest:
    reason = _REASONS.get(error.errno or 0) or f"it cannot be opened or made: {error.strerror}"
    if field == "cwd" and error.errno == errno.ENOENT:
        reason += "; send create_cwd: true to have it made"
    return InvalidRequest(f"{field}: {reason}")


def _writable(name: str, place: int) -> int:
    """Open a directory that is no link, for its owner to change; return a descriptor for the caller to close."""
    found = os.open(name, os.O_PATH | _REAL, dir_fd=place)
    try:
        os.chmod(f"/proc/self/fd/{found}", 0o700)  # noqa: PTH101 - an agent may have taken the permissions away
        return os.open(".", os.O_RDONLY | _REAL, dir_fd=found)
    finally:
        os.close(found)


def _delete(name: str, retired: int, ends_at: float) -> bool:
    """Delete a retired file or directory; return False when the time is over before."""
    if time.monotonic() > ends_at:
        return False
    try:
        os.unlink(name, dir_fd=retired)
    except IsADirectoryError:
        pass
    else:
        return True
    directory = _writable(name, retired)
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if time.monotonic() > ends_at:
                    return False
                try:
                    os.unlink(entry.name, dir_fd=directory)
                except IsADirectoryError:
                    os.close(_writable(entry.name, directory))
                    os.rename(entry.name, secrets.token_hex(8), src_dir_fd=directory, dst_dir_fd=retired)
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=retired)
    return True
