"""Every call of a client as what is asked: one place for paths, bodies and the way a task is written."""

from __future__ import annotations

import random
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from agent_runtime.client import submission
from agent_runtime.client.failures import ClientError
from agent_runtime.client.following import Following
from agent_runtime.client.submission import Answer, Order
from agent_runtime.client.talk import Ask, Patience, call
from agent_runtime.tokens import Token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_runtime.client.talk import Talk

DEADLINE_SECONDS = 3600.0
PATIENCE_SECONDS = 120.0
TERMINATE_SECONDS = 120.0
"""An answer to ``terminate`` comes when nothing of the execution is left."""

KEY_LIMIT_BYTES = 4096


class TaskFields(TypedDict, total=False):
    """What a task may say beside its message; the meaning of each is in the HTTP interface."""

    model: str | None
    system_prompt: str | None
    allowed_tools: list[str] | None
    disallowed_tools: list[str] | None
    max_turns: int | None
    timeout_seconds: float | None
    resume_session_id: str | None
    persist_session: bool | None
    mcp_config: Mapping[str, Any] | None
    images: list[dict[str, str]] | None
    park_seconds: float | None
    traceparent: str | None
    tracestate: str | None


class AccessKey:
    """
    What a client shows to be let in.

    Args:
        key: The key itself.
        path: A file that holds it, read at every request, so that a change needs no restart.
        header: ``Authorization`` (as a bearer token) or the supervisor's own header.
    """

    def __init__(self, key: str | None, path: str | Path | None, header: str) -> None:
        self._key = Token(key) if key is not None else None
        self._path = Path(path) if path is not None else None
        self._header = header

    def headers(self) -> dict[str, str]:
        """
        Write the header.

        Raises:
            ClientError: The file cannot be read, or what is there cannot be sent.
        """
        key = self._key
        if self._path is not None:
            try:
                with self._path.open("rb") as file:
                    key = Token(file.read(KEY_LIMIT_BYTES).decode(errors="replace").strip())
            except OSError as error:
                raise ClientError(
                    f"the access key file {self._path} cannot be read: {error.strerror}; name another"
                ) from None
        if key is None:
            return {}
        if not key.secret.isascii() or not key.secret.isprintable() or not key.secret:
            raise ClientError("the access key must be printable ASCII")
        value = f"Bearer {key.secret}" if self._header.lower() == "authorization" else key.secret
        return {self._header: value}


class Calls:
    """
    Write the calls of one client.

    Args:
        patience_seconds: How long nobody may answer, or a supervisor turn a task away, before a call gives up.
        max_resumes: How often a task is posted again after a shutdown interrupted it.
    """

    def __init__(self, patience_seconds: float, max_resumes: int) -> None:
        self._patience_seconds = patience_seconds
        self._max_resumes = max_resumes

    def run(
        self,
        message: str,
        execution_id: str | None,
        deadline_seconds: float | None,
        fields: Mapping[str, Any],
    ) -> Talk[Answer]:
        """Submit a task and wait for its answer."""
        order = self._order(message, execution_id, fields, waits=True)
        answer = yield from submission.submit(order, self._patience(self._deadline(deadline_seconds, fields)))
        assert answer is not None, "an order that waits has an answer"  # noqa: S101 - so is it built
        return answer

    def submit(self, message: str, execution_id: str | None, fields: Mapping[str, Any]) -> Talk[str]:
        """Get a task admitted, and return its id."""
        order = self._order(message, execution_id, fields, waits=False)
        yield from submission.submit(order, self._patience(DEADLINE_SECONDS))
        return order.execution_id

    def result(self, execution_id: str, deadline_seconds: float | None) -> Talk[Answer]:
        """Wait for the answer of a task that was submitted."""
        total_seconds = DEADLINE_SECONDS if deadline_seconds is None else deadline_seconds
        return submission.result(execution_id, self._patience(total_seconds))

    def follow(self, execution_id: str, after: int) -> Following:
        """Begin to follow an execution's stream."""
        return Following(execution_id, after, self._patience(float("inf")))

    def get(self, path: str, **query: str | int | None) -> Talk[dict[str, Any]]:
        """Ask for what is at *path*."""
        told = {name: value for name, value in query.items() if value is not None}
        return call(Ask("GET", f"{path}?{urlencode(told)}" if told else path))

    def of_execution(self, execution_id: str, what: str = "") -> Talk[dict[str, Any]]:
        """Ask for something of one execution."""
        return self.get(_path(execution_id, what))

    def terminate(self, execution_id: str) -> Talk[dict[str, Any]]:
        """Cancel an execution, and wait until nothing of it is left."""
        return call(Ask("POST", _path(execution_id, "/terminate"), reply_seconds=TERMINATE_SECONDS))

    def reload_token(self, token: str | None) -> Talk[dict[str, Any]]:
        """Have the secret file read now; with a token, have it written first."""
        body = None if token is None else msgspec.json.encode({"token": token})
        headers = {} if body is None else {"content-type": "application/json"}
        return call(Ask("POST", "/api/credentials/reload-token", body, headers))

    def drain(self, method: str) -> Talk[dict[str, Any]]:
        """Start (POST) or call off (DELETE) a drain."""
        return call(Ask(method, "/api/drain"))

    def _order(self, message: str, execution_id: str | None, fields: Mapping[str, Any], *, waits: bool) -> Order:
        known = execution_id is not None
        name = execution_id if execution_id is not None else str(uuid.uuid4())
        told = {key: value for key, value in fields.items() if value is not None}
        body = msgspec.json.encode({"message": message, **told, "execution_id": name})
        return Order(name, body, is_known=known, waits=waits, max_resumes=self._max_resumes)

    def _patience(self, total_seconds: float) -> Patience:
        return Patience(time.monotonic, random.random, self._patience_seconds, total_seconds)

    def _deadline(self, deadline_seconds: float | None, fields: Mapping[str, Any]) -> float:
        """Tell how long to wait at most: as the caller says, else a little longer than the task may take."""
        if deadline_seconds is not None:
            return deadline_seconds
        timeout_seconds = fields.get("timeout_seconds")
        return DEADLINE_SECONDS if timeout_seconds is None else float(timeout_seconds) + self._patience_seconds


def checked_url(url: str) -> str:
    """
    Take the address of a supervisor.

    Raises:
        ValueError: It is none.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the address of a supervisor begins with http:// or https://")
    return url.rstrip("/")


def _path(execution_id: str, what: str) -> str:
    return f"/api/executions/{quote(execution_id, safe='')}{what}"
