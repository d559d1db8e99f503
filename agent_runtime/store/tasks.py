"""The tasks of unfinished executions, so that they can be resumed after a restart."""

from __future__ import annotations

import base64
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent_runtime.errors import InvalidRequest
from agent_runtime.files import UNFINISHED, read_file, replace_file
from agent_runtime.model.task import Task
from agent_runtime.model.task_reading import parse
from agent_runtime.telemetry.redaction import Redactor

log = logging.getLogger(__name__)

_LONGEST_IN_HEX = 123
"""The longest id, in bytes, whose hex form still fits in a file name (255 bytes) with its suffixes."""

_BASE32 = "x"
"""First character of a longer id's file name, which is in base32; it is no hex digit."""

PROMPT_LENGTH = 200
"""How many characters of a task's message the record shows."""


class NewTask(msgspec.Struct, frozen=True):
    """
    A task that is ready to be admitted.

    Attributes:
        ignored_fields: Names of the request's fields that nothing reads.
        content: The task as redacted JSON, stored until the execution has ended.
        prompt: The beginning of the message, redacted before it was cut.
        obstacle: Why no attempt can begin now. An answer that is stored already is returned even so.
    """

    task: Task
    ignored_fields: list[str]
    content: bytes
    prompt: str
    obstacle: InvalidRequest | None = None


class TaskStore:
    """
    One private file for each admitted task without a final record, and for each interrupted one.

    If the file cannot be written, the task cannot be resumed after a restart; nothing else changes.
    """

    def __init__(self, directory: Path, redactor: Redactor) -> None:
        self._directory = directory
        self._redactor = redactor

    def prepare(self, task: Task, ignored_fields: list[str]) -> NewTask:
        """Digest, encode and redact a task, in time proportional to its length; callable from any thread."""
        _ = task.digest  # computed now, and then held by the task
        # ``fresh_session`` is not stored: it concerns only the post that asked for it. The file's name has the id.
        content = msgspec.json.encode(msgspec.structs.replace(task, fresh_session=None))
        prompt = self._redactor.redact_text(task.message)[:PROMPT_LENGTH]
        return NewTask(task, ignored_fields, self._redactor.redact(content), prompt)

    def save(self, execution_id: str, content: bytes) -> None:
        """Write the content of a task, whole or not at all; a disk error is only logged."""
        path = self._path(execution_id)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(path, content)
        except OSError as error:
            log.warning("task not stored: %s", error.strerror, extra={"execution_id": execution_id})

    def delete(self, execution_id: str) -> None:
        """Delete a task whose execution has ended."""
        with contextlib.suppress(OSError):
            self._path(execution_id).unlink()

    def ids(self) -> Iterator[str]:
        """Return the ids of the stored tasks, and delete files that a crash left half written."""
        for path in self._directory.glob(f"*{UNFINISHED}"):  # earlier versions gave them other names
            with contextlib.suppress(OSError):
                path.unlink()
        for path in self._directory.glob("*.json"):
            if (execution_id := _id_in(path)) is not None:
                yield execution_id

    def load_all(self) -> Iterator[Task]:
        """Return the stored tasks, oldest first."""
        try:
            paths = sorted(self._directory.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        except OSError:
            return
        for path in paths:
            try:
                task, _ = parse(read_file(path), strict=False)
            except (OSError, InvalidRequest) as error:
                extra = {"execution_id": _id_in(path)}
                log.warning("stored task cannot be read: %s", type(error).__name__, extra=extra)
            else:
                yield msgspec.structs.replace(task, execution_id=_id_in(path))

    def _path(self, execution_id: str) -> Path:
        # Ids are not used as they are: hex and base32 keep them distinct on file systems that ignore case.
        encoded = execution_id.encode()
        is_short = len(encoded) <= _LONGEST_IN_HEX
        name = encoded.hex() if is_short else _BASE32 + base64.b32encode(encoded).decode().rstrip("=").lower()
        return self._directory / f"{name}.json"


def _id_in(path: Path) -> str | None:
    name = path.name.partition(".")[0]
    try:
        if not name.startswith(_BASE32):
            return bytes.fromhex(name).decode()
        letters = name.removeprefix(_BASE32).upper()
        return base64.b32decode(letters + "=" * (-len(letters) % 8)).decode()
    except ValueError:
        return None
