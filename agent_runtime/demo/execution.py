"""One execution of the demo, as a caller sees it: submitted, followed, answered; and its record."""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Callable

import msgspec

from agent_runtime import client
from agent_runtime.client import Answer, Attempt, ClientError, RequestRefused, StreamEvent, SyncAgentClient

TEXT_LIMIT = 150


class DemoExecution:
    """
    A task that was submitted, followed by a thread of its own.

    Args:
        name: The name in the timeline, and of the stand-in's script for this execution.
        say: Prints an event of the timeline.

    Attributes:
        answer: The answer or error; None: there is none yet.
        expects_refusal: The execution's token is refused, so that the failure ``auth`` is no fault.
        api_errors_shown: How many of the events reported an error of the API, also one that the CLI retries.
    """

    def __init__(self, name: str, execution_id: str, client: SyncAgentClient, say: Callable[[str, str], None]) -> None:
        self.name = name
        self.execution_id = execution_id
        self.answer: Answer | ClientError | None = None
        self.expects_refusal = False
        self.api_errors_shown = 0
        self._client = client
        self._say = say
        say(name, "submitted: POST /api/task")
        threading.Thread(target=self._follow, daemon=True).start()

    def __str__(self) -> str:
        if isinstance(self.answer, Answer):
            return f"200 {self.answer.status}: {self.answer.response} (attempts: {self.answer.metadata.attempts})"
        return f"{self.answer.status} {self.answer.error_class}: {self.answer}" if self.answer else "nothing"

    @property
    def is_auth(self) -> bool:
        """Whether the execution ended because the API refused the token."""
        return isinstance(self.answer, ClientError) and (self.answer.status, self.answer.error_class) == (503, "auth")

    @property
    def fault(self) -> str:
        """Why the answer is not the execution's own result after one attempt, or as expected; empty: it is."""
        answer = self.answer
        if isinstance(answer, Answer) and answer.response == result_of(self.name) and answer.metadata.attempts == 1:
            return ""
        return "" if self.expects_refusal and self.is_auth else f"{self.name} was answered {self}"

    @property
    def text(self) -> bytes:
        """The answer as JSON."""
        return msgspec.json.encode(self.answer.problem if isinstance(self.answer, ClientError) else self.answer)

    def record(self) -> client.Execution | None:
        """Return the record; None: there is none."""
        try:
            return self._client.execution(self.execution_id)
        except RequestRefused:
            return None

    def first_attempt(self) -> Attempt:
        """Return the record of the first attempt; an empty one, without a pid, if none was spawned."""
        record = self.record()
        return record.attempts[0] if record is not None and record.attempts else Attempt()

    def _follow(self) -> None:
        message = f"[[script:{self.name}]] Please do {self.name}."
        try:
            self._client.submit(message, execution_id=self.execution_id)
            for event in self._client.stream(self.execution_id):
                self._print(event)
            self.answer = self._client.result(self.execution_id)
        except ClientError as error:
            self.answer = error
        if not isinstance(self.answer, ClientError) or self.answer.status:
            self._say(self.name, f"answered {textwrap.shorten(str(self), TEXT_LIMIT, placeholder='...')}")

    def _print(self, event: StreamEvent) -> None:
        self.api_errors_shown += bool(event.data.get("error"))
        if event.name == "state" and event.data.get("state") == "running":
            attempt = self.first_attempt()
            carried = ", ".join(f"token {one.fingerprint} (generation {one.generation})" for one in attempt.tokens[:1])
            self._say(self.name, f"running: pid {attempt.pid}, {carried}")
        elif event.name == "state" and event.data.get("state") == "stopping":
            self._say(self.name, "stopping: the supervisor has sent the signal")
        elif event.data.get("type") == "assistant":
            for block in event.data["message"].get("content", []):
                if isinstance(block, dict) and block.get("type") == "tool_use":
                    self._say(self.name, f"tool: {block['input'].get('description')}")


def result_of(name: str) -> str:
    """Return the text that an execution ends with."""
    return f"{name} is done"
