"""One execution as its caller sees it: a request that waits, a stream that tells, a record to look up."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from agent_runtime.demo.stage import ANSWER_TIMEOUT_SECONDS, LOOK_AGAIN_SECONDS

if TYPE_CHECKING:
    from agent_runtime.demo.stage import Stage

_TEXT_LIMIT = 150


class Answer(msgspec.Struct, frozen=True):
    """
    What the caller of ``POST /api/task`` got.

    Attributes:
        body: A success, or a problem (RFC 9457).
        text: The body as it came.
    """

    status: int
    body: dict[str, Any]
    text: str

    @property
    def is_auth(self) -> bool:
        """Whether it says that the API refused the token."""
        return self.status == 503 and self.body.get("error_class") == "auth"

    def __str__(self) -> str:
        if self.status == 200:
            return f"200 {self.body.get('status')}: {self.body.get('response')}"
        return f"{self.status} {self.body.get('error_class')}: {self.body.get('detail')}"


class Execution:
    """
    A task on its way, from a thread of its own.

    Attributes:
        name: As the timeline calls it; the stand-in's script for it has the same name.
        began_at: On :func:`time.monotonic`.
        failure: Why there will be no answer.
    """

    def __init__(self, stage: Stage, name: str) -> None:
        self.name = name
        self.execution_id = f"demo-{stage.run}-{name}"
        self.began_at = time.monotonic()
        self.answer: Answer | None = None
        self.failure: str | None = None
        self._stage = stage
        self._over = threading.Event()
        stage.execution_ids.append(self.execution_id)
        stage.say(name, "submitted: POST /api/task")
        for target in (self._post, self._follow):
            threading.Thread(target=target, daemon=True).start()

    @property
    def is_over(self) -> bool:
        """Whether the answer has come, or never will."""
        return self._over.is_set()

    def wait(self) -> Answer | None:
        """Wait for the answer; None if none came."""
        self._over.wait(ANSWER_TIMEOUT_SECONDS)
        return self.answer

    def record(self) -> dict[str, Any]:
        """Look the record up; empty if there is none."""
        response = self._stage.client.get(f"/api/executions/{self.execution_id}")
        return dict(response.json()) if response.status_code == 200 else {}

    def first_attempt(self) -> dict[str, Any]:
        """Return the record of its first process; empty if none was spawned."""
        attempts = self.record().get("attempts") or [{}]
        return dict(attempts[0])

    def _post(self) -> None:
        task = {"execution_id": self.execution_id, "message": f"[[script:{self.name}]] Please do {self.name}."}
        try:
            response = self._stage.client.post("/api/task", json=task)
            self.answer = Answer(response.status_code, dict(response.json()), response.text)
            self._stage.say(self.name, f"answered {_short(str(self.answer))}")
        except (httpx.HTTPError, ValueError) as error:
            self.failure = type(error).__name__
        except RuntimeError as error:
            self.failure = str(error)  # the client was closed: the demo is being ended
        finally:
            self._over.set()

    def _follow(self) -> None:
        """Tell what the execution's stream tells; the stream opens when the task has been admitted."""
        try:
            while not self.record():
                if self._over.wait(LOOK_AGAIN_SECONDS):
                    return
            with self._stage.client.stream("GET", f"/api/executions/{self.execution_id}/stream") as response:
                kind = ""
                for line in response.iter_lines():
                    name, _, value = line.partition(": ")
                    if name == "event":
                        kind = value
                    elif name == "data" and kind in ("message", "state"):
                        self._told(kind, msgspec.json.decode(value))
        except (httpx.HTTPError, ValueError, RuntimeError) as error:
            if not self.is_over:
                self._stage.say(self.name, f"its stream broke off: {type(error).__name__}")

    def _told(self, kind: str, event: dict[str, Any]) -> None:
        if kind == "state":
            if event.get("state") == "running":
                attempt = self.first_attempt()
                token = (attempt.get("tokens") or [{}])[0]
                self._stage.say(
                    self.name,
                    f"running: pid {attempt.get('pid')}, token {token.get('fingerprint')} "
                    f"(generation {token.get('generation')})",
                )
            elif event.get("state") == "stopping":
                self._stage.say(self.name, "stopping: the supervisor has sent the signal")
        elif event.get("type") == "assistant":
            for block in event["message"].get("content", []):
                if isinstance(block, dict) and block.get("type") == "tool_use":
                    self._stage.say(self.name, f"tool: {_short(str(block['input'].get('description')))}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TEXT_LIMIT else f"{line[:_TEXT_LIMIT]}..."
