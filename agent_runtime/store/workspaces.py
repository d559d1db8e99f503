"""The directories that executions work in: open or create them below the workspace, and delete executions' own."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent_runtime.errors import InvalidRequest, SpawnFailed
from agent_runtime.files import read_file, replace_file
from agent_runtime.model.task import Task
from agent_runtime.process.directories import open_below, path_of
from agent_runtime.process.users import other_user
from agent_runtime.settings import Settings

log = logging.getLogger(__name__)

OWN = "executions"
"""The directory in the workspace that holds the executions' own directories."""

PER_EXECUTION = "per_execution"

_RETIRED = ".retired"
"""The directory in ``OWN`` that holds directories being deleted; no execution id begins with a dot."""

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
    errno.EBUSY: f"what is in {OWN}/{_RETIRED} is being deleted",
}


class Workspaces:
    """
    Open, create and delete the directories that executions run in; every method may be called from any thread.

    An execution's own directory is deleted only if it was created for that execution and no task has ever named it or a
    directory below it. As long as that is so, a file in *marks*, the directory's mark, holds its inode number.

    Args:
        marks: A directory of ours that no agent can change; created if it is missing.

    Attributes:
        has_retired: Whether :meth:`delete_some` may have something to delete.
    """

    def __init__(self, settings: Settings, marks: Path) -> None:
        self._top = settings.workspace
        self._marks = marks
        self._marks_lock = threading.Lock()
        self._has_own = settings.workspaces == PER_EXECUTION
        self._child_user = settings.child_user
        self.has_retired = not settings.retain_workspaces
        self._stuck: set[str] = set()

    def own_directory(self, execution_id: str) -> str | None:
        """Return the directory of an execution whose task names none; None: the workspace itself."""
        return f"{OWN}/{execution_id}" if self._has_own else None

    def obstacle(self, task: Task) -> InvalidRequest | None:
        """Return why a directory that the task names cannot be used now; None if all can, or can perhaps be created."""
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
            cwd: The record's ``cwd``, relative to the workspace; None: the workspace itself.

        Raises:
            InvalidRequest: The directory that the task asks for is missing, or leads out of the workspace.
            SpawnFailed: The directory cannot be opened, and the task is not at fault.
        """
        is_named = task.cwd is not None
        is_own = not is_named and cwd == f"{OWN}/{execution_id}"
        try:
            if is_own:
                return self._opened_own(execution_id)
            return self._opened(cwd or ".", is_named=is_named, make=bool(is_named and task.create_cwd))
        except OSError as error:
            if cwd is not None and not is_own and error.errno not in _SHORTAGES:
                raise _refusal("cwd" if task.cwd else "resume_session_id", error) from None
            raise SpawnFailed(f"cannot start the CLI: its directory cannot be opened: {error.strerror}") from None

    def added_directories(self, task: Task) -> list[str]:
        """
        Return the real paths of the task's ``add_dirs``, which the CLI opens itself.

        Raises:
            InvalidRequest: A directory is missing, or leads out of the workspace.
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
        """
        Move the directory that was created for an execution to the retired ones, by one rename.

        :meth:`delete_some` deletes it later. Does nothing if the directory has no mark; a disk error is only logged.
        """
        try:
            with self._marks_lock, self._retired(make=True) as (own, retired):
                mark = read_file(self._path(execution_id))
                self.unmark(execution_id)
                if mark != b"%d" % os.stat(execution_id, dir_fd=own, follow_symlinks=False).st_ino:
                    return
                os.close(_writable(execution_id, own))
                os.rename(execution_id, secrets.token_hex(8), src_dir_fd=own, dst_dir_fd=retired)
                self.has_retired = True
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("cannot delete the directory: %s", error.strerror, extra={"execution_id": execution_id})

    def unmark(self, execution_id: str) -> None:
        """
        Remove the mark of an execution's own directory, so that :meth:`retire` never has it deleted.

        Raises:
            OSError: The mark cannot be removed.
        """
        self._path(execution_id).unlink(missing_ok=True)

    def delete_some(self) -> None:
        """
        Delete retired directories, for ``_DELETE_SECONDS`` at most.

        No link is followed. There is no recursion: a directory inside a retired one is moved up beside it.
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
        """Yield descriptors of ``OWN`` and of the directory of retired ones in it; neither may be a link."""
        with contextlib.ExitStack() as held:
            own = os.open(self._top / OWN, os.O_RDONLY | _REAL)
            held.callback(os.close, own)
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(_RETIRED, 0o700, dir_fd=own)
            retired = os.open(_RETIRED, os.O_RDONLY | _REAL, dir_fd=own)
            held.callback(os.close, retired)
            yield own, retired

    def _opened(self, path: str, *, is_named: bool = True, **options: Any) -> int:
        if f"{path}/".startswith(f"{OWN}/{_RETIRED}/"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        owner = other_user(self._child_user)
        descriptor = open_below(self._top, path, owner=owner, **options)
        try:
            if owner is None and not os.access(".", os.X_OK, dir_fd=descriptor):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if is_named:
                self._unmark_around(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _unmark_around(self, named: int) -> None:
        """Remove the mark of the own directory, if any, that *named*, a descriptor of a directory, is or lies in."""
        with self._marks_lock:  # so that the directory is not retired between look-up and removal of its mark
            place, *below = Path(path_of(named)).parts[len(self._top.resolve().parts) :] or ("",)
            if place == OWN and below:
                if below[0] == _RETIRED:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                self.unmark(below[0])

    def _opened_own(self, execution_id: str) -> int:
        made: list[int] = []
        with self._marks_lock:
            # No link is followed: an agent may have put one in the place of a later execution's directory.
            opened = self._opened(f"{OWN}/{execution_id}", is_named=False, follow=False, make=True, made=made)
            if (inode := os.fstat(opened).st_ino) in made:
                try:
                    self._marks.mkdir(mode=0o700, exist_ok=True)
                    replace_file(self._path(execution_id), b"%d" % inode)
                except OSError as error:
                    extra = {"execution_id": execution_id}
                    log.warning("its directory will stay for ever: %s", error.strerror, extra=extra)
        return opened

    def _path(self, execution_id: str) -> Path:
        return self._marks / hashlib.sha256(os.fsencode(execution_id)).hexdigest()


def not_entered(task: Task) -> InvalidRequest | None:
    """Return the error for a task whose directory the children's user may not enter; None if the task names none."""
    return None if task.cwd is None else _refusal("cwd", PermissionError(errno.EACCES, ""))


def _refusal(field: str, error: OSError) -> InvalidRequest:
    reason = _REASONS.get(error.errno or 0) or f"it cannot be opened or made: {error.strerror}"
    if field == "cwd" and error.errno == errno.ENOENT:
        reason += "; send create_cwd: true to have it made"
    return InvalidRequest(f"{field}: {reason}")


def _writable(name: str, place: int) -> int:
    """Open a directory, never a link, and give its owner all permissions; the caller closes the descriptor."""
    found = os.open(name, os.O_PATH | _REAL, dir_fd=place)
    try:
        os.chmod(f"/proc/self/fd/{found}", 0o700)  # noqa: PTH101 - an agent may have taken the permissions away
        return os.open(".", os.O_RDONLY | _REAL, dir_fd=found)
    finally:
        os.close(found)


def _delete(name: str, retired: int, ends_at: float) -> bool:
    """Delete a retired file or directory; return False if *ends_at* (monotonic seconds) passes before it is gone."""
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
