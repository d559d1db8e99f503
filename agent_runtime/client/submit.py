"""
Submit a task and get its one answer, over broken connections and restarts of the supervisor.

The execution's id makes this safe, because the client can ask again by it. The quick way is a POST that waits for the
answer. If that breaks, the client asks ``GET …/result``, which starts nothing. It posts again only if the supervisor
does not know the task, because a POST after a failure begins a new attempt.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from agent_runtime.client.answers import Answer, read
from agent_runtime.client.errors import ClientError, TurnedAway, Unreachable, failure
from agent_runtime.client.exchange import REPLY_SECONDS, Patience, is_passing, problem_of, send, unreachable

WAIT_SECONDS = 240
"""After this time a POST is answered with 202 although the execution goes on; then the client polls the result."""

HOLD_SECONDS = 300.0
"""How long the client waits for the answer to a POST, because a proxy or a dead peer may never answer."""

LOST = "requests are lost on the way"


@dataclass(frozen=True, slots=True)
class End:
    """
    The end of an execution: its answer or its error.

    Attributes:
        ended_at: When it ended, in the supervisor's words, to recognise the same end again. None: it was not sent.
    """

    answer: Answer | None = None
    error: ClientError | None = None
    ended_at: str | None = None

    @property
    def error_class(self) -> str | None:
        """The class of the error; None: the execution did not fail."""
        return self.error.error_class if self.error else None


@dataclass(slots=True)
class Submission:
    """
    A task that is being submitted, or whose answer is waited for.

    Attributes:
        body: The body of every POST; another body would count as another task. None: the task was submitted before.
        waits: Wait for the answer; otherwise only for admission.
        is_known: The id is the caller's, so an earlier execution may have ended under it.
        max_resumes: How often the task is posted again after a shutdown interrupted it.
        not_admitted: The last error if the task is certainly not admitted; None: it may be.
    """

    http: httpx.AsyncClient = field(repr=False)
    patience: Patience
    execution_id: str
    body: bytes | None = field(repr=False)
    waits: bool = True
    is_known: bool = False
    max_resumes: int = 0
    not_admitted: ClientError | None = None

    async def run(self, total_seconds: float) -> Answer:
        """
        Get the task admitted and, if :attr:`waits` is set, wait for its answer.

        Args:
            total_seconds: The time limit of the call.

        Returns:
            The answer; if :attr:`waits` is not set and the execution goes on, one with the status ``accepted``.

        Raises:
            ClientError: The execution failed or was not admitted, no answer came for too long, or the time is over.
        """
        try:
            async with asyncio.timeout(total_seconds):
                return await self._run()
        except TimeoutError:
            over = Unreachable.because(
                "deadline", "the deadline of the call is over; an execution that was admitted goes on"
            )
            raise (self.not_admitted or over).about(self.execution_id) from None

    async def _run(self) -> Answer:
        # A result from before the first POST is not its answer.
        before = await self._known_end() if self.is_known else None
        accepted = Answer(execution_id=self.execution_id, status="accepted")
        posts, was_admitted, resumes = self.body is not None, self.body is None, 0
        while True:
            self.not_admitted = None
            try:
                end = await self._request_end(posts=posts)
            except ClientError as error:
                trouble: ClientError = error
                if is_passing(error):
                    turned_away = isinstance(error, TurnedAway)
                    posts = posts and (turned_away or error.problem.code == "not_sent")
                    self.not_admitted = error if posts and (turned_away or not was_admitted) else None
                elif posts or was_admitted or error.error_class != "not_found":
                    raise  # its record is lost: only the caller can decide to run the task a second time
                else:
                    posts, trouble = True, unreachable(LOST, self.http.base_url)
                await self.patience.pause(trouble)
                continue
            if end is None:
                if not self.waits:
                    return accepted
                posts, was_admitted = False, True
                await self.patience.wait()
            elif before and not posts and (end.ended_at, end.error_class) == (before.ended_at, before.error_class):
                posts = True  # the POST whose connection broke has not arrived
                await self.patience.pause(unreachable(LOST, self.http.base_url))
            elif end.error_class == "interrupted" and resumes < self.max_resumes:
                resumes += 1
                self.patience.reset()
                # Another client, or the supervisor itself at its start, may have resumed it already.
                found = await self._known_end() if posts else end
                before = found if found and found.error_class == "interrupted" else None
                posts = before is not None
            elif end.error and (self.waits or not end.ended_at):
                raise end.error
            else:
                return end.answer or accepted

    async def _known_end(self) -> End | None:
        """Ask for the result until the supervisor answers; None: the execution has not ended, or is not known."""
        while True:
            try:
                return await self._request_end(posts=False)
            except ClientError as error:
                if error.error_class == "not_found":
                    return None
                if not is_passing(error):
                    raise
                await self.patience.pause(error)

    async def _request_end(self, *, posts: bool) -> End | None:
        """Post the task, or ask for its result, and return its end; None: the execution has not ended."""
        try:
            if posts:
                prefer = f"wait={WAIT_SECONDS}" if self.waits else "respond-async"
                headers = {"content-type": "application/json", "prefer": prefer}
                seconds = HOLD_SECONDS if self.waits else REPLY_SECONDS
                status, answer = await send(self.http, "POST", "/api/task", seconds, content=self.body, headers=headers)
                stored: dict[str, Any] = {"status_code": status, "answer": answer}
            else:
                status, stored = await send(self.http, "GET", path_of(self.execution_id, "/result"), REPLY_SECONDS)
        except ClientError as error:
            if error.error_class != "interrupted" and error.problem.code != "no_retained_result":
                raise
            return End(error=error)
        return None if status == 202 else _end_of(stored, self.http.base_url)


def path_of(execution_id: str, what: str = "") -> str:
    """Return the URL path of an execution, with *what* (such as ``/result``) appended."""
    return f"/api/executions/{quote(execution_id, safe='')}{what}"


def _end_of(stored: dict[str, Any], url: httpx.URL) -> End:
    """
    Read the end of an execution from a stored answer.

    Raises:
        Unreachable: The answer cannot be read.
    """
    status, answer, ended_at = stored.get("status_code"), stored.get("answer"), stored.get("retained_at")
    if isinstance(status, int) and isinstance(answer, dict):
        if status != 200:
            return End(error=failure(problem_of(answer, status)), ended_at=ended_at)
        if (found := read(Answer, answer)) is not None:
            return End(found, ended_at=ended_at)
    raise unreachable("its answer cannot be read", url)
